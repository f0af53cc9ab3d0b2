"""A tokenizer's run: a folder that grows by log lines, pictures and checkpoints, and can be stopped and resumed."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from smalti.data import BadFileLog, Batch, Source, batches
from smalti.files import lock
from smalti.training import tokenizer_state as states
from smalti.training.checkpoints import digest_of, keep_newest, resume_newest
from smalti.training.config import RESUMABLE, TokenizerTraining
from smalti.training.distributed import join_world
from smalti.training.fit import Hooks, Watch, check_ranks, follow, patient, prepare, stoppable
from smalti.training.run_log import RunLog
from smalti.training.tokenizer_state import TrainState
from smalti.training.tokenizer_step import Measured, step


def train(state: TrainState, batches: Iterator[Batch]) -> Iterator[Measured]:
    """Steps to the end of the run, yielding after each. Saves, logs and draws nothing: the caller does."""
    return patient(step(state, next(batches).video) for _ in range(state.step, state.config.steps))


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
            prepare(config, out, resume=resume, may_change=RESUMABLE)
        world.barrier()
        with lock(out / ".lock") if world.leads else nullcontext(), stoppable() as stopped:
            digest = digest_of([source.key(i) for i in range(len(source))])
            if resume:
                load = partial(states.load, state)
                resume_newest(load, out, digest, count=len(source), leads=world.leads)
            check_ranks(world, config, digest, state.step)
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

    def save() -> None:
        states.save(state, out, digest)
        keep_newest(out, config.keep)

    with RunLog(out, state, bad) as log:
        hooks = Hooks(log.write, save, lambda: log.draw(state), lambda: log.validate(state))
        follow(train(state, stream), config, world, hooks, watch=watch, stopped=stopped)
        if world.leads:
            state.average.save(out / "tokenizer", replace=True)
        world.barrier()
    return out / "tokenizer"
