"""Factorized vocabularies: an id as a few sub-tokens, each made of whole digits.

An id is the digits of a token in mixed radix. Its digits are shared out among groups; the digits of group g, again in
mixed radix, are sub-token g: `0 <= subtoken[g] < sizes[g]` with `prod(sizes) = codebook_size`. A model then needs
sum(sizes) outputs where a flat one needs prod(sizes): 1,024 and 262,144 for 18 bits in two groups of nine. No digit is
ever cut in two, so a sub-token names a value in every channel of its group. Integer arithmetic throughout.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from smalti.video import to_int64

LARGEST_SUBTOKEN = 8192
"""Most values of a sub-token in default groups, which are as few as this allows."""


class _Run(NamedTuple):
    """Digits that are neighbours in the id and in the sub-token."""

    in_id: int
    in_subtoken: int
    size: int


class Factorization:
    """A bijection between ids and sub-tokens. Raises ValueError unless groups hold every digit exactly once."""

    def __init__(self, levels: Sequence[int], groups: Sequence[Sequence[int]] | None = None) -> None:
        self.levels = tuple(levels)
        """Values of each digit, digit 0 least significant in the id."""
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"every digit needs at least 2 levels (found {list(self.levels)})")
        self.codebook_size = math.prod(self.levels)
        if self.codebook_size > 2**62:
            raise ValueError(f"{self.codebook_size:,} codes are more than 2^62, the most that an id can name")
        self.groups = _fewest(self.levels) if groups is None else tuple(tuple(group) for group in groups)
        """Digits of each group, least significant in the sub-token first."""
        if sorted(j for group in self.groups for j in group) != list(range(len(self.levels))) or () in self.groups:
            lists = [list(group) for group in self.groups]
            raise ValueError(f"groups must hold each of the {len(self.levels)} digits exactly once (found {lists})")
        self.sizes = tuple(math.prod(self.levels[j] for j in group) for group in self.groups)
        """Values of each sub-token."""
        self._runs = tuple(_runs(self.levels, group) for group in self.groups)

    def split(self, ids: Int[Tensor, "*b"], *, check: bool = True) -> Int[Tensor, "*b g"]:
        """Split ids into sub-tokens. Raises BadTensor for an id outside [0, codebook_size), unless `check` is False,
        which waits for no device to see values."""
        ids = to_int64("ids", ids, 0, self.codebook_size if check else None, "this vocabulary")
        columns = [sum((ids // run.in_id % run.size * run.in_subtoken for run in runs), ids * 0) for runs in self._runs]
        return torch.stack(columns, -1)

    def join(self, subtokens: Int[Tensor, "*b g"]) -> Int[Tensor, "*b"]:
        """Join sub-tokens to ids. Raises BadTensor for a sub-token outside [0, sizes[g])."""
        ids = torch.zeros_like(subtokens[..., 0], dtype=torch.int64)
        for g, (runs, size) in enumerate(zip(self._runs, self.sizes, strict=True)):
            subtoken = to_int64(f"sub-token {g}", subtokens[..., g], 0, size, "this vocabulary")
            for run in runs:
                ids = ids + subtoken // run.in_subtoken % run.size * run.in_id
        return ids


def balanced(levels: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """Make `count` groups of digits of similar sizes; of digits with equal levels, group 0 has the first.

    Digits go, the largest first, to the group that is smallest so far: 2^18 becomes 512 x 512, (8, 8, 8, 5, 5, 5)
    becomes 320 x 200, (8, 8, 8, 6, 5) becomes 64 x 240.
    """
    sizes = [1] * count
    shares: list[list[int]] = [[] for _ in range(count)]
    for level in sorted(levels, reverse=True):
        smallest = sizes.index(min(sizes))
        sizes[smallest] *= level
        shares[smallest].append(level)
    free = {level: [j for j, other in enumerate(levels) if other == level] for level in set(levels)}
    return tuple(tuple(sorted(free[level].pop(0) for level in share)) for share in shares)


def _fewest(levels: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    for count in range(1, len(levels) + 1):
        groups = balanced(levels, count)
        if all(math.prod(levels[j] for j in group) <= LARGEST_SUBTOKEN for group in groups):
            return groups
    return tuple((j,) for j in range(len(levels)))


def _runs(levels: tuple[int, ...], group: tuple[int, ...]) -> tuple[_Run, ...]:
    runs: list[_Run] = []
    weight = 1
    for before, j in zip((None, *group), group, strict=False):
        if before is not None and j == before + 1:
            runs[-1] = runs[-1]._replace(size=runs[-1].size * levels[j])
        else:
            runs.append(_Run(math.prod(levels[:j]), weight, levels[j]))
        weight *= levels[j]
    return tuple(runs)
