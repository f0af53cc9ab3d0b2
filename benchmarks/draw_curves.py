"""Plot the curves of a comparison, for a page: `python -m benchmarks.draw_curves BENCH OUT.png --help`.

    python -m benchmarks.draw_curves bench peers.png --scores psnr lpips --against seconds
    python -m benchmarks.draw_curves bench codes.png --scores distinct perplexity --only lfq

`distinct` and `perplexity` are of the held-out ids. Their dashed lines are what as many even draws from all codes show
on average, which is the most that a sample of that size can be expected to have.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import colormaps
from matplotlib.figure import Figure

from smalti.comparison import Point, read_points
from smalti.metrics.codebook import expected_perplexity

LABELS = {
    "psnr": "PSNR, dB",
    "lpips": "LPIPS (alex), less is better",
    "frechet": "Fréchet, less is better",
    "distinct": "distinct ids",
    "perplexity": "perplexity",
}
PLACES = {"steps": "steps", "seconds": "seconds of CPU time", "flops": "operations"}


def ceiling(score: str, point: Point) -> float | None:
    """The dashed line of a score."""
    if score == "distinct":
        return point.expected_distinct
    return expected_perplexity(point.codebook_size, point.tokens) if score == "perplexity" else None


def draw(folder: Path, scores: list[str], against: str, only: list[str]) -> Figure:
    """A drawing for each score; a line per variant, thick for its first seed."""
    lines: dict[tuple[str, int], list[Point]] = defaultdict(list)
    for point in read_points(folder):
        if not only or any(part in point.contender for part in only):
            lines[point.contender, point.seed].append(point)
    names = list(dict.fromkeys(name for name, _ in lines))
    figure = Figure(figsize=(5.2 * len(scores), 3.8), layout="constrained")
    for axis, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for (name, seed), points in lines.items():
            colour, thin = colormaps["tab10"](names.index(name) % 10), seed > 0
            place, values = ([getattr(point, field) for point in points] for field in (against, score))
            label = None if thin else name
            axis.plot(place, values, "o-", ms=3, lw=0.7 if thin else 1.6, color=colour, label=label)
            most = ceiling(score, points[-1])
            if most is not None and not thin:
                axis.axhline(most, ls="--", lw=0.8, color=colour)
        axis.set(xlabel=PLACES[against], ylabel=LABELS[score])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def main() -> None:
    """Read the command line, write the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draw_curves")
    parser.add_argument("folder", type=Path, help="the folder of `smalti compare` or `benchmarks.against`")
    parser.add_argument("out", type=Path, help="a .png file")
    parser.add_argument("--scores", nargs="+", choices=LABELS, default=["psnr", "lpips"])
    parser.add_argument("--against", choices=PLACES, default="steps")
    parser.add_argument("--only", nargs="+", default=[], help="variants whose names hold one of these")
    asked = parser.parse_args()
    draw(asked.folder, asked.scores, asked.against, asked.only).savefig(asked.out, dpi=90)


if __name__ == "__main__":
    main()
