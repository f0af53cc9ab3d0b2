"""A comparison of configs with its page: curves, tables and images, beside report.json."""

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smalti.app.html import document, html_table, image_figure, number, svg_figure
from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.comparison import (
    Budget,
    ComparisonData,
    DataParts,
    Effect,
    Evaluator,
    LearnerSource,
    Point,
    TokenizerLearner,
    Variant,
    VariantRun,
    VariantSummary,
    compare_variants,
    load_parts,
    summarise_runs,
)
from smalti.comparison.manifest import describe_machine, prepare_comparison
from smalti.comparison.runner import RunCallback
from smalti.devices import pick_device
from smalti.files import write_bytes, write_json
from smalti.metrics import contact_sheet
from smalti.version import __version__
from smalti.video import to_uint8

_SHOWN = 6
"""Clips in the image of samples, each by its middle frame."""


class _Curve(NamedTuple):
    """One row of curves."""

    label: str
    value: Callable[[Point], float | None]
    log: bool = False


def _ratio(part: int | float, whole: int | float) -> float | None:
    """Return the ratio, or None if the whole is 0: of no ids, before the first step."""
    return part / whole if whole else None


_CURVES = (
    _Curve("PSNR, dB", lambda p: p.psnr),
    _Curve("LPIPS (alex)", lambda p: p.lpips),
    _Curve("Fréchet distance, EfficientNet-lite0", lambda p: p.frechet),
    _Curve("perplexity of held-out ids", lambda p: p.perplexity, log=True),
    _Curve("distinct held-out ids / uniform sample", lambda p: _ratio(p.distinct, p.expected_distinct)),
    _Curve("distinct training ids / uniform sample", lambda p: _ratio(p.learnt_distinct, p.learnt_expected_distinct)),
    _Curve("bits per pixel, ideally coded", lambda p: p.entropy_bits_per_pixel),
)
_AGAINST: Mapping[str, Callable[[Point], float]] = {
    "steps": lambda p: p.steps,
    "CPU seconds of steps": lambda p: p.seconds,
    "TFLOP": lambda p: p.flops / 1e12,
}
_SCORES = {"psnr": ("PSNR dB", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4), "frechet": ("Fréchet", 1)}
_CODES = {"perplexity": ("perplexity", 0), "distinct": ("distinct ids", 0)}


def compare(
    variants: Sequence[Variant],
    data: ComparisonData,
    budget: Budget,
    out: Path | str,
    *,
    steps: int,
    set: Sequence[str] = (),
    resume: bool = False,
    device: str | None = None,
    on_advance: RunCallback | None = None,
) -> Path:
    """Train variants side by side at an equal budget, in the folder `out`; return the page `out/index.html`.

    Schedules have `steps` steps; `set` holds assignments to fields of all variants. Raises SmaltiError.
    """
    check_arguments(compare, locals())
    check_out_folder("out", out)
    check_least({"steps": (steps, 1)})
    out, where = Path(out), pick_device(device)
    trainings = {one.name: one.training(data.medium, steps, tuple(set)) for one in variants}
    configs = {name: config.plain() for name, config in trainings.items()}
    settings = {"contenders": configs, "media": data.plain(), "terms": budget.plain(), "steps": steps}
    prepare_comparison(out, settings, resume=resume)
    parts = load_parts(data)
    evaluator, absent = Evaluator.with_weights(parts.heldout, where)
    about = {
        "terms": budget.plain(),
        "data": parts.about,
        "absent": absent,
        "protocol": evaluator.protocol.plain(),
        "machine": describe_machine(where),
    }
    network = next((config.lpips.build() for config in trainings.values() if config.lpips is not None), None)

    def source(name: str) -> LearnerSource:
        config, lpips = trainings[name], network if trainings[name].lpips is not None else None
        return LearnerSource(name, lambda seed: TokenizerLearner(config.replace({"seed": seed}), where, lpips))

    runs = compare_variants(
        [source(name) for name in trainings],
        parts,
        budget,
        evaluator,
        out,
        device=where,
        on_advance=on_advance,
        each_round=lambda runs: write_comparison(out, runs, parts, about),
    )
    return write_comparison(out, runs, parts, about)


def write_comparison(out: Path, runs: Sequence[VariantRun], parts: DataParts, about: Mapping[str, Any]) -> Path:
    """Write report.json, samples.png and index.html; return the last of them. `about` describes how all was made."""
    rows = summarise_runs(runs)
    write_json(out / "report.json", {**about, "bad": parts.bad, "contenders": [_plain(row) for row in rows]})
    sheet = io.BytesIO()
    _sheet(runs, parts).save(sheet, "PNG")
    write_bytes(out / "samples.png", sheet.getvalue())
    terms, data = about["terms"], about["data"]
    budget = {"steps": "steps", "seconds": "seconds of their steps", "teraflops": "TFLOP"}[terms["budget"]]
    first = html.escape(rows[0].name)
    body = [
        "<h1>Comparison of configs</h1>",
        f'<p class="lead">{len(rows)} variants, {terms["amount"]:,g} {budget} each, {terms["seeds"]} seeds, batches '
        f"of {terms['batch_size']}, the same in the same order for all; {data['learnt_from']:,} files to learn from, "
        f"{data['measured_on']:,} others to measure on.</p>",
        "<h2>At the end</h2>",
        html_table(["variant", *(head for head, _ in _SCORES.values())], [_scores(row) for row in rows]),
        f"<small>Mean over seeds, and in brackets the difference from <code>{first}</code> with its standard error, "
        "from the spread of one run pooled over all variants. LPIPS and Fréchet: less is better.</small>",
        html_table(
            ["variant", "bits per pixel", *(head for head, _ in _CODES.values()), "uniform sample"], _codes(rows)
        ),
        html_table(
            ["variant", "parameters", "steps", "CPU s", "s a step", "GFLOP a step"], [_cost(row) for row in rows]
        ),
        *(f"<p>{html.escape(row.name)}: {html.escape(fault)}</p>" for row in rows for fault in row.faults),
        "<h2>Along the way</h2>",
        _curves(runs),
        "<h2>What it looks like</h2>",
        image_figure("samples.png", "Held-out clips, the originals at the left; seed 0 at the last point."),
        *(f"<p><small>{name}: {html.escape(reason)}</small></p>" for name, reason in about["absent"].items()),
        *(f"<p><small>left out: {html.escape(reason)}</small></p>" for reason in parts.bad.values()),
        f"<small>smalti {__version__}. All figures of all seeds are in <code>points.jsonl</code>, protocol and data in "
        "<code>report.json</code>.</small>",
    ]
    write_bytes(out / "index.html", document("smalti compare", body))
    return out / "index.html"


def _plain(row: VariantSummary) -> dict[str, Any]:
    return {**row._asdict(), "effects": {name: effect._asdict() for name, effect in row.effects.items()}}


def _scores(row: VariantSummary) -> list[str]:
    return [row.name, *(_effect(row.effects.get(name), digits) for name, (_, digits) in _SCORES.items())]


def _effect(effect: Effect | None, digits: int) -> str:
    if effect is None:
        return "-"
    if effect.difference == 0:
        return number(effect.mean, digits)
    error = "" if effect.error is None else f" ± {effect.error:.{digits}f}"
    return f"{effect.mean:.{digits}f} ({effect.difference:+.{digits}f}{error})"


def _codes(rows: Sequence[VariantSummary]) -> list[list[str]]:
    return [
        [
            row.name,
            number(row.bits_per_pixel, 3),
            *(f"{row.effects[name].mean:,.0f}" if name in row.effects else "-" for name in _CODES),
            "-" if row.expected_distinct is None else f"{row.expected_distinct:,.0f}",
        ]
        for row in rows
    ]


def _cost(row: VariantSummary) -> list[str]:
    a_step = row.seconds / max(1.0, row.steps)
    counts = [f"{row.parameters:,}", f"{row.steps:,.0f}", f"{row.seconds:,.0f}"]
    return [row.name, *counts, number(a_step, 3), number(row.flops_per_step / 1e9, 1)]


def _curves(runs: Sequence[VariantRun]) -> str:
    """Return a row of plots for each curve that has values; a line per variant, its further seeds thin."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = [curve for curve in _CURVES if any(curve.value(p) is not None for run in runs for p in run.points)]
    if not shown:
        return ""
    names = list(dict.fromkeys(run.source.name for run in runs))
    colours = dict(zip(names, (colormaps["tab20"](i % 20) for i in range(len(names))), strict=True))
    head = 0.3 + 0.2 * math.ceil(len(names) / 4)  # inches of the legend
    height = 3 * len(shown) + head
    room = {
        "left": 0.06,
        "right": 0.99,
        "bottom": 0.5 / height,
        "top": 1 - head / height,
        "wspace": 0.25,
        "hspace": 0.3,
    }
    figure = Figure(figsize=(12, height))
    axes = figure.subplots(len(shown), len(_AGAINST), squeeze=False, gridspec_kw=room)
    for row, curve in zip(axes, shown, strict=True):
        for axis, (against, place) in zip(row, _AGAINST.items(), strict=True):
            for run in runs:
                points = [(place(p), value) for p in run.points if (value := curve.value(p)) is not None]
                label = run.source.name if run.seed == 0 else None
                thin = {"lw": 1.4, "ms": 3} if run.seed == 0 else {"lw": 0.7, "ms": 2}
                xs, ys = [x for x, _ in points], [y for _, y in points]
                axis.plot(xs, ys, "o-", color=colours[run.source.name], label=label, **thin)
            axis.set(xlabel=against, ylabel=curve.label, **({"yscale": "log"} if curve.log else {}))
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, frameon=False, fontsize=8)
    return svg_figure(figure)


def _sheet(runs: Sequence[VariantRun], parts: DataParts) -> Any:
    first = [run for run in runs if run.seed == 0 and run.fault is None]
    rows = []
    for _, video in parts.heldout[:_SHOWN]:
        middle = video.shape[2] // 2
        with torch.no_grad():
            reconstructions = [run.learner.round_trip(video)[0].float().cpu() for run in first]
        rows.append([to_uint8(each)[0, middle].numpy() for each in (video, *reconstructions)])
    return contact_sheet(rows, ["original", *(run.source.name for run in first)])
