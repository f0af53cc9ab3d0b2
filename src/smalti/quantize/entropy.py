"""Entropies of soft digits, exact over the whole codebook.

With p(code | z) ~ exp(-|z - code|^2 / temperature) the channels are independent given z, so

- the token entropy, E_z[H(p(. | z))], is a sum over channels;
- the batch entropy, H(E_z[p(. | z)]), is not, but the marginal over all prod(levels) codes is one matrix product: split
  the channels in two parts A and B, then E_z[p] = P_A^T P_B / n, where the rows of P_A and P_B are the joint
  distributions of the parts. For 2^18 codes that is two n x 512 matrices in place of one n x 262,144.

Everything is in natural logarithms (nats) and starts from log probabilities.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

_ABSENT = -1e30
"""Logit of a level that a channel does not have: its probability is 0, and 0 * -1e30 is 0 where 0 * -inf is NaN."""
_CHUNK = 1 << 22
"""Floats in the joint distributions of one chunk of rows (16 MB); the rest of the batch waits, so memory is bounded."""

WholeCode = Callable[[Tensor], Tensor]
"""Map from the mean soft code of a part of a batch to that of the whole batch."""


def soft_digits(
    z: Float[Tensor, "n d"], values: Float[Tensor, "d l"], levels: Sequence[int], temperature: float
) -> Float[Tensor, "n d l"]:
    """Log probabilities of each channel's levels at each of n positions."""
    rows = z.unsqueeze(-1)
    # -(z - v)^2 without its z^2, which softmax drops: no cancellation for large z.
    logits = (2 * rows * values - values.square()) / temperature
    width = values.shape[1]
    if min(levels) < width:
        # Without a table that would be copied to a GPU, which waits.
        places = torch.arange(width, device=z.device)
        absent = torch.stack([places >= level for level in levels])
        logits = logits.masked_fill(absent, _ABSENT)
    return logits.log_softmax(-1)


def token_entropy(log_p: Float[Tensor, "n d l"]) -> Float[Tensor, ""]:
    """Mean over positions of the entropy of the soft code at that position, in nats; small when digits are sure."""
    return -(log_p.exp() * log_p).sum((1, 2)).mean()


def batch_entropy(
    log_p: Float[Tensor, "n d l"], levels: Sequence[int], whole: WholeCode | None = None
) -> Float[Tensor, ""]:
    """Entropy of the mean soft code over the batch and over all ranks, in nats.

    At most min(token entropy + log n, log prod(levels)) for n positions: the entropy of a mean exceeds the mean of the
    entropies by the information that the position has about the code, which is at most log n. The soft codes of few
    positions can be as wide as the codebook, so log n alone bounds it only for digits that are sure.

    `whole` turns the mean soft code of these positions, which are a part of a batch, into that of the whole batch. With
    the values of the whole and the gradient of the part, the gradients of the parts, weighted by their shares, are the
    gradient of the whole: d H(m) = -sum (log m + 1) dm is linear in dm.
    """
    marginal = mean_code(log_p, levels) if whole is None else whole(_mean_of_joints(log_p, levels))
    # At p = 0 the gradient of -p log p is infinite, but it only ever meets a zero: any finite stand-in gives the limit.
    return -(marginal * marginal.clamp_min(torch.finfo(marginal.dtype).tiny).log()).sum()


def mean_code(log_p: Float[Tensor, "n d l"], levels: Sequence[int]) -> Float[Tensor, "a b"]:
    """The mean distribution over all codes, a matrix over the two parts of the channels; over ranks, differentiable."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return _mean_of_joints(log_p, levels)
    total: Tensor = _SumOfJoints.apply(log_p, tuple(levels))  # type: ignore[no-untyped-call, unused-ignore]
    count = torch.tensor(float(log_p.shape[0]), dtype=total.dtype, device=total.device)
    total, count = (_SumOverRanks.apply(x) for x in (total, count))  # type: ignore[no-untyped-call, unused-ignore]
    return total / count


def _mean_of_joints(log_p: Tensor, levels: Sequence[int]) -> Tensor:
    total: Tensor = _SumOfJoints.apply(log_p, tuple(levels))  # type: ignore[no-untyped-call, unused-ignore]
    return total / float(log_p.shape[0])


def halves(levels: Sequence[int]) -> int:
    """Where to cut the channels so that the joint distributions of the two parts have the fewest entries."""
    return min(range(len(levels) + 1), key=lambda cut: math.prod(levels[:cut]) + math.prod(levels[cut:]))


def _joint(p: Tensor, levels: Sequence[int]) -> Tensor:
    """The joint distribution of independent channels, one row a position: n x prod(levels)."""
    joint = p.new_ones(p.shape[0], 1)
    for j, level in enumerate(levels):
        joint = (joint[:, :, None] * p[:, j, None, :level]).flatten(1)
    # Denormal numbers make a matrix product up to 24 times slower; two numbers above this bound have a normal product.
    return torch.threshold(joint, torch.finfo(p.dtype).tiny ** 0.4, 0.0)


def _incidence(levels: Sequence[int], width: int, like: Tensor) -> Tensor:
    """One row a joint state, one column a (channel, level): 1 where the state has that level there."""
    digits = torch.cartesian_prod(*(torch.arange(level, device=like.device) for level in levels))
    digits = digits.view(-1, len(levels), 1)
    return (digits == torch.arange(width, device=like.device)).flatten(1).to(like.dtype)  # `one_hot` looks at values


class _SumOfJoints(torch.autograd.Function):
    """Sum over positions of the outer product of the two joint distributions, which live for one chunk at a time."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, levels: tuple[int, ...]) -> Tensor:
        cut = halves(levels)
        ctx.save_for_backward(log_p)
        ctx.levels, ctx.cut = levels, cut
        a, b = math.prod(levels[:cut]), math.prod(levels[cut:])
        total = log_p.new_zeros(a, b)
        for rows in log_p.split(max(1, _CHUNK // (a + b))):
            p = rows.exp()
            total.addmm_(_joint(p[:, :cut], levels[:cut]).T, _joint(p[:, cut:], levels[cut:]))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (log_p,) = ctx.saved_tensors
        levels, cut, gradient = ctx.levels, ctx.cut, gradients[0]
        width = log_p.shape[2]
        out = torch.empty_like(log_p)
        a, b = math.prod(levels[:cut]), math.prod(levels[cut:])
        parts = [(slice(0, cut), levels[:cut]), (slice(cut, None), levels[cut:])]
        incidences = [_incidence(part, width, log_p) if part else None for _, part in parts]
        size = max(1, _CHUNK // (a + b))
        for rows, target in zip(log_p.split(size), out.split(size), strict=True):
            p = rows.exp()
            joint_a, joint_b = (_joint(p[:, where], part) for where, part in parts)
            weighted = (joint_b @ gradient.T * joint_a, joint_a @ gradient * joint_b)
            for (where, part), share, incidence in zip(parts, weighted, incidences, strict=True):
                if incidence is not None:
                    target[:, where] = (share @ incidence).view(len(rows), len(part), width)
        return out, None


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too (each rank's loss depends on every rank's positions)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient
