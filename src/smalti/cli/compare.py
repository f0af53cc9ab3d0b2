"""`smalti compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smalti.cli.console import DeviceOption, JsonOption, bar, is_watched, print_json, say

if TYPE_CHECKING:
    from smalti.comparison import Point, Variant, VariantRun

VARIANT_HELP = "A variant, a group of them, a recipe, or 'NAME: FIELD=VALUE ...'; repeatable."


def compare_command(
    names: Annotated[list[str] | None, typer.Option("--variant", metavar="NAME", help=VARIANT_HELP)] = None,
    file: Annotated[Path | None, typer.Option("--variants", help="A YAML list of variants.")] = None,
    data: Annotated[Path | None, typer.Option(help="Images or videos; smalti's own samples if not given.")] = None,
    heldout: Annotated[Path | None, typer.Option(help="Held-out media; one file in five of DATA if not given.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the paths of lists start.")] = None,
    medium: Annotated[Literal["images", "videos"], typer.Option(help="What is compared.")] = "images",
    size: Annotated[int, typer.Option(min=16, help="Height and width of a clip.")] = 128,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 17,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each variant; also the length of schedules.")] = 1000,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Budget of each variant in CPU seconds.")] = None,
    teraflops: Annotated[float | None, typer.Option(min=0.001, help="Budget in 10^12 operations.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each variant.")] = 2,
    points: Annotated[int, typer.Option(min=1, help="How often all are evaluated.")] = 8,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips of a step; 8 images or 2 videos if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Evaluate on at most so many clips.")] = 32,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of all variants; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("comparison"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue in that folder.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on a CPU.")] = 1,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train several configs side by side at an equal budget, and write a page about it.

    \b
    All see the same batches in the same order and are measured on the same
    held-out clips. A variant changes fields of a base: the recipe tiny for
    images, tiny-video for videos. Groups that are ready: quantizers, norms,
    adaptive, stems, losses, gans.

    \b
    Examples:
      smalti compare --variant fsq64000 --variant lfq18 --steps 300
      smalti compare --data photos --variant quantizers --seeds 3
      smalti compare --variant base --variant 'base: tokenizer.width=64'
      smalti compare --medium videos --variant norms --seconds 600
      smalti compare --variant norms --out norms --resume
    """
    from smalti.app.compare import compare
    from smalti.comparison import Budget, ComparisonData

    media = ComparisonData.parse(
        {"medium": medium, "data": data, "heldout": heldout, "root": root}
        | {"size": size, "frames": frames, "limit": limit},
        where="compare",
    )
    budget, amount = _budget(steps, seconds, teraflops)
    terms = Budget.parse(
        {"budget": budget, "amount": amount, "seeds": seeds, "points": points}
        | {"batch_size": batch or (8 if medium == "images" else 2)},
        where="compare",
    )
    import torch

    torch.set_num_threads(threads)
    variants = _variants(names or [], file, medium, steps)
    with bar("learning", 1000) as advance:

        def on_advance(share: float, run: "VariantRun", point: "Point | None") -> None:
            advance(round(1000 * share), note=f"{run.source.name} {run.steps:,} steps")
            if point is not None and not as_json and not is_watched():
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
    variants = [one for name in names for one in find_variants(name, groups)]
    if file is not None:
        variants += load_yaml(VariantList, file).variants
    chosen = {one.name: one for one in reversed(variants)}
    if not chosen:
        raise ConfigError(f"no variant; give --variant, a group of {', '.join(groups)}, or --variants FILE")
    return [chosen[name] for name in dict.fromkeys(one.name for one in variants)]


def _line(share: float, point: "Point") -> str:
    scores = {"PSNR": point.psnr, "LPIPS": point.lpips, "Frechet": point.frechet, "perplexity": point.perplexity}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None)
    return f"{share:.0%} {point.contender}, seed {point.seed}, {point.steps:,} steps, {point.seconds:,.0f} s: {shown}"
