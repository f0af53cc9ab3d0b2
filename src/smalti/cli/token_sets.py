"""`smalti tokenize`, `smalti decode`, `smalti export`, and what `smalti info` says of a token set."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smalti.cli import asked
from smalti.cli.terminal import bar, one_line, print_json, say
from smalti.cli.tokenizers import TOKENIZER_HELP, DeviceOption, JsonOption
from smalti.cli.tokenizing import LineProgress, size_of
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.cli.evaluation import Answer
    from smalti.cli.listing import Question
    from smalti.metrics import Row
    from smalti.tokens.finalize import SetSummary

_SHOWN = 20
"""Bad files that are named on stderr; the rest stand in bad_files.jsonl."""

SetArgument = Annotated[Path, typer.Argument(metavar="SET", help="The folder of a token set.")]


def tokenize_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    data: asked.Data,
    out: asked.Out,
    size: asked.Size = None,
    fps: asked.Rate = None,
    clip: asked.ClipLength = None,
    overlap: asked.Overlap = 0,
    batch: asked.Batch = 1,
    source: asked.From = None,
    assignments: asked.Fields = None,
    workers: asked.Workers = 1,
    shard: asked.Shard = None,
    engine: asked.Engine = "local",
    gpus: asked.GPUs = 0.0,
    timeout: asked.Timeout = 300.0,
    memory: asked.Memory = None,
    resume: asked.Resume = False,
    plan_only: asked.PlanOnly = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn pictures and video into a token set: Parquet shards that any token model can read.

    \b
    What goes into which shard is planned first. A run that was stopped goes on
    with the same command, with any number of workers or machines, and the files
    come out the same, byte for byte. Bad files are left out, named and counted.

    \b
    Examples:
      smalti tokenize runs/tiny photos --out photo-tokens --size 128 --workers 2
      smalti tokenize runs/video films --out film-tokens --size 144x256 --fps 12
      smalti tokenize runs/video clips.csv --out clips --clip 17 --overlap 1
      smalti tokenize runs/tiny 'train-{0000..0146}.tar' --out tokens --shard 3/8
      smalti tokenize runs/tiny hf:owner/name --out tokens --set inputs.caption=text
      smalti tokenize runs/tiny tars --out tokens --engine ray --gpus 0.25
    """
    from smalti.pipeline.tokenize import tokenize

    with bar("tokenizing", None) as advance:
        summary = tokenize(
            tokenizer,
            data,
            out,
            size=size_of(size),
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
            progress=LineProgress(advance, quiet=as_json),
        )
    for note in summary.notes:
        say(f"note: {one_line(note)}")
    if plan_only and not as_json:
        what = f"{summary.inputs:,} inputs in {summary.planned_shards:,} shards"
        print(f"{out}: {what}; run the same without --plan-only")
        return
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
        for fault in bad_item_lines(out, _SHOWN):
            say(f"left out: {one_line(fault)}")
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.codes.items())
        say(f"error: {summary.bad:,} of {summary.listed:,} are left out ({codes}); the rest is done")
        raise typer.Exit(InputError.exit_code)


def decode_command(
    tokens: SetArgument,
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    rows: Annotated[str | None, typer.Option(metavar="A:B", help="These rows alone, as 0:10 or 7.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", help="The row of this key; repeatable.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " The set's own if none.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn rows of a token set back into PNG, and MP4 at their frame rate.

    \b
    Examples:
      smalti decode photo-tokens --out seen --rows 0:10
      smalti decode film-tokens --out seen --key film.mp4 --tokenizer runs/video
    """
    from smalti.pipeline.decode import decode

    with bar("decoding", None) as advance:
        rows_written = decode(
            tokens,
            out,
            rows=rows,
            key=keys or [],
            tokenizer=tokenizer,
            overwrite=overwrite,
            device=device,
            progress=advance,
        )
    if as_json:
        print_json({"set": tokens, "done": [row._asdict() for row in rows_written]})
        return
    for row in rows_written:
        length = "" if row.fps is None else f", {row.frames:,} frames at {row.fps:.4g}/s"
        print(f"{one_line(row.path)}: {row.width}x{row.height}{length}")


def export_command(
    tokens: SetArgument,
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there.")],
    as_json: JsonOption = False,
) -> None:
    """Write a token set as .npy files that can be mapped into memory.

    \b
    ids.npy, offsets.npy, shapes.npy, labels.npy, keys.txt and metadata.json.

    \b
    Examples:
      smalti export photo-tokens --out photo-npy
    """
    from smalti.pipeline.export import export

    metadata = export(tokens, out)
    if as_json:
        print_json({"out": out, **metadata})
    else:
        print(f"{out}: {metadata['rows']:,} rows, {metadata['tokens']:,} tokens as {metadata['type']}")


def is_token_set(path: Path) -> bool:
    """Whether a folder is a token set, finished or begun."""
    return (path / "plan.json").is_file() or (path / "dataset.json").is_file()


def measure_set(path: Path, data: Path, question: "Question") -> "Answer":
    """`smalti eval` of a token set: decoded rows against their originals below `data`."""
    from smalti.cli.evaluation import Answer, features_of, perceptual
    from smalti.metrics import Scores, by_name
    from smalti.pipeline.decode import open_set_tokenizer
    from smalti.tokens.reader import TokenSet
    from smalti.tokens.score import Asked, score_set

    protocol, tokens, bad = by_name(question.protocol), TokenSet(path), list[BadFile]()
    if protocol.convention is not None:
        raise ConfigError(f"--protocol {protocol.name} reads files in its own way; a token set holds what was encoded")
    for option, value in (("--size", question.size), ("--root", question.root), ("--statistics", question.statistics)):
        if value is not None:
            raise ConfigError(f"{option} {value}: {path} is a token set, whose options are fixed; leave it out")
    model = open_set_tokenizer(tokens, device=question.device)
    device = next(model.parameters()).device
    scores = Scores(
        protocol,
        lpips=perceptual(protocol, question.lpips, device),
        features=features_of(protocol, question.features, device),
        levels=tokens.tokenizer_info.levels,
    )
    wanted, done = Asked(question.limit, question.frames or Asked().frames), 0
    root = data if data.is_dir() else data.parent
    with bar("measuring", question.limit or len(tokens)) as advance:

        def progress(score: "Row") -> None:
            nonlocal done
            done += 1
            advance(done, note=f"PSNR {score.psnr:.2f}")

        report = score_set(model, tokens, root, scores, asked=wanted, on_bad=bad.append, progress=progress)
    return Answer(report, bad, [])


def describe_set(path: Path) -> dict[str, Any]:
    """Everything there is to say about a token set, as plain data; of one that is not finished, how far it is."""
    from smalti.tokens.finalize import DATASET, summarize_set
    from smalti.tokens.plan import load_plan, read_provenance
    from smalti.tokens.reader import TokenSet

    finished = (path / DATASET).is_file()
    if finished:
        found = TokenSet(path)
        about, options, totals = found.tokenizer_info, found.options, found.totals
    else:
        plan = load_plan(path)
        about, options, totals = plan.tokenizer_info, plan.options, summarize_set(plan)._asdict()
    tokens = totals["tokens"]
    return {
        "kind": "token set",
        "finished": finished,
        **totals,
        "bits_per_token": 8 * totals["bytes"] / tokens if tokens else None,
        "codebook_bits": math.log2(about.codebook_size),
        "tokenizer": about.plain(),
        "options": options.plain(),
        "provenance": read_provenance(path),
    }
