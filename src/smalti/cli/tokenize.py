"""`smalti tokenize`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.console import (
    TOKENIZER_HELP,
    DeviceOption,
    JsonOption,
    MaxBadOption,
    PrecisionOption,
    bar,
    is_watched,
    message_line,
    parse_size,
    print_json,
    say,
)
from smalti.errors import InputError
from smalti.text import Progress

if TYPE_CHECKING:
    from smalti.tokens.finalize import SetSummary

_MOST_LINES = 20
"""Bad files that are named on stderr; all of them stand in bad_files.jsonl."""
_LINE_SECONDS = 30.0
"""Seconds between two lines of progress where there is no bar."""


def tokenize_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, a list, one file, tars, Parquet, or hf:OWNER/NAME.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the token set; an unfinished one is continued.")],
    size: Annotated[str | None, typer.Option(help="Height x width, as 256 or 144x256; default: as it is.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frame rate at which video is sampled.")] = None,
    clip: Annotated[int | None, typer.Option(min=1, help="Cut video into clips of N frames.")] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Frames that a clip shares with the previous one.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images of one size encoded together.")] = 1,
    source: Annotated[
        Literal["files", "tars", "parquet"] | None,
        typer.Option("--from", help="What DATA is, if its name is not enough."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set options.FIELD or inputs.FIELD; repeatable."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: this process, without a guard.")] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Part I of N of the work; auto: from torchrun or Slurm.")
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of a Ray task, as 0.25.")] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a silent worker counts as hung.")] = 300.0,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="GB that a worker may hold; default: from this machine.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the existing plan; do not list DATA.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the plan and stop.")] = False,
    device: DeviceOption = None,
    max_bad: MaxBadOption = 1.0,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn images and video into a token set: Parquet shards that any token model can read.

    \b
    What goes into which shard is planned first. The same command
    continues a stopped run, with any number of workers or machines, and writes
    the same bytes. Bad files are left out, named and counted.

    \b
    Examples:
      smalti tokenize runs/tiny photos --out photo-tokens --size 128 --workers 2
      smalti tokenize runs/video videos --out video-tokens --size 144x256 --fps 12
      smalti tokenize runs/video clips.csv --out clips --clip 17 --overlap 1
      smalti tokenize runs/tiny 'train-{0000..0146}.tar' --out tokens --shard 3/8
      smalti tokenize runs/tiny hf:owner/name --out t --set inputs.caption=text
      smalti tokenize runs/tiny tars --out tokens --engine ray --gpus 0.25
    """
    from smalti.pipeline.tokenize import tokenize

    with bar("tokenizing", None) as advance:
        summary = tokenize(
            tokenizer,
            data,
            out,
            size=None if size is None else parse_size(size),
            fps=fps,
            clip=clip,
            overlap=overlap,
            batch=batch,
            source=source,
            set=assignments or [],
            workers=workers,
            shard=shard,
            engine=engine,
            gpus=gpus,
            timeout=timeout,
            memory=memory,
            resume=resume,
            plan_only=plan_only,
            device=device,
            max_bad=max_bad,
            precision=precision,
            progress=_LineProgress(advance, quiet=as_json),
        )
    for note in summary.notes:
        say(f"note: {message_line(note)}")
    if plan_only and not as_json:
        what = f"{summary.inputs:,} inputs in {summary.planned_shards:,} shards"
        print(f"{out}: {what}; run the same without --plan-only")
    else:
        _print_summary(out, summary, as_json)


def _print_summary(out: Path, summary: "SetSummary", as_json: bool) -> None:
    """Print the summary, and end with exit code 3 where files were left out."""
    from smalti.tokens.finalize import bad_item_lines

    if as_json:
        print_json({"set": out, "finished": summary.is_whole, **summary._asdict()})
    else:
        counts = f"{summary.ok:,} ok + {summary.bad:,} bad + {summary.skipped:,} skipped = {summary.listed:,} listed"
        what = f"{summary.rows:,} rows, {summary.tokens:,} tokens, {summary.bytes / 1e6:,.1f} MB"
        print(f"{out}: {counts}; {what}")
        if not summary.is_whole:
            counts = f"{summary.shards:,} of {summary.planned_shards:,} shards are done"
            print(f"{counts}; the set is whole when the others are")
    if summary.bad:
        for line in bad_item_lines(out, _MOST_LINES):
            say(f"left out: {message_line(line)}")
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.codes.items())
        say(f"error: {summary.bad:,} of {summary.listed:,} are left out ({codes}); the rest is done")
        raise typer.Exit(InputError.exit_code)


class _LineProgress:
    """Moves the bar; where there is none, prints a line now and then unless `quiet`."""

    def __init__(self, advance: Progress, *, quiet: bool) -> None:
        self.advance, self.quiet = advance, quiet or is_watched()
        self.begin = self.last_line = time.monotonic()

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        self.advance(done, total, note)
        now = time.monotonic()
        if not self.quiet and total and now - self.last_line > _LINE_SECONDS:
            self.last_line = now
            rest = (total - done) * (now - self.begin) / max(1, done)
            unit, _, rates = note.partition(", ")
            say(f"{done:,} of {total:,} {unit}, {rates}, {rest:,.0f} s left")
