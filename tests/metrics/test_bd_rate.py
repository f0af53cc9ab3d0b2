"""BD-rate by its laws: exact for curves a factor apart, antisymmetric, blind to the unit of either axis."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.errors import InputError
from smalti.metrics import bd_rate

steps = st.lists(st.floats(0.1, 3), min_size=2, max_size=8)


def curve(rates, qualities, start=(0.05, 20.0)):
    """Points whose log rates and qualities rise by these steps."""
    points, log_rate, quality = [], math.log(start[0]), start[1]
    for r, q in zip([0, *rates], [0, *qualities], strict=False):
        log_rate, quality = log_rate + r, quality + q
        points.append((math.exp(log_rate), quality))
    return points


@settings(max_examples=60, deadline=None)
@given(rates=steps, qualities=steps, factor=st.floats(0.2, 5), unit=st.floats(0.01, 100), shift=st.floats(-30, 30))
def test_a_curve_with_k_times_the_rate_has_k_less_1(rates, qualities, factor, unit, shift):
    ours = curve(rates, qualities)
    assert bd_rate(ours, [(factor * r, q) for r, q in ours]) == pytest.approx(factor - 1, abs=1e-9)
    assert bd_rate(ours, ours[::-1]) == pytest.approx(0, abs=1e-12)
    other = [(factor * r**1.2, q + 0.01) for r, q in ours]
    found = bd_rate(ours, other)
    assert (1 + found) * (1 + bd_rate(other, ours)) == pytest.approx(1, rel=1e-9)
    moved = [[(unit * r, 3 * q + shift) for r, q in points] for points in (ours, other)]
    assert bd_rate(*moved) == pytest.approx(found, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(a=st.tuples(steps, steps), b=st.tuples(steps, steps))
def test_it_is_the_mean_of_scipys_monotone_cubics(a, b):
    scipy = pytest.importorskip("scipy.interpolate")
    curves = [curve(*a), curve(*b, start=(0.04, 20.02))]
    low = max(points[0][1] for points in curves)
    high = min(points[-1][1] for points in curves)
    if high - low < 0.05:
        return
    means = []
    for points in curves:
        rates, qualities = zip(*points, strict=True)
        cubic = scipy.PchipInterpolator(qualities, [math.log(rate) for rate in rates])
        means.append(float(cubic.integrate(low, high)) / (high - low))
    assert bd_rate(*curves) == pytest.approx(math.exp(means[1] - means[0]) - 1, rel=1e-6, abs=1e-9)


def test_only_common_qualities_count():
    """Where one curve goes on alone, its rates say nothing."""
    ours = [(1.0, 30.0), (2.0, 33.0), (4.0, 36.0)]
    assert bd_rate(ours, [(0.5, 30.0), (1.0, 33.0), (2.0, 36.0), (1000.0, 40.0)]) == pytest.approx(-0.5, abs=0.02)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(1.0, 30.0)], "2 points or more"),
        ([(1.0, 30.0), (0.5, 32.0)], "must both rise"),
        ([(1.0, 30.0), (2.0, 30.0)], "must both rise"),
        ([(0.0, 30.0), (2.0, 31.0)], "must be positive"),
        ([(1.0, math.nan), (2.0, 31.0)], "finite"),
        ([(1.0, 40.0), (2.0, 41.0)], "no quality in common"),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(points, said):
    with pytest.raises(InputError, match=said):
        bd_rate([(1.0, 30.0), (2.0, 33.0)], points)
