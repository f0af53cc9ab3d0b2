"""A run folder and the loop over steps that fills it, the same for all that is trained."""

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from smalti.config import Config, load_yaml
from smalti.errors import ConfigError, SmaltiError
from smalti.files import remove_leftovers, write_bytes
from smalti.training.distributed import World

PATIENCE = 10
"""Steps in a row that may be skipped for numbers that are not finite, before the run gives up."""


@runtime_checkable
class Cadence(Protocol):
    """The fields of a training config that say when."""

    @property
    def steps(self) -> int:
        """How many there are."""

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""

    @property
    def sample_every(self) -> int:
        """Steps between samples."""

    @property
    def eval_every(self) -> int:
        """Steps between validations."""


@runtime_checkable
class Made(Protocol):
    """What every step says of itself."""

    @property
    def step(self) -> int:
        """Steps made."""

    @property
    def skipped(self) -> bool:
        """Whether the update was left out."""

    @property
    def note(self) -> str:
        """A few words for who watches."""


M = TypeVar("M", bound=Made)
Watch = Callable[[Made], None]


@dataclass(frozen=True)
class Hooks(Generic[M]):
    """What happens beside the steps. All but `save` and `draw` run on every rank."""

    write: Callable[[M], None]
    save: Callable[[], None]
    draw: Callable[[], None]
    validate: Callable[[], None]


def follow(
    steps: Iterator[M], cadence: Cadence, world: World, hooks: Hooks[M], *, watch: Watch | None, stopped: list[int]
) -> None:
    """Make all steps; write, save, draw and validate when it is time. Raises Stopped once a signal is in `stopped`."""
    for made in steps:
        hooks.write(made)
        if watch is not None:
            watch(made)
        ended = made.step == cadence.steps
        stop = world.any(bool(stopped))
        if ended or stop or made.step % cadence.save_every == 0:
            if world.leads:
                hooks.save()
            world.barrier()
        if world.leads and (ended or made.step % cadence.sample_every == 0):
            hooks.draw()
        if ended or made.step % cadence.eval_every == 0:
            hooks.validate()
        if stop and not ended:
            raise Stopped(made.step, stopped[0] if stopped else signal.SIGTERM)  # else another rank was told


def patient(steps: Iterator[M]) -> Iterator[M]:
    """The same steps; SmaltiError once `PATIENCE` in a row were skipped."""
    skipped = 0
    for made in steps:
        skipped = skipped + 1 if made.skipped else 0
        if skipped == PATIENCE:
            raise SmaltiError(
                f"step {made.step}: losses or gradients were not finite {PATIENCE} times in a row; the weights are as "
                f"before them. Lower the learning rate and resume from the last checkpoint."
            )
        yield made


class Stopped(SmaltiError):
    """The run was asked to stop and has saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped by signal {int(number)} at step {step}, saved; go on with --resume")
        self.exit_code = 128 + number


def prepare(config: Config, out: Path, *, resume: bool, may_change: set[str]) -> None:
    """Make the run folder, or check that it holds the run that `config` describes."""
    known = out / "config.yaml"
    if known.is_file():
        if not resume:
            raise ConfigError(f"{out}: holds a run already; give --resume to go on with it, or another --out")
        _check_same(load_yaml(type(config), known), config, known, may_change)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: is there and is not a run; give another --out")
    elif resume:
        raise ConfigError(f"{out}: there is no run to resume; leave --resume out to start one")
    write_bytes(known, config.to_yaml().encode())
    remove_leftovers(out)


def _check_same(old: Config, new: Config, where: Path, may_change: set[str]) -> None:
    differing = [
        name for name in type(old).model_fields if name not in may_change and getattr(old, name) != getattr(new, name)
    ]
    if differing:
        shown = ", ".join(f"{n} ({getattr(old, n)!s:.40} -> {getattr(new, n)!s:.40})" for n in differing[:3])
        raise ConfigError(
            f"{where}: this run was started with other settings: {shown}; start another run, or change only "
            f"{', '.join(sorted(may_change))}"
        )


def check_ranks(world: World, config: Config, digest: str, step: int) -> None:
    """Raise ConfigError, on all ranks, where they would not train one run: nodes differ in arguments or in disks.

    `digest` is of the data, `step` is where the run goes on.
    """
    settings = config.replace(dict.fromkeys(("workers", "log_every"), 1)).to_yaml()
    for what, told in (("settings", settings), ("lists of data", digest), ("checkpoints", str(step))):
        number = int(hashlib.sha256(told.encode()).hexdigest()[:15], 16)
        if not world.agree(number):
            raise ConfigError(
                f"the {world.size} processes have different {what}: give all nodes the same arguments, data and "
                f"run folder (on a disk that they share)"
            )


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying; a second one of the same kind ends the process at once."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        received.append(number)

    with suppress(ValueError):  # not in the main thread: the caller's business
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
