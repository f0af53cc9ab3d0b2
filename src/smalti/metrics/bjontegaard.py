"""The Bjøntegaard delta rate of two rate-distortion curves (VCEG-M33, 2001), with piecewise cubic interpolation."""

import itertools
import math
from collections.abc import Sequence

from smalti.errors import InputError

Curve = Sequence[tuple[float, float]]
"""Points (rate, quality) in any order: bits in any unit, and a quality that rises with them, as PSNR in dB."""


def bd_rate(reference: Curve, other: Curve) -> float:
    """Return the mean change of rate at equal quality of `other` over `reference`: -0.1 saves a tenth of the bits.

    exp of the mean difference of log rate over the qualities that both curves reach, less 1. Log rate between the
    points is the monotone piecewise cubic of Fritsch and Carlson (1980), which does not swing as one cubic through four
    points may. Raises InputError for fewer than two points, rates or qualities that do not both rise, or curves
    without a common range of quality: then there is nothing to compare.
    """
    (x_a, y_a), (x_b, y_b) = _sorted(reference, "reference"), _sorted(other, "other")
    low, high = max(x_a[0], x_b[0]), min(x_a[-1], x_b[-1])
    if low >= high:
        raise InputError(
            f"the curves have no quality in common: {x_a[0]:g} to {x_a[-1]:g}, and {x_b[0]:g} to {x_b[-1]:g}"
        )
    difference = _integral(x_b, y_b, low, high) - _integral(x_a, y_a, low, high)
    return math.exp(difference / (high - low)) - 1


def _sorted(curve: Curve, name: str) -> tuple[list[float], list[float]]:
    """Return qualities and log rates by rising quality."""
    points = sorted((float(quality), float(rate)) for rate, quality in curve)
    if len(points) < 2:
        raise InputError(f"{name}: a curve needs 2 points or more (found {len(points)})")
    if not all(math.isfinite(value) for point in points for value in point) or points[0][1] <= 0:
        raise InputError(f"{name}: rates must be positive and qualities finite")
    for (quality, rate), (better, more) in itertools.pairwise(points):
        if better <= quality or more <= rate:
            raise InputError(
                f"{name}: rate and quality must both rise from point to point (found {rate:g} at {quality:g} and "
                f"{more:g} at {better:g}); leave the points out that others beat"
            )
    return [quality for quality, _ in points], [math.log(rate) for _, rate in points]


def _slopes(x: list[float], y: list[float]) -> list[float]:
    """Return the slopes at the points: weighted harmonic means of the secants beside them; three-point at the ends."""
    steps = [b - a for a, b in itertools.pairwise(x)]
    secants = [(b - a) / step for (a, b), step in zip(itertools.pairwise(y), steps, strict=True)]
    if len(secants) == 1:
        return [secants[0], secants[0]]
    inner = []
    for i in range(1, len(secants)):
        before, after = 2 * steps[i] + steps[i - 1], steps[i] + 2 * steps[i - 1]
        inner.append((before + after) / (before / secants[i - 1] + after / secants[i]))
    return [_end(steps[:2], secants[:2]), *inner, _end(steps[:-3:-1], secants[:-3:-1])]


def _end(steps: list[float], secants: list[float]) -> float:
    """Return the slope at an end from the two nearest intervals, between 0 and three times the nearest secant."""
    slope = ((2 * steps[0] + steps[1]) * secants[0] - steps[0] * secants[1]) / (steps[0] + steps[1])
    return min(max(slope, 0.0), 3 * secants[0])


def _integral(x: list[float], y: list[float], low: float, high: float) -> float:
    """Integrate the interpolant of increasing y over [low, high], which lies within x."""
    slopes, total = _slopes(x, y), 0.0
    for i in range(len(x) - 1):
        start, end = max(low, x[i]), min(high, x[i + 1])
        if start < end:
            step = x[i + 1] - x[i]
            secant = (y[i + 1] - y[i]) / step
            cubic = y[i], slopes[i], 3 * secant - 2 * slopes[i] - slopes[i + 1], slopes[i] + slopes[i + 1] - 2 * secant
            total += step * _antiderivative(cubic, step, (end - x[i]) / step)
            total -= step * _antiderivative(cubic, step, (start - x[i]) / step)
    return total


def _antiderivative(cubic: tuple[float, float, float, float], step: float, s: float) -> float:
    """Return the integral over [0, s] of c0 + step (c1 s + c2 s^2 + c3 s^3), for `cubic` = (c0, c1, c2, c3)."""
    c0, c1, c2, c3 = cubic
    return c0 * s + step * (c1 * s**2 / 2 + c2 * s**3 / 3 + c3 * s**4 / 4)
