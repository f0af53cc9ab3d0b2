"""A run: a folder that grows by log lines, pictures and checkpoints, and can be stopped and resumed at any step."""

import hashlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from smalti.config import load_yaml
from smalti.data import BadFileLog, Batch, Source, batches
from smalti.errors import ConfigError, InputError, IntegrityError, SmaltiError
from smalti.files import lock, remove_leftovers, write_bytes
from smalti.train import state as states
from smalti.train.common import join_world
from smalti.train.config import RESUMABLE, TokenizerTraining
from smalti.train.log import RunLog
from smalti.train.state import TrainState
from smalti.train.step import Measured, step

PATIENCE = 10
"""Steps in a row that may be skipped for numbers that are not finite, before the run gives up."""

Watch = Callable[[Measured], None]


def train(state: TrainState, batches: Iterator[Batch]) -> Iterator[Measured]:
    """Steps to the end of the run, yielding after each. Saves, logs and draws nothing: the caller does."""
    skipped = 0
    while state.step < state.config.steps:
        measured = step(state, next(batches).video)
        skipped = skipped + 1 if measured.skipped else 0
        if skipped == PATIENCE:
            raise SmaltiError(
                f"step {state.step}: losses or gradients were not finite {PATIENCE} times in a row; the weights are as "
                f"before them. Lower the learning rate and resume from the last checkpoint."
            )
        yield measured


def run(
    config: TokenizerTraining,
    out: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train `config` in the folder `out`; gives the folder of the trained (averaged) tokenizer, `out/tokenizer`.

    With `resume` a stopped run goes on from its newest whole checkpoint, and ends with the weights of an
    undisturbed run, bit for bit on the same machine. SIGTERM and SIGINT save first. Raises SmaltiError.
    """
    with join_world(device) as world:
        # What can fail for want of files, weights or memory does so before anything is written.
        source = config.data.build()
        state = states.start(config, world)
        if world.leads:
            _prepare(config, out, resume)
        world.barrier()
        with lock(out / ".lock") if world.leads else nullcontext(), _stoppable() as stopped:
            digest = states.digest_of([source.key(i) for i in range(len(source))])
            if resume:
                _resume(state, out, digest, len(source))
            _check_ranks(state, digest)
            return _run(state, source, digest, out, watch, stopped)


def _run(state: TrainState, source: Source, digest: str, out: Path, watch: Watch | None, stopped: list[int]) -> Path:
    config, world = state.config, state.world
    bad = BadFileLog(out / f"bad_files{f'-{world.rank}' if world.rank else ''}.jsonl")
    stream = batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=state.step,
        part=(world.rank, world.size),
        workers=config.workers,
        on_bad=bad,
    )
    with RunLog(out, state, bad) as log:
        for measured in train(state, stream):
            log.write(measured)
            if watch is not None:
                watch(measured)
            ended = state.step == config.steps
            stop = world.any(bool(stopped))
            if ended or stop or state.step % config.save_every == 0:
                if world.leads:
                    states.save(state, out, digest)
                    for old in states.checkpoints(out)[: -config.keep]:
                        _remove(old)
                world.barrier()
            if world.leads and (ended or state.step % config.sample_every == 0):
                log.draw(state)
            if config.validation is not None and (ended or state.step % config.eval_every == 0):
                log.validate(state)
            if stop and not ended:
                raise Stopped(state.step, stopped[0] if stopped else signal.SIGTERM)  # else another rank was told
        if world.leads:
            state.average.save(out / "tokenizer", replace=True)
        world.barrier()
    return out / "tokenizer"


class Stopped(SmaltiError):
    """The run was asked to stop and has saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped by signal {int(number)} at step {step}, saved; go on with --resume")
        self.exit_code = 128 + number


def _prepare(config: TokenizerTraining, out: Path, resume: bool) -> None:
    """Make the run folder, or check that it holds the run that `config` describes."""
    known = out / "config.yaml"
    if known.is_file():
        if not resume:
            raise ConfigError(f"{out}: holds a run already; give --resume to go on with it, or another --out")
        _check_same(load_yaml(TokenizerTraining, known), config, known)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: is there and is not a run; give another --out")
    elif resume:
        raise ConfigError(f"{out}: there is no run to resume; leave --resume out to start one")
    write_bytes(known, config.to_yaml().encode())
    remove_leftovers(out)


def _check_same(old: TokenizerTraining, new: TokenizerTraining, where: Path) -> None:
    differing = [
        name for name in type(old).model_fields if name not in RESUMABLE and getattr(old, name) != getattr(new, name)
    ]
    if differing:
        shown = ", ".join(f"{n} ({getattr(old, n)!s:.40} -> {getattr(new, n)!s:.40})" for n in differing[:3])
        raise ConfigError(
            f"{where}: this run was started with other settings: {shown}; start another run, or change only "
            f"{', '.join(sorted(RESUMABLE))}"
        )


def _check_ranks(state: TrainState, digest: str) -> None:
    """Raise ConfigError, on all ranks, where they would not train one run: nodes differ in arguments or in disks."""
    settings = state.config.replace(dict.fromkeys(("workers", "log_every"), 1)).to_yaml()
    for what, told in (("settings", settings), ("lists of data", digest), ("checkpoints", str(state.step))):
        number = int(hashlib.sha256(told.encode()).hexdigest()[:15], 16)
        if not state.world.agree(number):
            raise ConfigError(
                f"the {state.world.size} processes have different {what}: give all nodes the same arguments, data and "
                f"run folder (on a disk that they share)"
            )


def _resume(state: TrainState, out: Path, digest: str, count: int) -> None:
    """Load the newest checkpoint that is whole; say so where a newer one is damaged."""
    found = states.checkpoints(out)
    faults: list[str] = []
    for folder in reversed(found):
        try:
            about = states.load(state, folder)
        except (IntegrityError, InputError) as fault:
            faults.append(str(fault))
            continue
        if faults and state.world.leads:
            print(f"warning: {faults[0]}; resuming from {folder.name} instead", file=sys.stderr)
        if about["data"] != digest:
            raise InputError(f"data: {count:,} samples, not the ones this run began with; restore them or start anew")
        return
    if found:
        raise IntegrityError(f"{out}: none of its {len(found)} checkpoints is whole; the newest: {faults[0]}")


def _remove(folder: Path) -> None:
    """Delete a checkpoint; its manifest goes first, so that half of one is never taken for a whole one."""
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


@contextmanager
def _stoppable() -> Iterator[list[int]]:
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
