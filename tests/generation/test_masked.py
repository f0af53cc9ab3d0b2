"""Schedules in closed form, exact counts, exact masks, and the Halton order by its definition."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.generation import Condition, Prompt
from smalti.generation.masked import (
    first_ranked,
    halton_order,
    masked_input,
    masked_share,
    masked_shares,
    random_mask,
    step_counts,
)

SCHEDULES = ["cosine", "arccos", "linear", "square", "exponential"]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


@pytest.mark.parametrize(
    ("schedule", "at_half"),
    [
        ("cosine", math.sqrt(0.5)),
        ("arccos", 2 / 3),
        ("linear", 0.5),
        ("square", 0.75),
        ("exponential", 1 - 1 / 16),
    ],
)
def test_schedules_have_their_closed_forms(schedule, at_half):
    assert math.isclose(masked_share(schedule, 0.5, 256), at_half, rel_tol=1e-12)
    assert math.isclose(masked_share(schedule, 0.0, 256), 1 - 1 / 256 if schedule == "exponential" else 1.0)
    assert abs(masked_share(schedule, 1.0, 256)) < 1e-12
    shares = [masked_share(schedule, r / 50, 256) for r in range(51)]
    assert all(a > b for a, b in itertools.pairwise(shares))


@pytest.mark.parametrize(
    ("entries", "steps", "revealed"),
    [
        (256, 12, [3, 6, 11, 15, 18, 22, 26, 27, 31, 31, 33, 33]),
        (768, 12, [7, 20, 32, 44, 56, 66, 76, 83, 91, 95, 98, 100]),
        (
            1280,
            24,
            [3, 8, 14, 19, 24, 30, 35, 39, 44, 49, 53, 57, 62, 64, 68, 71, 74, 77, 78, 80, 82, 82, 84, 83],
        ),
    ],
)
def test_the_cosine_reveals_what_its_formula_says(entries, steps, revealed):
    assert step_counts(entries, steps, "cosine") == revealed


@given(st.integers(0, 3000), st.integers(1, 4000), st.sampled_from(SCHEDULES))
def test_every_step_reveals_something_and_all_is_revealed(entries, steps, schedule):
    revealed = step_counts(entries, steps, schedule)
    assert sum(revealed) == entries
    assert len(revealed) == min(steps, entries)
    assert all(n >= 1 for n in revealed)


@each_schedule
def test_one_step_and_as_many_steps_as_entries(schedule):
    assert step_counts(100, 1, schedule) == [100]
    assert step_counts(100, 100, schedule) == [1] * 100
    assert step_counts(1, 7, schedule) == [1]
    assert step_counts(20, 10, "linear") == [2] * 10  # 20 * (1 - 9 / 10) is a little less than 2 in float64


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**30), st.sampled_from(SCHEDULES))
def test_masks_have_exactly_the_share_of_what_may_be_masked(batch, entries, seed, schedule):
    rng = torch.Generator().manual_seed(seed)
    maskable = torch.rand(batch, entries, generator=rng) < 0.7
    scores = (torch.rand(batch, entries, generator=rng) * 4).floor()  # ties everywhere
    shares = masked_shares(torch.rand(batch, generator=rng), schedule, entries)
    masked = random_mask(maskable, shares, scores)
    assert not (masked & ~maskable).any()
    for row in range(batch):
        n = int(maskable[row].sum())
        wanted = min(n, max(1, math.ceil(float(shares[row]) * n - 1e-9)))
        assert int(masked[row].sum()) == wanted
        if 0 < wanted < n:  # and they are the lowest scores
            assert scores[row][masked[row]].max() <= scores[row][maskable[row] & ~masked[row]].min()


def test_each_sample_has_a_share_of_its_own_that_follows_the_schedule():
    """E[cos(pi r / 2)] = E[2 arccos(r) / pi] = 2 / pi for r uniform in [0, 1), E[1 - r] = 1/2, E[1 - r^2] = 2/3."""
    for schedule, mean in (("cosine", 2 / math.pi), ("arccos", 2 / math.pi), ("linear", 0.5), ("square", 2 / 3)):
        shares = masked_shares(torch.rand(4000, generator=torch.Generator().manual_seed(0)), schedule, 256)
        assert len(shares.unique()) > 3900
        assert abs(shares.mean().item() - mean) < 0.02


def test_the_whole_grid_is_masked_at_times():
    """Sampling begins there. For 16 cells and the cosine, P(share > 15/16) = 2 arccos(15/16) / pi = 0.226."""
    rng = torch.Generator().manual_seed(0)
    shares = masked_shares(torch.rand(2000, generator=rng), "cosine", 16)
    masked = random_mask(torch.ones(2000, 16, dtype=torch.bool), shares, torch.rand(2000, 16, generator=rng))
    assert abs(masked.all(1).float().mean().item() - 2 / math.pi * math.acos(15 / 16)) < 0.03


def test_of_equal_scores_the_first_are_chosen():
    assert first_ranked(torch.zeros(1, 5), torch.tensor([2])).tolist() == [[True, True, False, False, False]]
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert first_ranked(scores, torch.tensor([2, 0])).tolist() == [[False, True, False, True], [False] * 4]


def radical_inverse(i, base):
    total, scale = Fraction(0), Fraction(1, base)
    while i:
        total += i % base * scale
        i, scale = i // base, scale / base
    return total


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 16, 16), (3, 4, 6), (5, 8, 8), (1, 1, 1), (1, 7, 3), (2, 1, 9)])
def test_the_halton_order_is_its_definition(grid):
    t, h, w = grid
    order, i = [], 0
    while len(order) < t * h * w:
        i += 1
        frame, row, column = (int(radical_inverse(i, b) * n) for b, n in ((5, t), (2, h), (3, w)))
        cell = (frame * h + row) * w + column
        if cell not in order:
            order.append(cell)
    assert halton_order(grid).tolist() == order


def test_the_first_cells_of_the_halton_order_by_hand():
    """Rows 1/2, 1/4, 3/4, 1/8 of 4; columns 1/3, 2/3, 1/9, 4/9 of 3: cells (2,1), (1,2), (3,0), (0,1)."""
    assert halton_order((1, 4, 3))[:4].tolist() == [7, 5, 9, 1]


@pytest.mark.parametrize("grid", [(1, 16, 16), (5, 16, 16), (1, 32, 17)])
def test_the_halton_order_has_every_cell_once(grid):
    assert sorted(halton_order(grid).tolist()) == list(range(math.prod(grid)))


def test_a_cell_is_hinted_as_long_as_a_part_of_it_is_masked():
    ids = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    hinted = torch.tensor([[[[True, True], [True, False]]]])
    prompt = Prompt(ids, torch.zeros_like(hinted), hinted, Condition())
    masked = torch.tensor([[[True, True], [False, True], [False, False], [True, True]]])
    inputs = masked_input(torch.zeros(1, 1, 2, 2, 2, dtype=torch.int64), masked, prompt, [0])
    assert inputs.hinted is not None
    assert inputs.hinted.tolist() == [[[[True, True], [False, False]]]]
