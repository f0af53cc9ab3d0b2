"""The inception score (Salimans et al. 2016, arXiv 1606.03498): sure of each picture, unsure of all together."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class InceptionScore(NamedTuple):
    """The mean over the parts of a set, and their standard deviation (divided by the number of parts)."""

    mean: float
    std: float


def inception_score(logits: Float[Tensor, "n c"], splits: int = 10) -> InceptionScore:
    """exp(H(mean of p) - mean of H(p)) with p = softmax(logits), in float64, of each of `splits` parts in order.

    That is exp of the mean divergence of p from its mean, at most the number of classes. Part i has the vectors from
    floor(i n / splits) on, as in the authors' code. Raises ValueError for fewer vectors than parts.
    """
    if not 0 < splits <= len(logits):
        raise ValueError(f"an inception score of {splits} parts needs as many vectors, got {len(logits)}")
    p = logits.double().softmax(1)
    ends = [i * len(p) // splits for i in range(splits + 1)]
    scores = torch.stack([_score(p[a:b]) for a, b in pairwise(ends)])
    return InceptionScore(scores.mean().item(), scores.std(correction=0).item())


def _score(p: Tensor) -> Tensor:
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()).exp()
