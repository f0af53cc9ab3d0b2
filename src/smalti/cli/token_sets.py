"""`smalti tokenize`, `smalti decode`, `smalti export`, and what `smalti info` says of a token set."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smalti.cli import asked
from smalti.cli.terminal import bar, one_line, print_json, say
from smalti.cli.tokenizers import TOKENIZER_HELP, DeviceOption, JsonOption, open_tokenizer
from smalti.cli.tokenizing import Given, chosen, make, part_of, size_of
from smalti.errors import ConfigError, InputError

if TYPE_CHECKING:
    from smalti.tokens.finalize import Summary

_SHOWN = 20
"""Bad files that are named on stderr; the rest stand in bad_files.jsonl."""

SetArgument = Annotated[Path, typer.Argument(metavar="SET", help="The folder of a token set.")]


def tokenize(
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
            say(f"left out: {one_line(fault)}")
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.codes.items())
        say(f"error: {summary.bad:,} of {summary.listed:,} are left out ({codes}); the rest is done")
        raise typer.Exit(InputError.exit_code)


def decode(
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
    from smalti.tokens.decode import choose_rows, decode_row, targets
    from smalti.tokens.finalize import read_made
    from smalti.tokens.reader import TokenSet

    found = TokenSet(tokens)
    name = tokenizer or read_made(tokens).get("tokenizer")
    if name is None:
        raise InputError(f"{tokens}: does not say where its tokenizer is; give --tokenizer")
    chosen = choose_rows(found, rows, keys or [])
    jobs = targets(found, chosen, out)
    for target in jobs.values():
        if target.exists() and not overwrite:
            raise ConfigError(f"{target}: is there already; give --overwrite or another --out")
    model = open_tokenizer(name, device)
    found.check(model)
    done = []
    with bar("decoding", len(jobs)) as advance:
        for number, (index, target) in enumerate(jobs.items(), start=1):
            result = decode_row(model, found.row(index), target)
            done.append({**result._asdict(), "row": index})
            advance(number)
            if not as_json:
                length = "" if result.fps is None else f", {result.frames:,} frames at {result.fps:.4g}/s"
                print(f"{one_line(target)}: {result.width}x{result.height}{length}", flush=True)
    if as_json:
        print_json({"set": tokens, "done": done})


def export(
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
    from smalti.tokens.export import export_npy
    from smalti.tokens.reader import TokenSet

    metadata = export_npy(TokenSet(tokens), out)
    if as_json:
        print_json({"out": out, **metadata})
    else:
        print(f"{out}: {metadata['rows']:,} rows, {metadata['tokens']:,} tokens as {metadata['type']}")


def describe_set(path: Path) -> dict[str, Any]:
    """Everything there is to say about a token set, as plain data; of one that is not finished, how far it is."""
    from smalti.tokens.finalize import DATASET, read_made, summarize
    from smalti.tokens.plan import load_plan
    from smalti.tokens.reader import TokenSet

    finished = (path / DATASET).is_file()
    if finished:
        found = TokenSet(path)
        about, options, totals = found.about, found.options, found.totals
    else:
        plan = load_plan(path)
        about, options, totals = plan.about, plan.options, summarize(plan)._asdict()
    tokens = totals["tokens"]
    return {
        "kind": "token set",
        "finished": finished,
        **totals,
        "bits_per_token": 8 * totals["bytes"] / tokens if tokens else None,
        "codebook_bits": math.log2(about.codebook_size),
        "tokenizer": about.plain(),
        "options": options.plain(),
        "made": read_made(path),
    }
