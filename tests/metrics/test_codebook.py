"""Code counts: laws of merging, of the dense and the sparse form, and of the statistics."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.metrics.codebook import DENSE, Usage, bits_per_pixel, expected_distinct, expected_perplexity

LEVELS = [(2,) * 4, (8, 8, 8, 5, 5, 5), (2,) * 18, (2,) * 19, (16, 9, 7, 300, 11), (2,) * 62, (4,) * 31]


def some_ids(levels, n, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, min(math.prod(levels), 1 << 62), (n,), generator=rng)


def counted(levels, *batches):
    usage = Usage(levels)
    for ids in batches:
        usage.update(ids)
    return usage


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_statistics_equal_those_of_a_plain_count(levels):
    ids = torch.cat([some_ids(levels, 300, 0), some_ids(levels, 30, 1).repeat(5)])
    use = counted(levels, ids.view(9, 50)).summary(pixels=450 * 64)
    counts = {i: ids.tolist().count(i) for i in set(ids.tolist())}
    shares = [count / len(ids) for count in counts.values()]
    entropy = -sum(p * math.log2(p) for p in shares)
    assert (use.tokens, use.distinct, use.codebook_size) == (450, len(counts), math.prod(levels))
    assert use.entropy_bits == pytest.approx(entropy, abs=1e-12)
    assert use.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-12)
    assert use.share == len(counts) / math.prod(levels)
    assert use.bits_per_pixel == pytest.approx(math.log2(math.prod(levels)) / 64, rel=1e-12)
    assert use.entropy_bits_per_pixel == pytest.approx(entropy / 64, rel=1e-12)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_histograms_count_the_digits_of_mixed_radix(levels):
    ids = some_ids(levels, 200, 3)
    expected = [[0] * level for level in levels]
    for i in ids.tolist():
        for j, level in enumerate(levels):
            i, digit = divmod(i, level)
            expected[j][digit] += 1
    assert counted(levels, ids).histograms() == tuple(map(tuple, expected))


@settings(max_examples=20, deadline=None)
@given(
    levels=st.sampled_from([(3, 5), (2,) * 9, (2,) * 30]),
    sizes=st.lists(st.integers(0, 40), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_merge_is_associative_commutative_and_equal_to_one_count(levels, sizes, seed):
    batches = [some_ids(levels, n, seed + i) for i, n in enumerate(sizes)]
    a, b, c = (counted(levels, ids) for ids in batches)
    whole = counted(levels, torch.cat(batches)).summary(100)
    assert a.merge(b).merge(c).summary(100) == a.merge(b.merge(c)).summary(100) == whole
    for order in itertools.permutations(batches):
        assert counted(levels, *order).summary(100) == whole
    assert a.merge(Usage(levels)).summary() == a.summary()


def test_merge_leaves_both_parts_as_they_were():
    a, b = counted((3, 5), torch.tensor([1, 2])), counted((3, 5), torch.tensor([2, 14]))
    before = a.summary(), b.summary()
    a.merge(b).update(torch.tensor([7]))
    assert (a.summary(), b.summary()) == before


@pytest.mark.parametrize("levels", [(8, 8, 4), (2,) * 8])
def test_an_even_sample_has_full_perplexity(levels):
    size = math.prod(levels)
    use = counted(levels, torch.arange(size), torch.arange(size)).summary()
    assert use.perplexity == pytest.approx(size, rel=1e-12)
    assert use.share == 1
    assert use.bits_per_pixel is None
    assert all(len(set(row)) == 1 for row in use.digits)


def test_no_tokens_and_one_code_have_no_entropy():
    assert Usage((4, 4)).summary(10).entropy_bits == 0
    assert Usage((4, 4)).summary(10).perplexity == 1
    assert counted((4, 4), torch.full((2, 3, 4), 5)).summary().perplexity == 1


@pytest.mark.parametrize(("size", "n"), [(2, 1), (2, 5), (10, 10), (64000, 1000), (1 << 18, 1 << 18), (1, 4), (7, 0)])
def test_expected_distinct_equals_its_formula(size, n):
    assert expected_distinct(size, n) == pytest.approx(size * (1 - (1 - 1 / size) ** n), rel=1e-9)


def test_expected_distinct_holds_in_a_true_sample_and_for_huge_codebooks():
    found = counted((8, 8, 8, 5, 5, 5), some_ids((64000,), 50000, 7)).distinct
    assert found == pytest.approx(expected_distinct(64000, 50000), rel=0.01)
    assert expected_distinct(1 << 62, 1000) == pytest.approx(1000, rel=1e-9)


def test_memory_is_bounded_by_the_table_or_by_the_distinct_ids():
    dense, sparse = counted((2,) * 18, some_ids((2,) * 18, 9000, 0)), Usage((2,) * 40)
    for seed in range(5):
        sparse.update(torch.arange(100) + (1 << 39))
        sparse.update(some_ids((2,) * 3, 1000, seed))
    assert dense._counts.numel() == DENSE
    assert sparse._counts.numel() == sparse.distinct == 108


@pytest.mark.parametrize("levels", [(3, 5), (2,) * 20])
def test_ids_outside_the_codebook_are_refused(levels):
    size = math.prod(levels)
    for bad in (-1, size):
        with pytest.raises(ValueError, match=f"outside 0 <= id < {size}"):
            Usage(levels).update(torch.tensor([0, bad]))


def test_impossible_levels_and_unlike_parts_are_refused():
    for levels in ((), (4, 1), (2,) * 63):
        with pytest.raises(ValueError, match="levels"):
            Usage(levels)
    with pytest.raises(ValueError, match="cannot be merged"):
        Usage((4, 4)).merge(Usage((2, 8)))


def test_bits_per_pixel_of_the_known_models():
    # 18 bits for 16 x 16 patches of 256 x 256: 18 / 256 bits per pixel.
    assert bits_per_pixel(1 << 18, 256, 256 * 256) == 18 / 256


@pytest.mark.parametrize(("size", "n"), [(1, 5), (2, 1), (2, 9), (3, 6), (5, 5), (7, 4)])
def test_expected_perplexity_is_the_mean_entropy_of_all_samples(size, n):
    """Every sample of n draws in turn."""
    total = 0.0
    for drawn in itertools.product(range(size), repeat=n):
        total -= sum(p * math.log(p) for value in set(drawn) for p in [drawn.count(value) / n])
    assert expected_perplexity(size, n) == pytest.approx(math.exp(total / size**n), rel=1e-9)


def test_expected_perplexity_lies_below_the_codes_and_the_sample():
    for size, n in ((1 << 18, 8192), (64_000, 2048), (64_000, 1_000_000), (16, 100_000), (1 << 62, 500)):
        found = expected_perplexity(size, n)
        assert 0.5 * min(size, n) < found <= min(size, n) * (1 + 1e-9)
        assert found <= expected_distinct(size, n) * (1 + 1e-9)
