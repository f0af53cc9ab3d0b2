"""Precision, recall, density, coverage and the inception score: brute force, closed forms, the same for any block."""

import math

import numpy as np
import pytest
import torch

from smalti.metrics.inception import inception_score
from smalti.metrics.precision_recall import Neighbourhoods, count_inside, density_coverage, precision_recall


def sample(n, dim, seed, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(n, dim, generator=rng, dtype=torch.float64) + shift).float()


def brute(real, made, k):
    """(precision, recall, density, coverage) by the definitions, every distance by itself."""

    def distances(a, b):
        return np.array([[math.dist(x, y) for y in b.tolist()] for x in a.tolist()])

    real_radii = np.sort(distances(real, real), axis=1)[:, k]
    made_radii = np.sort(distances(made, made), axis=1)[:, k]
    between = distances(real, made)
    return (
        (between <= real_radii[:, None]).any(0).mean(),
        (between <= made_radii[None]).any(1).mean(),
        (between < real_radii[:, None]).sum(0).mean() / k,
        (between < real_radii[:, None]).any(1).mean(),
    )


def found(real, made, k, **options):
    hoods = Neighbourhoods.of(real, k, **options)
    return (*precision_recall(hoods, made), *density_coverage(hoods, made))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "dim", "shift"), [(7, 9, 1, 0.0), (40, 30, 3, 0.5), (30, 50, 12, 1.0)])
def test_scores_equal_brute_force(n, m, dim, shift, k):
    real, made = sample(n, dim, 0), sample(m, dim, 1, shift)
    assert found(real, made, k) == pytest.approx(brute(real, made, k), rel=1e-12)


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 20])
def test_the_size_of_a_block_changes_nothing(block):
    real, made = sample(40, 5, 0), sample(31, 5, 1, 0.7)
    whole = found(real, made, 3)
    assert found(real, made, 3, block=block) == whole


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_a_set_against_itself_has_all_and_far_sets_have_nothing(k, far):
    real = sample(60, 8, 0, far)
    assert found(real, real, k) == pytest.approx((1, 1, 1, 1), rel=1e-12)
    assert found(real, real + 1e6, k) == (0, 0, 0, 0)


def test_copies_of_one_vector_lie_in_their_own_closed_balls():
    real = sample(6, 4, 0).repeat(4, 1)  # each four times: balls of k = 3 are points
    balls = Neighbourhoods.of(real, 3)
    assert precision_recall(balls, real) == (1, 1)
    assert density_coverage(balls, real) == (0, 0)  # an open ball of no size holds nothing


def test_what_is_counted_from_both_sides_agrees():
    balls, made = Neighbourhoods.of(sample(40, 5, 0), 3), sample(31, 5, 1)
    seen = count_inside(balls, made, closed=False)
    assert seen.neighbourhoods.sum() == seen.vectors.sum() > 0


def test_fewer_vectors_than_neighbours_are_refused():
    with pytest.raises(ValueError, match="neighbour number 5 needs more vectors than that, got 5"):
        Neighbourhoods.of(sample(5, 2, 0), 5)


@pytest.mark.parametrize("classes", [1, 2, 7, 1008])
def test_sure_and_even_over_k_classes_is_exactly_k(classes):
    logits = torch.full((classes, classes), -torch.inf).fill_diagonal_(0.0).repeat(4, 1)
    score = inception_score(logits, splits=2)
    assert score.mean == pytest.approx(classes, rel=1e-12)
    assert score.std == pytest.approx(0, abs=1e-9)


def test_what_says_nothing_of_a_picture_is_1():
    assert inception_score(torch.randn(8).expand(30, 8), 10).mean == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("n", "splits"), [(10, 10), (23, 10), (100, 3), (50, 1)])
def test_the_score_is_the_mean_divergence_of_each_part(n, splits):
    logits = 3 * sample(n, 12, n)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    parts = [p[i * n // splits : (i + 1) * n // splits] for i in range(splits)]
    each = [np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts]
    score = inception_score(logits, splits)
    assert score.mean == pytest.approx(np.mean(each), rel=1e-12)
    assert score.std == pytest.approx(np.std(each), rel=1e-9, abs=1e-12)


def test_a_score_of_more_parts_than_vectors_is_refused():
    with pytest.raises(ValueError, match="10 parts needs as many vectors, got 9"):
        inception_score(torch.zeros(9, 3))


def test_a_set_of_one_point_again_and_again_covers_itself():
    """Every radius is 0, and an edge belongs to a closed neighbourhood."""
    same = torch.zeros(6, 3)
    assert precision_recall(Neighbourhoods.of(same, 2), same) == (1, 1)
