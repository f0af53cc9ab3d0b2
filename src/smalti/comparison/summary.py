"""The results of a comparison: each variant's mean over seeds, its spread, its difference from the first variant's."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from smalti.comparison.evaluator import Point
from smalti.comparison.runner import VariantRun

BETTER: Mapping[str, int] = {"psnr": 1, "ssim": 1, "lpips": -1, "frechet": -1, "perplexity": 0, "distinct": 0}
"""The scores of the table: 1 if more is better, -1 if less is, 0 if neither."""


class Effect(NamedTuple):
    """One score of one variant at the end of the budget."""

    mean: float
    spread: float | None
    """Sample standard deviation over seeds; None for one seed."""
    difference: float
    """Difference of the mean from that of the first variant."""
    error: float | None
    """Standard error of `difference`, from the spread of one run pooled over all variants; None for one seed."""


class VariantSummary(NamedTuple):
    """A variant at the end of its budget."""

    name: str
    seeds: int
    """Number of runs that reached the end."""
    parameters: int
    steps: float
    seconds: float
    flops_per_step: float
    bits_per_pixel: float | None
    tokens: int
    expected_distinct: float | None
    effects: dict[str, Effect]
    faults: tuple[str, ...]


def summarise_runs(runs: Sequence[VariantRun]) -> list[VariantSummary]:
    """Return one row per variant, in their order; scores at the last point that every unstopped run has."""
    names = list(dict.fromkeys(run.source.name for run in runs))
    of = {name: [run for run in runs if run.source.name == name] for name in names}
    last = min((run.points[-1].share if run.points else 0.0 for run in runs if run.fault is None), default=0.0)
    points = {name: [p for run in of[name] for p in run.points if p.share == last and run.fault is None] for name in of}
    values = {
        score: {name: _values(points[name], score) for name in names if _values(points[name], score)}
        for score in BETTER
    }
    effects = {score: compare_means(groups) for score, groups in values.items()}
    return [
        VariantSummary(
            name=name,
            seeds=len(points[name]),
            parameters=of[name][0].learner.parameters,
            steps=_mean([p.steps for p in points[name]]),
            seconds=_mean([p.seconds for p in points[name]]),
            flops_per_step=_mean([p.flops / max(1, p.steps) for p in points[name]]),
            bits_per_pixel=points[name][0].bits_per_pixel if points[name] else None,
            tokens=points[name][0].tokens if points[name] else 0,
            expected_distinct=points[name][0].expected_distinct if points[name] else None,
            effects={score: effects[score][name] for score in BETTER if name in effects[score]},
            faults=tuple(f"seed {run.seed}: {run.fault}" for run in of[name] if run.fault is not None),
        )
        for name in names
    ]


def compare_means(groups: Mapping[str, Sequence[float]]) -> dict[str, Effect]:
    """Return means, spreads, and differences from the first group.

    The variance of one run is pooled: sum over groups of squared deviations / sum of (seeds - 1). A difference of means
    of n and m seeds then has the standard error sqrt(variance (1/n + 1/m)).
    """
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        return {}
    first = next(iter(groups.values()))
    squares = [math.fsum((v - _mean(group)) ** 2 for v in group) for group in groups.values()]
    freedom = sum(len(group) - 1 for group in groups.values())
    variance = math.fsum(squares) / freedom if freedom else None
    effects = {}
    for (name, group), square in zip(groups.items(), squares, strict=True):
        error = None if variance is None else math.sqrt(variance * (1 / len(group) + 1 / len(first)))
        spread = math.sqrt(square / (len(group) - 1)) if len(group) > 1 else None
        effects[name] = Effect(_mean(group), spread, _mean(group) - _mean(first), error)
    return effects


def _values(points: Sequence[Point], score: str) -> list[float]:
    return [float(value) for point in points if (value := getattr(point, score)) is not None]


def _mean(values: Sequence[float | int]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
