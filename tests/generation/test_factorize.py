"""Ids and parts are one bijection, for any levels and any groups; no digit is cut in two."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.generation import Factorization, balanced
from smalti.quantize import DSQConfig, FSQConfig, LFQConfig


@st.composite
def vocabularies(draw):
    """Levels whose product an id can name, and any partition of the digits in any order, or None."""
    levels, room = [], 2**62
    for level in draw(st.lists(st.integers(2, 70_000), min_size=1, max_size=20)):
        if level <= room:
            levels.append(level)
            room //= level
    digits = draw(st.permutations(range(len(levels))))
    cuts = sorted(draw(st.sets(st.integers(1, len(levels) - 1)))) if len(levels) > 1 else []
    edges = [0, *cuts, len(levels)]
    groups = [digits[a:b] for a, b in itertools.pairwise(edges)]
    return tuple(levels), draw(st.sampled_from([None, groups]))


@given(vocabularies(), st.data())
def test_ids_and_subtokens_are_a_bijection_for_any_levels_and_groups(vocabulary, data):
    levels, groups = vocabulary
    f = Factorization(levels, groups)
    numbers = data.draw(st.lists(st.integers(0, f.codebook_size - 1), min_size=1, max_size=6)) + [
        0,
        f.codebook_size - 1,
    ]
    ids = torch.tensor(numbers)
    parts = f.split(ids)
    assert torch.equal(f.join(parts), ids)
    assert math.prod(f.sizes) == f.codebook_size
    for row, number in enumerate(numbers):  # against Python's integers, which cannot overflow
        digits = [number // math.prod(levels[:j]) % level for j, level in enumerate(levels)]
        for g, group in enumerate(f.groups):
            expected = sum(digits[j] * math.prod(levels[i] for i in group[:k]) for k, j in enumerate(group))
            assert int(parts[row, g]) == expected


@pytest.mark.parametrize("levels", [(2, 3, 4), (5,), (2, 2, 2, 2), (3, 2, 5)])
def test_every_combination_of_parts_is_one_id(levels):
    f = Factorization(levels, balanced(levels, min(2, len(levels))))
    every = torch.cartesian_prod(*map(torch.arange, f.sizes)).view(-1, len(f.sizes))
    assert sorted(f.join(every).tolist()) == list(range(f.codebook_size))


@pytest.mark.parametrize(
    ("levels", "sizes"),
    [
        ((2,) * 18, (512, 512)),
        ((8, 8, 8, 5, 5, 5), (320, 200)),
        ((8, 8, 8, 6, 5), (64, 240)),
        ((8,) * 6, (512, 512)),
        ((7, 5, 5, 5, 5), (4375,)),
        ((2,) * 13, (8192,)),
        ((2,) * 36, (4096, 4096, 4096)),
        ((70_000, 2), (70_000, 2)),
    ],
)
def test_groups_are_few_and_of_near_sizes(levels, sizes):
    assert Factorization(levels).sizes == sizes


def test_equal_digits_stay_in_their_order():
    assert Factorization((2,) * 18).groups == (tuple(range(9)), tuple(range(9, 18)))
    ids = torch.tensor([0b101_000_011_110_000_101])
    assert Factorization((2,) * 18).split(ids).tolist() == [[0b110_000_101, 0b101_000_011]]
    assert Factorization((2,) * 18, [range(6), range(6, 18)]).sizes == (64, 4096)


@pytest.mark.parametrize("config", [LFQConfig(bits=10), FSQConfig(levels=(8, 5, 4)), DSQConfig(levels=(3, 9, 2))])
def test_a_subtoken_has_whole_digits_of_the_quantizer(config):
    """Changing the digits of one group changes its part alone."""
    quantizer = config.build()
    f = Factorization(quantizer.levels, balanced(quantizer.levels, 2))
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(f.codebook_size, (1, 1, 1, 50), generator=rng)
    other = torch.randint(f.codebook_size, (1, 1, 1, 50), generator=rng)
    digits, changed = quantizer.digits(ids), quantizer.digits(ids).clone()
    changed[:, f.groups[0]] = quantizer.digits(other)[:, f.groups[0]]
    parts = f.split(quantizer.ids(changed))
    assert torch.equal(parts[..., 1], f.split(ids)[..., 1])
    assert torch.equal(parts[..., 0], f.split(other)[..., 0])
    assert torch.equal(quantizer.ids(digits), f.join(f.split(ids)))


@pytest.mark.parametrize(
    ("levels", "groups", "said"),
    [
        ((2, 2), [[0]], "exactly once"),
        ((2, 2), [[0, 1], [1]], "exactly once"),
        ((2, 2), [[0, 1], []], "exactly once"),
        ((2, 2), [[0, 2]], "exactly once"),
        ((2, 1), None, "at least 2"),
        ((), None, "at least 2"),
        ((2,) * 63, None, "2\\^62"),
    ],
)
def test_wrong_groups_are_refused(levels, groups, said):
    with pytest.raises(ValueError, match=said):
        Factorization(levels, groups)


def test_what_is_out_of_range_is_refused():
    f = Factorization((4, 3), [[0], [1]])
    for wrong in (-1, 12):
        with pytest.raises(ValueError, match=r"outside \[0, 12\)"):
            f.split(torch.tensor([wrong]))
    with pytest.raises(ValueError, match=r"sub-token 1: 3 is outside \[0, 3\)"):
        f.join(torch.tensor([[0, 3]]))
