"""Schedules of the masked share, exact counts, and the masks of training (MaskGIT, arXiv 2202.04200; MAGVIT-v2)."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Schedule = Literal["cosine", "arccos", "linear", "square", "exponential"]
Unit = Literal["token", "part"]
"""What is masked and revealed at once: all parts of a token together, or each part on its own (MaskBit)."""

_ROUNDING = 1e-9
"""Of float64 products that should be whole."""


def masked_share(schedule: Schedule, progress: float, entries: int) -> float:
    """The share of `entries` that is masked at a progress r in [0, 1]; falls from 1 to 0.

    cosine cos(pi r / 2); arccos 2 arccos(r) / pi; linear 1 - r; square 1 - r^2; exponential 1 - entries^(r - 1), which
    begins at 1 - 1/entries.
    """
    if schedule == "cosine":
        return max(0.0, math.cos(math.pi * progress / 2))
    if schedule == "arccos":
        return 2 / math.pi * math.acos(progress)
    if schedule == "linear":
        return 1 - progress
    if schedule == "square":
        return 1 - progress**2
    return float(1 - entries ** (progress - 1))


def counts(entries: int, steps: int, schedule: Schedule) -> list[int]:
    """How many entries each sampling step reveals: all at least 1, their sum is `entries`.

    After step k of K, floor(entries * share(k / K)) are still masked, but never more than leaves one for every step
    and never fewer than leaves one for each step to come. More steps than entries are as many steps as entries; no
    entries are no steps.
    """
    steps = min(steps, entries)
    masked, revealed = entries, []
    for step in range(1, steps + 1):
        left = math.floor(entries * masked_share(schedule, step / steps, entries) + _ROUNDING)
        left = min(max(left, steps - step), masked - 1)
        revealed.append(masked - left)
        masked = left
    return revealed


def masked_shares(progress: Float[Tensor, "b"], schedule: Schedule, entries: int) -> Float[Tensor, "b"]:
    """The masked share of each sample at its progress, in float64."""
    shares = [masked_share(schedule, r, entries) for r in progress.tolist()]
    return torch.tensor(shares, dtype=torch.float64, device=progress.device)


def random_mask(
    maskable: Bool[Tensor, "b e"], shares: Float[Tensor, "b"], scores: Float[Tensor, "b e"]
) -> Bool[Tensor, "b e"]:
    """Of the n entries of a sample that may be masked, the ceil(share * n) with the lowest scores, at least 1.

    Rounded up, so that the grid without any known token, where sampling begins, is among what is trained on. Exact:
    equal scores go by index.
    """
    available = maskable.sum(1)
    wanted = (shares.to(maskable.device, torch.float64) * available - _ROUNDING).ceil().long()
    return first_ranked(scores.masked_fill(~maskable, math.inf), wanted.clamp_min(1).minimum(available))


def first_ranked(scores: Float[Tensor, "b e"], wanted: Tensor) -> Bool[Tensor, "b e"]:
    """True at the `wanted[b]` lowest scores of each row; of equal scores, those that stand first."""
    order = scores.sort(dim=1, stable=True).indices
    chosen = torch.arange(scores.shape[1], device=scores.device) < wanted[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)
