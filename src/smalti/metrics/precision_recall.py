"""Precision, recall, density and coverage: how a generated set covers a real one, by nearest neighbours of features.

The neighbourhood of a vector reaches as far as its kth nearest neighbour in its own set. Precision and recall
(Kynkäänniemi et al. 2019, k = 3; the edge is included, as in their paper): the share of generated vectors in any real
neighbourhood, and the share of real vectors in any generated one. Density and coverage (Naeem et al. 2020, k = 5; the
edge is not included, as in their code): the number of real neighbourhoods that a generated vector lies in, over k, on
average; and the share of real neighbourhoods that hold any generated vector.

All distances are computed, in float64, a block at a time. They come from products, which lose digits where two vectors
are near, so whatever lies within 1e-12 of an edge, in squared lengths from the mean, counts as at the edge.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_EDGE = 1e-12


class Neighbourhoods(NamedTuple):
    """Vectors with the squared distance of each to its kth nearest neighbour among the others."""

    centres: Float[Tensor, "n d"]
    radii: Float[Tensor, "n"]
    """Squared distances."""
    k: int
    block: int = 1 << 23
    """Distances computed at once: 64 MB each of two or three copies."""

    @classmethod
    def of(cls, vectors: Float[Tensor, "n d"], k: int, block: int = 1 << 23) -> "Neighbourhoods":
        """Measure the neighbourhoods of a set. Raises ValueError unless it has more than k vectors."""
        if not 0 < k < len(vectors):
            raise ValueError(f"the neighbour number {k} needs more vectors than that, got {len(vectors)}")
        centres = vectors.double()
        # The nearest of all is the vector itself.
        nearest = (part.topk(k + 1, 1, largest=False).values for part in _distances(centres, centres, block))
        return cls(centres, torch.cat([part.amax(1) for part in nearest]), k, block)


class InsideCounts(NamedTuple):
    """How vectors lie in neighbourhoods, counted from both sides."""

    neighbourhoods: Int[Tensor, "m"]
    """In how many neighbourhoods each vector lies."""
    vectors: Int[Tensor, "n"]
    """How many vectors each neighbourhood holds."""


def count_inside(hoods: Neighbourhoods, vectors: Float[Tensor, "m d"], *, closed: bool) -> InsideCounts:
    """Count vectors in neighbourhoods; a vector exactly at the edge counts if they are `closed`."""
    vectors = vectors.double()
    by_vector, by_hood = [], torch.zeros(len(hoods.centres), dtype=torch.int64)
    for part in _distances(vectors, hoods.centres, hoods.block, _EDGE if not closed else -_EDGE):
        within = part <= hoods.radii if closed else part < hoods.radii
        by_vector.append(within.sum(1))
        by_hood += within.sum(0)
    return InsideCounts(torch.cat(by_vector), by_hood)


class PrecisionRecall(NamedTuple):
    """Precision and recall of Kynkäänniemi et al., arXiv 1904.06991."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density and coverage of Naeem et al., arXiv 2002.09797."""

    density: float
    """May exceed 1."""
    coverage: float


def precision_recall(real: Neighbourhoods, generated: Float[Tensor, "m d"]) -> PrecisionRecall:
    """Compute the share of generated vectors near real ones, and of real vectors near generated ones.

    Raises ValueError if there are no more than k generated vectors.
    """
    back = count_inside(Neighbourhoods.of(generated, real.k, real.block), real.centres, closed=True)
    there = count_inside(real, generated, closed=True)
    return PrecisionRecall(_share_above_zero(there.neighbourhoods), _share_above_zero(back.neighbourhoods))


def density_coverage(real: Neighbourhoods, generated: Float[Tensor, "m d"]) -> DensityCoverage:
    """Compute how densely generated vectors lie among real ones, and what share of the real ones they reach."""
    counts = count_inside(real, generated, closed=False)
    density = counts.neighbourhoods.double().mean().item() / real.k
    return DensityCoverage(density, _share_above_zero(counts.vectors))


def _share_above_zero(counts: Tensor) -> float:
    return (counts > 0).double().mean().item()


def _distances(vectors: Tensor, others: Tensor, block: int, more: float = 0.0) -> Iterator[Float[Tensor, "_ n"]]:
    """Yield squared distances of some vectors to all others, each longer by `more` of the two squared lengths."""
    middle = others.mean(0)
    others = others - middle
    lengths = (others**2).sum(1) * (1 + more)
    for part in (vectors - middle).split(max(1, block // len(others))):
        own = (part**2).sum(1, keepdim=True) * (1 + more)
        yield torch.addmm(own + lengths, part, others.T, alpha=-2)
