"""`smalti tokenize`, `smalti decode`, `smalti export`, and what `smalti info` says of a token set."""

import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smalti.cli.terminal import Advance, bar, one_line, print_json, say
from smalti.cli.tokenizers import HUB, TOKENIZER_HELP, DeviceOption, JsonOption, find_tokenizer, open_tokenizer
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.cli.evaluation import Answer, Question
    from smalti.metrics import Row
    from smalti.tokens.finish import Summary
    from smalti.tokens.inputs import Files, Tables, Tars
    from smalti.tokens.options import Options
    from smalti.tokens.work import Seen

_EVERY = 30.0
"""Seconds between two lines of progress where nobody watches a bar."""
_SHOWN = 20
"""Bad files that are named on stderr; the rest stand in bad_files.jsonl."""

SetArgument = Annotated[Path, typer.Argument(metavar="SET", help="The folder of a token set.")]


def tokenize(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, a list, one file, tars, Parquet, or hf:OWNER/NAME.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the token set; goes on with one that is there.")],
    size: Annotated[str | None, typer.Option(help="Rows x columns, as 256 or 144x256; own size if none.")] = None,
    fps: Annotated[float | None, typer.Option(help="Take frames of video at this rate.")] = None,
    clip: Annotated[int | None, typer.Option(min=1, help="Cut video into rows of N frames.")] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Frames that a clip shares with the one before.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures of one size encoded together.")] = 1,
    source: Annotated[
        Literal["files", "tars", "parquet"] | None, typer.Option("--from", help="What DATA is, where it is not clear.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set options.FIELD or inputs.FIELD; repeatable."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 works in this one, without a guard.")] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Part I of N of the work; auto asks torchrun or Slurm.")
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of a Ray task, as 0.25.")] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a silent worker counts as hung.")] = 300.0,
    memory: Annotated[float | None, typer.Option(min=0.1, help="GB that a worker may hold.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on by the plan that is there; list nothing.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the plan and stop.")] = False,
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
    from smalti.tokens.finish import finish
    from smalti.tokens.run import begin
    from smalti.tokens.work import Limits, pending, work
    from smalti.train.common import pick_device

    flags = {"size": _size(size), "fps": fps, "clip": clip, "overlap": overlap, "batch": batch}
    inputs, options = _chosen(data, source, flags, assignments or [])
    name = tokenizer.removeprefix(HUB) if tokenizer.startswith(HUB) else str(find_tokenizer(tokenizer))
    where = device if device is not None and ":" in device else pick_device(device).type
    begun = begin(name, inputs, out, options, device=where, resume=resume)
    for note in begun.notes:
        say(f"note: {one_line(note)}")
    plan = begun.plan
    if plan_only:
        print(f"{out}: {plan.listed:,} inputs in {plan.shards:,} shards; run the same without --plan-only")
        return
    shards = pending(plan, _part(shard))
    limits = Limits(workers, timeout, None if memory is None else int(memory * 1e9))
    with bar("tokenizing", len(shards)) as advance:
        watch = _Watch(advance, len(shards), quiet=as_json)
        if engine == "ray":
            from smalti.tokens.on_ray import RayLimits, work_on_ray

            work_on_ray(plan, begun.job, shards, RayLimits(gpus, timeout, limits.memory), watch)
        else:
            work(plan, begun.job, shards, limits, watch)
    _tell(out, finish(plan), as_json)


class _Watch:
    """Moves the bar; where there is none, says a line now and then unless `quiet`."""

    def __init__(self, advance: Advance, total: int, *, quiet: bool) -> None:
        self.advance, self.total = advance, total
        self.plain = not quiet and not sys.stderr.isatty()
        self.begun = self.said = time.monotonic()

    def __call__(self, seen: "Seen") -> None:
        now = time.monotonic()
        seconds = max(1e-9, now - self.begun)
        rates = f"{seen.items / seconds:,.1f} items/s, {seen.tokens / seconds:,.0f} tokens/s"
        note = f"shards, {seen.items:,} items, {rates}" + (f", {seen.bad:,} bad" if seen.bad else "")
        self.advance(seen.shards, note=note)
        if self.plain and now - self.said > _EVERY:
            self.said = now
            say(f"{seen.shards:,} of {self.total:,} shards, {seen.items:,} items, {rates}")


def _chosen(
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
    chosen = Chosen(inputs=inputs, options=options).override(assignments)
    return chosen.inputs, chosen.options


def _size(text: str | None) -> int | tuple[int, int] | None:
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


def _part(text: str | None) -> tuple[int, int]:
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


def _tell(out: Path, summary: "Summary", as_json: bool) -> None:
    """The summary, and the end with code 3 where files were left out."""
    from smalti.tokens.finish import faults

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
    from smalti.tokens.finish import read_made
    from smalti.tokens.token_set import TokenSet

    found = TokenSet(tokens)
    name = tokenizer or read_made(tokens).get("tokenizer")
    if name is None:
        raise InputError(f"{tokens}: does not say where its tokenizer is; give --tokenizer")
    chosen = choose_rows(found, rows, keys or [])
    jobs = targets(found, chosen, out)
    for target in jobs.values():
        if target.exists() and not overwrite:
            raise ConfigError(f"{target}: is there already; give --overwrite or another --out")
    model = open_tokenizer(tokenizer or _named(name), device)
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
    from smalti.tokens.token_set import TokenSet

    metadata = export_npy(TokenSet(tokens), out)
    if as_json:
        print_json({"out": out, **metadata})
    else:
        print(f"{out}: {metadata['rows']:,} rows, {metadata['tokens']:,} tokens as {metadata['type']}")


def is_token_set(path: Path) -> bool:
    """Whether a folder is a token set, finished or begun."""
    return (path / "plan.json").is_file() or (path / "dataset.json").is_file()


def measure_set(path: Path, data: Path, question: "Question") -> "Answer":
    """`smalti eval` of a token set: decoded rows against their originals below `data`."""
    from smalti.cli.evaluation import Answer, perceptual
    from smalti.metrics import by_name
    from smalti.tokens.finish import read_made
    from smalti.tokens.score import Asked, score_set
    from smalti.tokens.token_set import TokenSet

    protocol, tokens, bad = by_name(question.protocol), TokenSet(path), list[BadFile]()
    name = read_made(path).get("tokenizer")
    if name is None:
        raise InputError(f"{path}: does not say where its tokenizer is, in made.json")
    model = open_tokenizer(_named(name), question.device)
    network = perceptual(protocol, question.lpips, next(model.parameters()).device)
    asked, done = Asked(question.limit, question.frames), 0
    root = data if data.is_dir() else data.parent
    with bar("measuring", question.limit or len(tokens)) as advance:

        def progress(score: "Row") -> None:
            nonlocal done
            done += 1
            advance(done, note=f"PSNR {score.psnr:.2f}")

        report = score_set(
            model, tokens, root, protocol, asked=asked, lpips=network, on_bad=bad.append, progress=progress
        )
    return Answer(report, bad, [])


def _named(name: str) -> str:
    """The tokenizer that a set names: a folder, or else a repository of the hub."""
    return name if Path(name).exists() or Path(name).is_absolute() else f"{HUB}{name}"


def describe_set(path: Path) -> dict[str, Any]:
    """Everything there is to say about a token set, as plain data; of one that is not finished, how far it is."""
    from smalti.tokens.finish import DATASET, read_made, summarize
    from smalti.tokens.plan import load_plan
    from smalti.tokens.token_set import TokenSet

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
