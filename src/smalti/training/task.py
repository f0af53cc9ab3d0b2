"""The parts of a run that differ between what is trained; `fit` does the rest, the same for all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import nn

from smalti.training.config import RunConfig
from smalti.training.distributed import World
from smalti.training.late import MOST, Late, decides_alone
from smalti.training.sharded import ShardedRun


@runtime_checkable
class StepResult(Protocol):
    """The figures of one step."""

    @property
    def step(self) -> int:
        """Steps so far, this one included."""

    @property
    def skipped(self) -> bool:
        """Whether the update was left out because a loss or gradient was not finite."""

    @property
    def samples(self) -> int | None:
        """Digest of the samples of all steps so far, this one included; None in runs of versions without it."""

    @property
    def note(self) -> str:
        """A few words for a progress bar."""

    def line(self) -> dict[str, Any]:
        """Return the line for log.jsonl."""


@runtime_checkable
class Stateful(Protocol):
    """Tensors that a checkpoint holds under their names: a module, or anything that reads and gives them as one."""

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name; none at all make no file."""

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object:
        """Put them back."""


@dataclass(kw_only=True)
class RunState:
    """The state of a run, as far as every task has it."""

    config: RunConfig
    world: World
    step: int = 0
    """Steps so far, skipped ones included."""
    updates: int = 0
    """Steps that changed the weights."""
    samples: int | None = 0
    """Digest of the samples of all steps so far (`count_samples`); None in runs of versions without it."""
    sharded: ShardedRun | None = None
    """The shards of the EMA weights, where the run is in shards."""
    late: Late | None = None
    """The steps that were begun and not read yet, where the device decides which of them are skipped."""

    def begin_late(self) -> Late | None:
        """Return the steps since the last reading; None where the host decides."""
        if self.late is None and self.sharded is None and decides_alone(self.world.device):
            decays = [self.config.ema_decay(self.updates + number) for number in range(MOST)]
            self.late = Late(decays, self.world.device)
        return self.late

    def end_late(self, learnt: int) -> None:
        """Take note that all steps were read, of which so many have changed the weights."""
        if self.late is not None:
            self.updates, self.late = self.updates + learnt, None


class Samples(NamedTuple):
    """Samples to look at."""

    image: Image.Image | None
    values: dict[str, Any]
    """More of them, for log.jsonl."""


class Savable:
    """Something whose training can be saved and restored."""

    state: RunState
    ema: nn.Module
    """The EMA weights, which `export` writes and a resumed run reads back from there."""
    data_digest: str
    """A digest of the data: a resumed run must have the same."""

    def tensors(self) -> Mapping[str, Stateful]:
        """Return what a checkpoint holds beside the EMA weights, by file name without its suffix."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the trained model, with its EMA weights, as a folder that `smalti.load` and the commands read."""
        raise NotImplementedError

    def gather(self, *, saving: bool) -> None:
        """Bring the EMA weights of a run in shards together on rank 0, and if `saving` all that a checkpoint holds;
        ranks call it together, before rank 0 saves, validates or shows samples, and `release` afterwards."""
        if self.state.sharded is not None:
            files = self.tensors() if saving else {}
            self.state.sharded.gather({name: source.state_dict() for name, source in files.items()})

    def release(self) -> None:
        """Forget what was gathered."""
        if self.state.sharded is not None:
            self.state.sharded.release()


def each_step(step: int) -> bool:
    """Say of every step that its result is wanted."""
    return True


class Task(Savable):
    """Something that can be trained by `fit`: five functions, `tensors` and `export` among them."""

    data_count: int
    """Samples in the data."""
    data_counts: Mapping[str, int]
    """Number of samples that are trained on, held out and left out, by name, for data.json."""
    notes: Sequence[str] = ()
    """Facts about the data that a user should know before the first step, a line each."""

    def steps(self, folder: Path, wanted: Callable[[int], bool] = each_step) -> Iterator[StepResult]:
        """Train from the present step to the last; lists of files that cannot be read go into the run folder.

        `wanted` is asked after each step, on all ranks, and says whether its result must not wait: results of several
        steps may come together, in order, once the last of them is wanted.
        """
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Return scores of the EMA weights on held-out data; none without such data."""
        raise NotImplementedError

    def samples(self) -> Samples:
        """Return samples of the EMA weights, always of the same inputs."""
        raise NotImplementedError
