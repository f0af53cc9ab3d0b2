"""The page of `smalti compare`: how contenders learnt, as curves, tables and pictures, beside report.json."""

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smalti.app.html import document, drawing, number, picture, table
from smalti.comparison import Effect, Material, Point, Run, Summary, summarise
from smalti.files import write_bytes, write_json
from smalti.metrics import contact_sheet
from smalti.version import __version__
from smalti.video import to_uint8

_SHOWN = 6
"""Clips in the picture, each by its middle frame."""


class _Curve(NamedTuple):
    """One row of drawings."""

    label: str
    value: Callable[[Point], float | None]
    log: bool = False


_CURVES = (
    _Curve("PSNR, dB", lambda p: p.psnr),
    _Curve("LPIPS (alex)", lambda p: p.lpips),
    _Curve("Fréchet distance, EfficientNet-lite0", lambda p: p.frechet),
    _Curve("perplexity of held-out ids", lambda p: p.perplexity, log=True),
    _Curve("distinct held-out ids / of even draws", lambda p: p.distinct / p.expected_distinct),
    _Curve("distinct ids while learning / of even draws", lambda p: p.learnt_distinct / p.learnt_expected_distinct),
    _Curve("bits per pixel, ideally coded", lambda p: p.entropy_bits_per_pixel),
)
_AGAINST: Mapping[str, Callable[[Point], float]] = {
    "steps": lambda p: p.steps,
    "CPU seconds of steps": lambda p: p.seconds,
    "TFLOP": lambda p: p.flops / 1e12,
}
_SCORES = {"psnr": ("PSNR dB", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4), "frechet": ("Fréchet", 1)}
_CODES = {"perplexity": ("perplexity", 0), "distinct": ("distinct ids", 0)}


def write_learning(out: Path, runs: Sequence[Run], material: Material, about: Mapping[str, Any]) -> Path:
    """Write report.json, pictures.png and index.html; gives the last of them. `about` says how all was made."""
    rows = summarise(runs)
    write_json(out / "report.json", {**about, "bad": material.bad, "contenders": [_plain(row) for row in rows]})
    sheet = io.BytesIO()
    _sheet(runs, material).save(sheet, "PNG")
    write_bytes(out / "pictures.png", sheet.getvalue())
    terms, data = about["terms"], about["data"]
    budget = {"steps": "steps", "seconds": "seconds of their steps", "teraflops": "TFLOP"}[terms["budget"]]
    first = html.escape(rows[0].name)
    body = [
        "<h1>How they learnt</h1>",
        f'<p class="lead">{len(rows)} contenders, {terms["amount"]:,g} {budget} each, {terms["seeds"]} seeds, batches '
        f"of {terms['batch_size']}, the same in the same order for all; {data['learnt_from']:,} files to learn from, "
        f"{data['measured_on']:,} others to measure on.</p>",
        "<h2>At the end</h2>",
        table(["contender", *(head for head, _ in _SCORES.values())], [_scores(row) for row in rows]),
        f"<small>Mean over seeds, and in brackets the difference from <code>{first}</code> with its standard error, "
        "from the spread of one run pooled over all contenders. LPIPS and Fréchet: less is better.</small>",
        table(["contender", "bits per pixel", *(head for head, _ in _CODES.values()), "of even draws"], _codes(rows)),
        table(["contender", "parameters", "steps", "CPU s", "s a step", "GFLOP a step"], [_cost(row) for row in rows]),
        *(f"<p>{html.escape(row.name)}: {html.escape(fault)}</p>" for row in rows for fault in row.faults),
        "<h2>Along the way</h2>",
        _curves(runs),
        "<h2>What it looks like</h2>",
        picture("pictures.png", "Held-out clips, the originals at the left; seed 0 at the last point."),
        *(f"<p><small>{name}: {html.escape(reason)}</small></p>" for name, reason in about["absent"].items()),
        *(f"<p><small>left out: {html.escape(reason)}</small></p>" for reason in material.bad.values()),
        f"<small>smalti {__version__}. All figures of all seeds are in <code>points.jsonl</code>, protocol and data in "
        "<code>report.json</code>.</small>",
    ]
    write_bytes(out / "index.html", document("smalti compare", body))
    return out / "index.html"


def _plain(row: Summary) -> dict[str, Any]:
    return {**row._asdict(), "effects": {name: effect._asdict() for name, effect in row.effects.items()}}


def _scores(row: Summary) -> list[str]:
    return [row.name, *(_effect(row.effects.get(name), digits) for name, (_, digits) in _SCORES.items())]


def _effect(effect: Effect | None, digits: int) -> str:
    if effect is None:
        return "-"
    if effect.difference == 0:
        return number(effect.mean, digits)
    error = "" if effect.error is None else f" ± {effect.error:.{digits}f}"
    return f"{effect.mean:.{digits}f} ({effect.difference:+.{digits}f}{error})"


def _codes(rows: Sequence[Summary]) -> list[list[str]]:
    return [
        [
            row.name,
            number(row.bits_per_pixel, 3),
            *(f"{row.effects[name].mean:,.0f}" if name in row.effects else "-" for name in _CODES),
            "-" if row.expected_distinct is None else f"{row.expected_distinct:,.0f}",
        ]
        for row in rows
    ]


def _cost(row: Summary) -> list[str]:
    a_step = row.seconds / max(1.0, row.steps)
    counts = [f"{row.parameters:,}", f"{row.steps:,.0f}", f"{row.seconds:,.0f}"]
    return [row.name, *counts, number(a_step, 3), number(row.flops_per_step / 1e9, 1)]


def _curves(runs: Sequence[Run]) -> str:
    """A row of drawings for each curve that there are figures of; a line a contender, its seeds thin behind it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawn = [curve for curve in _CURVES if any(curve.value(p) is not None for run in runs for p in run.points)]
    if not drawn:
        return ""
    names = list(dict.fromkeys(run.entry.name for run in runs))
    colours = dict(zip(names, (colormaps["tab20"](i % 20) for i in range(len(names))), strict=True))
    head = 0.3 + 0.2 * math.ceil(len(names) / 4)  # inches of the legend
    height = 3 * len(drawn) + head
    room = {
        "left": 0.06,
        "right": 0.99,
        "bottom": 0.5 / height,
        "top": 1 - head / height,
        "wspace": 0.25,
        "hspace": 0.3,
    }
    figure = Figure(figsize=(12, height))
    axes = figure.subplots(len(drawn), len(_AGAINST), squeeze=False, gridspec_kw=room)
    for row, curve in zip(axes, drawn, strict=True):
        for axis, (against, place) in zip(row, _AGAINST.items(), strict=True):
            for run in runs:
                points = [(place(p), value) for p in run.points if (value := curve.value(p)) is not None]
                label = run.entry.name if run.seed == 0 else None
                thin = {"lw": 1.4, "ms": 3} if run.seed == 0 else {"lw": 0.7, "ms": 2}
                axis.plot(*zip(*points, strict=True), "o-", color=colours[run.entry.name], label=label, **thin)
            axis.set(xlabel=against, ylabel=curve.label, **({"yscale": "log"} if curve.log else {}))
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, frameon=False, fontsize=8)
    return drawing(figure)


def _sheet(runs: Sequence[Run], material: Material) -> Any:
    first = [run for run in runs if run.seed == 0 and run.fault is None]
    rows = []
    for _, video in material.heldout[:_SHOWN]:
        middle = video.shape[2] // 2
        with torch.no_grad():
            made = [run.learner.round_trip(video)[0].float().cpu() for run in first]
        rows.append([to_uint8(each)[0, middle].numpy() for each in (video, *made)])
    return contact_sheet(rows, ["original", *(run.entry.name for run in first)])
