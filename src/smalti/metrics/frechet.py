"""Moments of feature vectors, and the Fréchet distance between two of them (FID, FVD and their relatives)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Count, mean and scatter of vectors, streamed in float64; batches change nothing but rounding.

    Merging is associative and commutative (Chan, Golub, LeVeque 1983):
    M = M_a + M_b + δδᵀ n_a n_b / n with δ = mean_b - mean_a.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)
        """Sum of outer products about the mean."""

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Add `n` vectors. Raises ValueError for another width, or for values that are not finite."""
        if features.shape[1] != self.dim:
            raise ValueError(f"features are {features.shape[1]} wide, these moments {self.dim}")
        if not features.isfinite().all():
            raise ValueError("features hold values that are not finite")
        if len(features) == 0:
            return
        features = features.detach().to("cpu", torch.float64)
        mean = features.mean(0)
        centred = features - mean
        self._absorb(len(features), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together; neither is changed."""
        if other.dim != self.dim:
            raise ValueError(f"moments of width {self.dim} and {other.dim} cannot be merged")
        merged = Moments(self.dim)
        for part in (self, other):
            merged._absorb(part.n, part.mean, part.scatter)
        return merged

    def tensors(self) -> dict[str, Tensor]:
        """Return all moments as tensors, to be stored or sent; `of_tensors` reads them back bit for bit."""
        return {"n": torch.tensor(self.n), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        """Read what `tensors` returned. Raises ValueError for anything else."""
        n, mean, scatter = (tensors.get(name) for name in ("n", "mean", "scatter"))
        if n is None or mean is None or scatter is None or n.shape != () or mean.ndim != 1:
            raise ValueError("no moments: n, mean and scatter are needed")
        whole = mean.dtype == scatter.dtype == torch.float64 and bool(
            mean.isfinite().all() and scatter.isfinite().all()
        )
        if scatter.shape != (len(mean), len(mean)) or not whole or n < 0:
            raise ValueError("no moments: of other types, sizes, or not finite")
        moments = cls(len(mean))
        moments.n, moments.mean, moments.scatter = int(n), mean, scatter
        return moments

    def covariance(self) -> Float[Tensor, "d d"]:
        """Return the unbiased covariance, divided by n - 1. Raises ValueError below two vectors."""
        if self.n < 2:
            raise ValueError(f"a covariance needs 2 samples or more, got {self.n}")
        return self.scatter / (self.n - 1)

    def _absorb(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if n == 0:
            return
        total = self.n + n
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total


class FrechetDistance(NamedTuple):
    """A distance and what it rests on."""

    distance: float
    means: float
    """Part of the distance that the means contribute, |μ_a - μ_b|²."""
    covariances: float
    """Part of the distance that the covariances contribute: the rest."""
    n_a: int
    n_b: int
    dim: int
    warning: str | None
    """Reason why the figure should not be quoted, or None."""


def frechet_distance(a: Moments, b: Moments) -> FrechetDistance:
    """Compute |μ_a - μ_b|² + tr(A + B - 2 (A^½ B A^½)^½), with A, B the covariances (Dowson and Landau 1982).

    With symmetric factors A = F Fᵀ and B = G Gᵀ from eigenvalues, the trace of the root is the sum of the singular
    values of Fᵀ G. Nothing complex appears, and no root is taken of a rounded zero: where n <= dim the usual forms lose
    half the digits (1e-8 relative), this one none. Biased upward by about 1/n: compare only figures of equal n.
    Raises ValueError below two samples.
    """
    if a.dim != b.dim:
        raise ValueError(f"moments of width {a.dim} and {b.dim} cannot be compared")
    cov_a, cov_b = a.covariance(), b.covariance()
    overlap = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    means = ((a.mean - b.mean) ** 2).sum().item()
    # Rounding can leave -1e-11 for equal sets; the distance is never negative.
    covariances = max(0.0, (cov_a.trace() + cov_b.trace() - 2 * overlap).item())
    fewest = min(n for n in (a.n, b.n) if n)  # 0 is not known
    warning = f"{fewest} samples for {a.dim} dimensions: a covariance is singular" if fewest <= a.dim else None
    return FrechetDistance(means + covariances, means, covariances, a.n, b.n, a.dim, warning)


def _factor(covariance: Tensor) -> Tensor:
    """Return F with F Fᵀ = covariance; eigenvalues within rounding of zero are zero."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.max() * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > noise, values, 0).sqrt()


class Interval(NamedTuple):
    """A confidence interval of a distance, and the resamples behind it."""

    low: float
    high: float
    resamples: int


def frechet_interval(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], resamples: int = 100, seed: int = 0, share: float = 0.95
) -> Interval:
    """Compute a bootstrap interval of the distance of two sets of features (Efron 1979).

    Each resample takes n vectors of `a` and m of `b` with replacement. Repeated vectors raise the distance, as fewer
    samples would, so the distances of resamples are centred on the estimate: the interval is the estimate plus the
    quantiles of their deviations from their mean. It tells how far another sample of the same size would move the
    figure; the bias of the size itself stays in it. Raises ValueError below two vectors or two resamples.
    """
    if min(len(a), len(b)) < 2 or resamples < 2:
        raise ValueError(f"an interval needs 2 vectors of both sets and 2 resamples (found {len(a)}, {len(b)})")
    rng = torch.Generator().manual_seed(seed)
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    distances = torch.tensor(
        [_distance_of(*(x[torch.randint(len(x), (len(x),), generator=rng)] for x in (a, b))) for _ in range(resamples)],
        dtype=torch.float64,
    )
    ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    low, high = (_distance_of(a, b) + torch.quantile(distances - distances.mean(), ends)).tolist()
    return Interval(max(0.0, low), high, resamples)


def _distance_of(a: Tensor, b: Tensor) -> float:
    """Compute the distance of two sets of vectors; with n vectors of d < n features, from their n x d matrices."""
    means, factors = [x.mean(0) for x in (a, b)], []
    for x, mean in zip((a, b), means, strict=True):
        rows = (x - mean) / (len(x) - 1) ** 0.5
        # Covariance F F^T: F = rows^T, or the triangle of rows = Q R, which is smaller where n > d.
        factors.append((torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows).T)
    traces = sum(float(factor.square().sum()) for factor in factors)
    overlap = float(torch.linalg.svdvals(factors[0].T @ factors[1]).sum())
    return float(((means[0] - means[1]) ** 2).sum()) + max(0.0, traces - 2 * overlap)
