"""`smalti bench`: contenders on the user's own data."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smalti.cli.terminal import bar, print_json, say
from smalti.cli.tokenizers import DeviceOption, JsonOption

if TYPE_CHECKING:
    from smalti.comparison import Point, Variant, VariantRun

CONTENDER_HELP = "A contender, a group of them, a recipe, or 'NAME: FIELD=VALUE ...'; repeatable."

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compare configs and tokenizers by what they learn.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _bench() -> None:
    """Compare configs by what they learn.

    \b
    Examples:
      smalti bench learn --contender quantizers --steps 300
    """


@app.command("learn", short_help="Let contenders learn side by side.")
def learn(
    contenders: Annotated[list[str] | None, typer.Option("--contender", metavar="NAME", help=CONTENDER_HELP)] = None,
    file: Annotated[Path | None, typer.Option("--contenders", help="A YAML list of contenders.")] = None,
    data: Annotated[Path | None, typer.Option(help="Pictures or film; what smalti ships if not given.")] = None,
    heldout: Annotated[Path | None, typer.Option(help="What is measured on; one file in five of DATA if none.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the paths of lists start.")] = None,
    medium: Annotated[Literal["images", "videos"], typer.Option(help="What they are for.")] = "images",
    size: Annotated[int, typer.Option(min=16, help="Rows and columns.")] = 128,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 17,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each; with another budget, of schedules.")] = 1000,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="CPU seconds of each one's steps.")] = None,
    teraflops: Annotated[float | None, typer.Option(min=0.001, help="Operations of each, in 10^12.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 2,
    points: Annotated[int, typer.Option(min=1, help="How often all are measured.")] = 8,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips of a step; 8 pictures, 2 of film.")] = None,
    limit: Annotated[int, typer.Option(min=2, help="Measure on so many clips at most.")] = 32,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field for all; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("bench"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on in that folder.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on a CPU.")] = 1,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Let contenders learn side by side at an equal budget, and write a page about it.

    \b
    All see the same batches in the same order and are measured on the same
    held-out clips. A contender changes fields of a base: the recipe tiny for
    pictures, tiny-video for film. Groups that are ready: quantizers, norms,
    adaptive, stems, losses, gans.

    \b
    Examples:
      smalti bench learn --contender fsq64000 --contender lfq18 --steps 300
      smalti bench learn --data photos --contender quantizers --seeds 3
      smalti bench learn --contender base --contender 'base: tokenizer.width=64'
      smalti bench learn --medium videos --contender norms --seconds 600
      smalti bench learn --contender norms --out bench --resume
    """
    from smalti.app.compare import compare
    from smalti.comparison import Budget, ComparisonData

    media = ComparisonData.parse(
        {"medium": medium, "data": data, "heldout": heldout, "root": root}
        | {"size": size, "frames": frames, "limit": limit},
        where="bench learn",
    )
    budget, amount = _budget(steps, seconds, teraflops)
    terms = Budget.parse(
        {"budget": budget, "amount": amount, "seeds": seeds, "points": points}
        | {"batch_size": batch or (8 if medium == "images" else 2)},
        where="bench learn",
    )
    import torch

    torch.set_num_threads(threads)
    variants = _variants(contenders or [], file, medium, steps)
    with bar("learning", 1000) as advance:

        def on_advance(share: float, run: "VariantRun", point: "Point | None") -> None:
            advance(round(1000 * share), note=f"{run.source.name} {run.steps:,} steps")
            if point is not None and not as_json and not sys.stderr.isatty():
                say(_line(share, point))

        page = compare(
            variants,
            media,
            terms,
            out,
            steps=steps,
            set=assignments or (),
            resume=resume,
            device=device,
            on_advance=on_advance,
        )
    _tell(page, as_json)


def _tell(page: Path, as_json: bool) -> None:
    if as_json:
        from smalti.files import read_json

        print_json(read_json(page.with_name("report.json")))
    else:
        print(f"{page}: open this page to see it all")


def _budget(steps: int, seconds: float | None, teraflops: float | None) -> tuple[str, float]:
    from smalti.errors import ConfigError

    if seconds is not None and teraflops is not None:
        raise ConfigError("--seconds and --teraflops: give one budget")
    if seconds is not None:
        return "seconds", seconds
    return ("steps", float(steps)) if teraflops is None else ("teraflops", teraflops)


def _variants(names: list[str], file: Path | None, medium: "Any", steps: int) -> "list[Variant]":
    """Return the variants in their order, each once."""
    from smalti.comparison import VariantList, find_variants, variant_groups
    from smalti.config import load_yaml
    from smalti.errors import ConfigError

    groups = variant_groups(medium, steps)
    found = [one for name in names for one in find_variants(name, groups)]
    if file is not None:
        found += load_yaml(VariantList, file).variants
    chosen = {one.name: one for one in reversed(found)}
    if not chosen:
        raise ConfigError(f"no contender; give --contender, a group of {', '.join(groups)}, or --contenders FILE")
    return [chosen[name] for name in dict.fromkeys(one.name for one in found)]


def _line(share: float, point: "Point") -> str:
    scores = {"PSNR": point.psnr, "LPIPS": point.lpips, "Frechet": point.frechet, "perplexity": point.perplexity}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None)
    return f"{share:.0%} {point.contender}, seed {point.seed}, {point.steps:,} steps, {point.seconds:,.0f} s: {shown}"
