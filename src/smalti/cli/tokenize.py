"""`smalti tokenize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.console import message_line, print_json, say
from smalti.cli.options import TOKENIZER_HELP, DeviceOption, JsonOption
from smalti.cli.tokenizing import Given, chosen, make, part_of, size_of
from smalti.errors import InputError

if TYPE_CHECKING:
    from smalti.tokens.finalize import Summary

_SHOWN = 20
"""Bad files that are named on stderr; the rest stand in bad_files.jsonl."""


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
    memory: Annotated[float | None, typer.Option(min=0.1, help="GB that a worker may hold.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the existing plan; do not list DATA.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the plan and stop.")] = False,
    device: DeviceOption = None,
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
    flags = {"size": size_of(size), "fps": fps, "clip": clip, "overlap": overlap, "batch": batch}
    given = Given(*chosen(data, source, flags, assignments or []), workers, engine, gpus, timeout, memory, resume)
    from smalti.tokenizer.open import full_name

    summary = make(full_name(tokenizer), out, given, part_of(shard), device=device, plan_only=plan_only, quiet=as_json)
    if summary is None:
        return
    _tell(out, summary, as_json)


def _tell(out: Path, summary: "Summary", as_json: bool) -> None:
    """The summary, and the end with code 3 where files were left out."""
    from smalti.tokens.finalize import faults

    if as_json:
        print_json({"set": out, "finished": summary.is_whole, **summary._asdict()})
    else:
        counts = f"{summary.ok:,} ok + {summary.bad:,} bad + {summary.skipped:,} skipped = {summary.listed:,} listed"
        what = f"{summary.rows:,} rows, {summary.tokens:,} tokens, {summary.bytes / 1e6:,.1f} MB"
        print(f"{out}: {counts}; {what}")
        if not summary.is_whole:
            print(f"{summary.shards:,} of {summary.of:,} shards are done; the set is whole when the others are")
    if summary.bad:
        for fault in faults(out, _SHOWN):
            say(f"left out: {message_line(fault)}")
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.codes.items())
        say(f"error: {summary.bad:,} of {summary.listed:,} are left out ({codes}); the rest is done")
        raise typer.Exit(InputError.exit_code)
