"""The work of `smalti tokenize`: what was asked, who does it, and how it is watched."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from smalti.cli.console import bar, message_line, say
from smalti.errors import ConfigError
from smalti.progress import Progress

if TYPE_CHECKING:
    from smalti.tokens.finalize import Summary
    from smalti.tokens.inputs import Files, Tables, Tars
    from smalti.tokens.options import Options
    from smalti.tokens.plan import Plan
    from smalti.tokens.pool import Seen

_EVERY = 30.0
"""Seconds between two lines of progress where nobody watches a bar."""


class Given(NamedTuple):
    """What the command line asks for."""

    inputs: "Files | Tars | Tables"
    options: "Options"
    workers: int
    engine: Literal["local", "ray"]
    gpus: float
    timeout: float
    memory: float | None
    """In GB."""
    resume: bool


def make(
    tokenizer: str,
    out: Path,
    given: Given,
    part: tuple[int, int],
    *,
    device: str | None,
    plan_only: bool,
    quiet: bool,
) -> "Summary | None":
    """Make the shards of a part that are not done; None where only the plan was asked for."""
    from smalti.tokens.finalize import finish
    from smalti.tokens.pool import Limits, pending, work
    from smalti.tokens.run import begin
    from smalti.training.distributed import pick_device

    remote = "cuda" if given.engine == "ray" and given.gpus else None  # this machine may have no GPU
    where = remote or (device if device is not None and ":" in device else pick_device(device).type)
    begun = begin(tokenizer, given.inputs, out, given.options, device=where, resume=given.resume)
    for note in begun.notes:
        say(f"note: {message_line(note)}")
    plan = begun.plan
    if plan_only:
        print(f"{out}: {plan.listed:,} inputs in {plan.shards:,} shards; run the same without --plan-only")
        return None
    shards = pending(plan, part)
    memory = None if given.memory is None else int(given.memory * 1e9)
    total = _Total.of(plan, shards)
    with bar("tokenizing", total.whole) as advance:
        watch = _Watch(advance, total, quiet=quiet)
        if given.engine == "ray":
            from smalti.tokens.ray_engine import RayLimits, work_on_ray

            work_on_ray(plan, begun.job, shards, RayLimits(given.gpus, given.timeout, memory), watch)
        else:
            work(plan, begun.job, shards, Limits(given.workers, given.timeout, memory), watch)
    return finish(plan)


class _Total(NamedTuple):
    """What the bar counts: files, or shards where how many media an input has is not known before."""

    whole: int
    unit: Literal["files", "shards"]

    @classmethod
    def of(cls, plan: "Plan", shards: Sequence[int]) -> "_Total":
        """Of the shards that are to be made."""
        if plan.inputs.kind != "files":
            return cls(len(shards), "shards")
        counts = plan.counts()
        return cls(sum(counts[shard] for shard in shards), "files")


class _Watch:
    """Moves the bar; where there is none, says a line now and then unless `quiet`."""

    def __init__(self, advance: Progress, total: _Total, *, quiet: bool) -> None:
        self.advance, self.total = advance, total
        self.plain = not quiet and not sys.stderr.isatty()
        self.begun = self.said = time.monotonic()

    def __call__(self, seen: "Seen") -> None:
        now = time.monotonic()
        seconds = max(1e-9, now - self.begun)
        done = seen.items if self.total.unit == "files" else seen.shards
        rates = f"{seen.items / seconds:,.1f} items/s, {seen.tokens / seconds:,.0f} tokens/s"
        if seen.bad:
            rates += f", {seen.bad:,} bad"
        self.advance(done, note=f"{self.total.unit}, {rates}")
        if self.plain and now - self.said > _EVERY:
            self.said = now
            left = (self.total.whole - done) * seconds / max(1, done)
            say(f"{done:,} of {self.total.whole:,} {self.total.unit}, {rates}, {left:,.0f} s left")


def chosen(
    data: str, source: str | None, flags: Mapping[str, object], assignments: list[str]
) -> "tuple[Files | Tars | Tables, Options]":
    """The inputs and options that the command line names."""
    from smalti.config import Config
    from smalti.tokens.inputs import AnyInputs, Files, Tables, Tars, choose
    from smalti.tokens.options import Options

    class Chosen(Config):
        inputs: AnyInputs
        options: Options

    kinds = {"files": Files, "tars": Tars, "parquet": Tables}
    given = Path(data)
    inputs = choose(data) if source is None else kinds[source](path=given)
    options = Options.parse({k: v for k, v in flags.items() if v is not None}, where="tokenize")
    both = Chosen(inputs=inputs, options=options).override(assignments)
    return both.inputs, both.options


def size_of(text: str | None) -> int | tuple[int, int] | None:
    """Rows and columns of `--size`."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise ConfigError(f"--size {text}: expected one number or rows x columns, as in 256 or 144x256")
    return sides[0], sides[1]


def part_of(text: str | None) -> tuple[int, int]:
    """(i, n) of `--shard`; `auto` takes them from torchrun, a Slurm array or srun."""
    if text is None:
        return 0, 1
    if text == "auto":
        pairs = (
            ("RANK", "WORLD_SIZE"),
            ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
        )
        for index, count in pairs:
            if index in os.environ and count in os.environ:
                first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0")) if "ARRAY" in index else 0
                return int(os.environ[index]) - first, int(os.environ[count])
        raise ConfigError("--shard auto: neither torchrun nor Slurm says which part this is; give --shard 0/8")
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(count)):
        raise ConfigError(f"--shard {text}: expected part/parts, as in 0/8")
    return int(index), int(count)
