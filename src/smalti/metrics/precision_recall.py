"""How a generated set covers a real one, by the nearest neighbours of their features.

Around every vector of a set lies a ball as far as its kth nearest neighbour in that set. Precision and recall
(Kynkäänniemi et al. 2019, k = 3), with closed balls as in their paper: the share of generated vectors in any ball of
the real set, and the share of real ones in any ball of the generated set. Density and coverage (Naeem et al. 2020,
k = 5), with open balls as in their code: the balls of the real set that a generated vector lies in, over k, on the
average; and the share of those balls that hold any.

Exact: all distances, in float64, a block at a time. They come from products, which lose digits where two vectors are
near, so what lies within 1e-12 of the edge of a ball, in squared lengths from the mean, counts as at the edge.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_DISTANCES = 1 << 23
"""At once: 64 MB each of two or three copies."""
_EDGE = 1e-12


class Balls(NamedTuple):
    """Vectors with the squared distance of each to its kth nearest neighbour among the others."""

    centres: Float[Tensor, "n d"]
    radii: Float[Tensor, "n"]
    k: int

    @classmethod
    def of(cls, vectors: Float[Tensor, "n d"], k: int) -> "Balls":
        """Raises ValueError where there are not more than k vectors."""
        if not 0 < k < len(vectors):
            raise ValueError(f"the neighbour number {k} needs more vectors than that, got {len(vectors)}")
        centres = vectors.double()
        # The nearest of all is the vector itself.
        parts = [part.topk(k + 1, 1, largest=False).values.amax(1) for part in _distances(centres, centres)]
        return cls(centres, torch.cat(parts), k)


class Inside(NamedTuple):
    """Which vectors lie in which balls, counted from both sides."""

    balls: Int[Tensor, "m"]
    """In how many balls each vector lies."""
    vectors: Int[Tensor, "n"]
    """How many vectors each ball holds."""


def inside(balls: Balls, vectors: Float[Tensor, "m d"], *, closed: bool) -> Inside:
    """Counts of vectors in balls; a vector at the very edge counts if they are `closed`."""
    vectors = vectors.double()
    of_vectors, of_balls = [], torch.zeros(len(balls.centres), dtype=torch.int64)
    for part in _distances(vectors, balls.centres, _EDGE if not closed else -_EDGE):
        within = part <= balls.radii if closed else part < balls.radii
        of_vectors.append(within.sum(1))
        of_balls += within.sum(0)
    return Inside(torch.cat(of_vectors), of_balls)


class PrecisionRecall(NamedTuple):
    """Of Kynkäänniemi et al., arXiv 1904.06991."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Of Naeem et al., arXiv 2002.09797."""

    density: float
    """May exceed 1."""
    coverage: float


def precision_recall(real: Balls, made: Float[Tensor, "m d"]) -> PrecisionRecall:
    """How much of what is made looks real, and how much of what is real could be made.

    Raises ValueError where a set is not larger than k.
    """
    back = inside(Balls.of(made, real.k), real.centres, closed=True)
    return PrecisionRecall(_share(inside(real, made, closed=True).balls), _share(back.balls))


def density_coverage(real: Balls, made: Float[Tensor, "m d"]) -> DensityCoverage:
    """How deep what is made lies among what is real, and how much of what is real it reaches."""
    found = inside(real, made, closed=False)
    return DensityCoverage(found.balls.double().mean().item() / real.k, _share(found.vectors))


def _share(counts: Tensor) -> float:
    return (counts > 0).double().mean().item()


def _distances(vectors: Tensor, others: Tensor, more: float = 0.0) -> Iterator[Float[Tensor, "_ n"]]:
    """Squared distances of a block of vectors to all others, each `more` of the two squared lengths longer."""
    middle = others.mean(0)
    others = others - middle
    lengths = (others**2).sum(1) * (1 + more)
    for part in (vectors - middle).split(max(1, _DISTANCES // len(others))):
        own = (part**2).sum(1, keepdim=True) * (1 + more)
        yield torch.addmm(own + lengths, part, others.T, alpha=-2)
