"""The parts of a run that differ between what is trained; `fit` does the rest, the same for all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import nn

from smalti.training.config import RunConfig
from smalti.training.distributed import World
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


class Task(Savable):
    """Something that can be trained by `fit`: five functions, `tensors` and `export` among them."""

    data_count: int
    """Samples in the data."""
    data_counts: Mapping[str, int]
    """Number of samples that are trained on, held out and left out, by name, for data.json."""
    notes: Sequence[str] = ()
    """Facts about the data that a user should know before the first step, a line each."""

    def steps(self, folder: Path) -> Iterator[StepResult]:
        """Train from the present step to the last; lists of files that cannot be read go into the run folder."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Return scores of the EMA weights on held-out data; none without such data."""
        raise NotImplementedError

    def samples(self) -> Samples:
        """Return samples of the EMA weights, always of the same inputs."""
        raise NotImplementedError
