"""Codebook usage: how many codes occur, how evenly, and at how many bits per pixel."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.config import Config, Tuple

DENSE = 1 << 18
"""Largest codebook counted in a table (2 MB); of a larger one only the ids that occur are stored."""


class CodebookUse(Config):
    """The statistics of a sample of ids."""

    codebook_size: int
    tokens: int
    distinct: int
    """Number of different ids that occurred."""
    share: float
    """distinct / codebook_size. A small sample cannot reach 1: compare `distinct` with `expected_distinct`."""
    expected_distinct: float
    """Number of different ids expected in a uniform sample of the same size."""
    entropy_bits: float
    """Entropy of the empirical distribution, at most log2(min(tokens, codebook_size))."""
    perplexity: float
    """2 ** entropy_bits: the number of equally used codes that would carry as much."""
    bits_per_pixel: float | None
    """Bits per pixel at log2(codebook_size) bits a token; None if the number of pixels is not known."""
    entropy_bits_per_pixel: float | None
    """Bits per pixel at entropy_bits a token: an ideal memoryless coder that knows these frequencies."""
    digits: Tuple[Tuple[int]]
    """digits[j][v]: how often digit j had the value v."""


class Usage:
    """Counts of ids, mixed radix with digit 0 least significant; merging is associative and commutative, exactly."""

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = tuple(levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels must be integers of 2 or more, got {self.levels}")
        self.codebook_size = math.prod(self.levels)
        if self.codebook_size > 1 << 62:
            raise ValueError(f"levels {self.levels} make {self.codebook_size} codes, more than 2**62")
        size = self.codebook_size if self.codebook_size <= DENSE else 0
        self._ids = torch.arange(size)
        self._counts = torch.zeros(size, dtype=torch.int64)

    @property
    def tokens(self) -> int:
        """Number of ids counted."""
        return int(self._counts.sum())

    @property
    def distinct(self) -> int:
        """Number of different ids that occurred."""
        return int((self._counts > 0).sum())

    def update(self, ids: Int[Tensor, "..."]) -> None:
        """Count ids of any shape. Raises ValueError for an id outside 0 <= id < codebook_size."""
        if ids.numel() == 0:
            return
        flat = ids.detach().to("cpu", torch.int64).flatten()
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"ids from {low} to {high} are outside 0 <= id < {self.codebook_size}")
        self._absorb(*flat.unique(return_counts=True))

    def merge(self, other: "Usage") -> "Usage":
        """Return the sum of both counts; neither is changed."""
        if other.levels != self.levels:
            raise ValueError(f"usage of levels {self.levels} and {other.levels} cannot be merged")
        merged = Usage(self.levels)
        for part in (self, other):
            merged._absorb(part._ids, part._counts)
        return merged

    def tensors(self) -> dict[str, Tensor]:
        """Return the counts as tensors, to be sent; `of_tensors` reads them back."""
        present = self._counts > 0
        return {"ids": self._ids[present], "counts": self._counts[present]}

    @classmethod
    def of_tensors(cls, levels: Sequence[int], tensors: Mapping[str, Tensor]) -> "Usage":
        """Read counts of ids of these levels from what `tensors` returned."""
        usage = cls(levels)
        usage._absorb(tensors["ids"], tensors["counts"])
        return usage

    def histograms(self) -> tuple[tuple[int, ...], ...]:
        """Count how often digit j had the value v: histograms()[j][v]."""
        rest, rows = self._ids, []
        for level in self.levels:
            counts = torch.zeros(level, dtype=torch.int64).index_add_(0, rest % level, self._counts)
            rows.append(tuple(counts.tolist()))
            rest = rest // level
        return tuple(rows)

    def entropy_bits(self) -> float:
        """Compute -sum p log2 p of the empirical distribution; 0 for no tokens.

        It is below the true entropy by about (distinct - 1) / (2 n ln 2).
        """
        counts = self._counts[self._counts > 0].double()
        n = counts.sum()
        return max(0.0, float(torch.log2(n) - (counts * torch.log2(counts)).sum() / n)) if len(counts) else 0.0

    def summary(self, pixels: int | None = None) -> CodebookUse:
        """Compute all statistics; `pixels` (h · w · t, summed over what the ids stand for) gives the bits per pixel."""
        entropy, tokens = self.entropy_bits(), self.tokens
        return CodebookUse(
            codebook_size=self.codebook_size,
            tokens=tokens,
            distinct=self.distinct,
            share=self.distinct / self.codebook_size,
            expected_distinct=expected_distinct(self.codebook_size, tokens),
            entropy_bits=entropy,
            perplexity=2.0**entropy,
            bits_per_pixel=bits_per_pixel(self.codebook_size, tokens, pixels) if pixels else None,
            entropy_bits_per_pixel=entropy * tokens / pixels if pixels else None,
            digits=self.histograms(),
        )

    def _absorb(self, ids: Tensor, counts: Tensor) -> None:
        if self.codebook_size <= DENSE:
            self._counts = self._counts.index_add(0, ids, counts)
            return
        self._ids, where = torch.cat([self._ids, ids]).unique(return_inverse=True)
        both = torch.cat([self._counts, counts])
        self._counts = torch.zeros(len(self._ids), dtype=torch.int64).index_add_(0, where, both)


def expected_distinct(codebook_size: int, n: int) -> float:
    """Compute V (1 - (1 - 1/V)^n): different values in a uniform sample of n from V, also for V far above 2^53."""
    if codebook_size == 1:
        return float(min(n, 1))
    return -codebook_size * math.expm1(n * math.log1p(-1 / codebook_size))


def expected_perplexity(codebook_size: int, n: int) -> float:
    """Compute exp of the mean empirical entropy of a uniform sample of n from V: the ceiling of `perplexity`.

    The entropy is ln n - (V / n) E[k ln k] with k binomial (n, 1/V).
    """
    if n == 0 or codebook_size == 1:
        return 1.0
    log_hit, log_miss, mean = -math.log(codebook_size), math.log1p(-1 / codebook_size), 0.0
    for k in range(2, n + 1):
        log_ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        term = math.exp(log_ways + k * log_hit + (n - k) * log_miss) * k * math.log(k)
        mean += term
        if k > n / codebook_size + 1 and term < 1e-15 * mean:  # beyond the mode the terms only fall
            break
    return n * math.exp(-codebook_size / n * mean)


def bits_per_pixel(codebook_size: int, tokens: int, pixels: int) -> float:
    """Compute log2(codebook_size) · tokens / pixels, pixels = h · w · t."""
    return math.log2(codebook_size) * tokens / pixels
