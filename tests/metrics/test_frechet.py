"""Moments and the Fréchet distance: laws of streaming and merging, the golden, the closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.metrics.frechet import Moments, frechet_distance
from tests.goldens.rule import load


def sample(n, dim, seed):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=rng, dtype=torch.float64)
    return torch.randn(n, dim, generator=rng, dtype=torch.float64) @ mix + 3


def moments(*batches):
    found = Moments(batches[0].shape[1])
    for batch in batches:
        found.update(batch)
    return found


def assert_same(a, b):
    assert a.n == b.n
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.scatter, b.scatter, rtol=1e-12, atol=1e-12 * b.n)


def test_distances_equal_the_golden():
    tensors = load("metrics_fid").tensors
    a, b, c = (moments(tensors[f"set_{name}"]) for name in "abc")
    found = [frechet_distance(*pair) for pair in ((a, b), (a, a), (a, c))]
    for (scipy, eigen), result in zip(tensors["frechet"].tolist(), found, strict=True):
        # Set c is smaller than its dimension: there both columns carry roots of rounded zeros.
        assert result.distance == pytest.approx(max(0.0, eigen), rel=1e-8 if result.warning else 1e-9, abs=1e-9)
        assert result.distance == pytest.approx(scipy, rel=1e-8 if result.warning else 1e-9, abs=1e-9)
    # In 60-digit arithmetic.
    assert found[2].distance == pytest.approx(39.2447536618470367, rel=1e-12)
    assert [result.warning is None for result in found] == [True, True, False]
    assert "8 samples for 12 dimensions" in found[2].warning


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 80), dim=st.integers(1, 9), seed=st.integers(0, 99), cut=st.integers(1, 30))
def test_the_split_into_batches_changes_nothing(n, dim, seed, cut):
    features = sample(n, dim, seed)
    split, whole = moments(*features.split(cut)), moments(features)
    assert_same(split, whole)
    torch.testing.assert_close(whole.covariance(), torch.cov(features.T).reshape(dim, dim), rtol=1e-11, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 20), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_merge_is_associative_and_commutative(sizes, seed):
    a, b, c = (moments(sample(n, 4, seed + i)) for i, n in enumerate(sizes))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(Moments(4)), a)


def test_a_far_mean_costs_no_digits():
    features = sample(500, 3, 0)
    near, far = moments(*features.split(7)), moments(*(features + 1e6).split(7))
    torch.testing.assert_close(near.covariance(), far.covariance(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_shifts_and_scalings_have_their_closed_forms(dim):
    features = sample(200, dim, dim)
    a = moments(features)
    shift = torch.arange(dim).double() + 1
    moved = frechet_distance(a, moments(features + shift))
    assert moved.distance == pytest.approx(float((shift**2).sum()), rel=1e-9)
    # B = 9 A: tr(A + 9A - 2 · 3A) = 4 tr A, and the mean moves by 2 μ.
    scaled = frechet_distance(a, moments(3 * features))
    assert scaled.distance == pytest.approx(float(4 * a.covariance().trace() + 4 * (a.mean**2).sum()), rel=1e-9)


def test_the_distance_is_symmetric_and_never_negative():
    a, b = moments(sample(50, 6, 1)), moments(sample(60, 6, 2))
    assert frechet_distance(a, b).distance == pytest.approx(frechet_distance(b, a).distance, rel=1e-9)
    assert 0 <= frechet_distance(a, a).distance < 1e-8
    assert frechet_distance(a, b)[3:] == (50, 60, 6, None)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_samples_are_refused(n):
    few = moments(sample(n, 3, 0))
    with pytest.raises(ValueError, match=f"2 samples or more, got {n}"):
        frechet_distance(few, moments(sample(5, 3, 1)))


def test_the_parts_of_a_distance_add_up_to_it():
    a, b = moments(sample(50, 6, 1)), moments(sample(60, 6, 2) + 1)
    found = frechet_distance(a, b)
    assert found.distance == found.means + found.covariances
    assert found.means == pytest.approx(float(((a.mean - b.mean) ** 2).sum()), rel=1e-12)
    assert found.covariances > 0


def test_moments_come_back_bit_for_bit_from_their_tensors():
    a = moments(*sample(50, 6, 1).split(7))
    again = Moments.of_tensors(a.tensors())
    assert again.n == a.n
    assert torch.equal(again.mean, a.mean)
    assert torch.equal(again.scatter, a.scatter)


@pytest.mark.parametrize(
    "change",
    [
        {"n": None},
        {"n": torch.tensor(-1)},
        {"mean": torch.zeros(5, dtype=torch.float64)},
        {"mean": torch.zeros(6)},
        {"scatter": torch.full((6, 6), float("inf"), dtype=torch.float64)},
    ],
)
def test_tensors_that_are_no_moments_are_refused(change):
    tensors = {**moments(sample(50, 6, 1)).tensors(), **change}
    with pytest.raises(ValueError, match="no moments"):
        Moments.of_tensors({name: value for name, value in tensors.items() if value is not None})


def test_wrong_widths_and_values_are_refused():
    with pytest.raises(ValueError, match="4 wide, these moments 3"):
        Moments(3).update(sample(2, 4, 0))
    with pytest.raises(ValueError, match="not finite"):
        Moments(3).update(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="cannot be merged"):
        Moments(3).merge(Moments(4))
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(moments(sample(9, 3, 0)), moments(sample(9, 4, 0)))


@pytest.mark.parametrize(("n", "warns"), [(5, True), (6, True), (7, False)])
def test_a_covariance_of_no_more_samples_than_dimensions_is_called_singular(n, warns):
    sets = [moments(sample(n, 6, seed)) for seed in range(2)]
    assert torch.linalg.matrix_rank(sets[0].covariance()) == min(6, n - 1)
    assert (frechet_distance(*sets).warning is not None) == warns
