"""The adaptive model: counts of a symbol by its neighbours in space and in time. Integers alone, so exact anywhere.

A plane is visited from coarse to fine: every eighth position first, then those between, so that most symbols are coded
when all their neighbours are known. A visit is one call of the coder: tables are fixed within it and learn after it.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

COARSEST = 8
"""Distance between the positions of the first visit, down and across."""
FINEST, COARSE = 16, 4
"""Contexts tell all values of a neighbour apart in alphabets up to the first size, and so many classes above it."""
_ONE = 1 << 16
"""Fixed point: a probability of 1."""
_FIRST, _ALONE, _BOTH = 4, 16, 32
"""Strengths of priors, in symbols: the uniform one, the order-0 one, that of both neighbourhoods."""


class Visit(NamedTuple):
    """Positions of a plane that are coded in one call."""

    at: Integers
    """`n`: row * width + column."""
    neighbours: Integers
    """`n 4`: positions that are known by then; -1 beyond the edge. `n 0` in the first visit."""


@cache
def visits(height: int, width: int) -> tuple[Visit, ...]:
    """List every position of a plane once: those of the coarsest grid, then the middles of its squares, then the
    middles of the sides of those, with half the grid again and again; visits without positions are left out."""
    grid = [np.arange(0, n, COARSEST) for n in (height, width)]
    found = [_visit([tuple(grid)], (), height, width)]
    step = COARSEST // 2
    while step:
        even = [np.arange(0, n, 2 * step) for n in (height, width)]
        odd = [np.arange(step, n, 2 * step) for n in (height, width)]
        corners = ((-step, -step), (-step, step), (step, -step), (step, step))
        sides = ((-step, 0), (step, 0), (0, -step), (0, step))
        found.append(_visit([(odd[0], odd[1])], corners, height, width))
        found.append(_visit([(even[0], odd[1]), (odd[0], even[1])], sides, height, width))
        step //= 2
    return tuple(visit for visit in found if visit.at.size)


def _visit(grids: list[tuple[Integers, ...]], offsets: tuple[tuple[int, int], ...], height: int, width: int) -> Visit:
    rows = np.concatenate([np.repeat(y, len(x)) for y, x in grids])
    columns = np.concatenate([np.tile(x, len(y)) for y, x in grids])
    neighbours = np.full((rows.size, len(offsets)), -1, np.int64)
    for i, (down, right) in enumerate(offsets):
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        neighbours[inside, i] = (y * width + x)[inside]
    return Visit(rows * width + columns, neighbours)


class Contexts:
    """Counts of one symbol by context: (class of the value before it in time, twice the mean of its neighbours).

    The probabilities of a context are shrunk towards those without it, in steps: uniform, all values, those of
    either neighbourhood, the product of these, those of both. A context that was never seen costs no more than they do.
    """

    def __init__(self, size: int) -> None:
        self._size, self._classes = size, size if size <= FINEST else COARSE
        self._counts = np.zeros((self._classes + 1, 2 * self._classes, size), np.int64)

    def rows(self, plane: Integers, before: Integers | None, visit: Visit) -> Integers:
        """Return the context of each position of a visit, a row of `weights`; `before` is the last plane."""
        time = np.full(visit.at.size, self._classes) if before is None else self._class(before[visit.at])
        there = visit.neighbours >= 0
        count = there.sum(1)
        total = np.where(there, self._class(plane[visit.neighbours]), 0).sum(1)
        space = np.where(count > 0, 1 + (4 * total + count) // np.maximum(1, 2 * count), 0)
        return time * self._counts.shape[1] + space

    def weights(self) -> Integers:
        """Return positive integers for every context and value, `contexts size`."""
        counts = self._counts
        anywhere = _shrunk(counts.sum((0, 1)), np.full(self._size, _ONE // self._size), _FIRST)
        space = _shrunk(counts.sum(0), anywhere, _ALONE)
        time = _shrunk(counts.sum(1), anywhere, _ALONE)
        product = time[:, None] * space // anywhere
        product = np.maximum(1, product * _ONE // product.sum(-1, keepdims=True))
        return _shrunk(counts, product, _BOTH).reshape(-1, self._size)

    def learn(self, rows: Integers, symbols: Integers) -> None:
        """Count the symbols of a visit."""
        seen = np.bincount(rows * self._size + symbols, minlength=self._counts.size)
        self._counts += seen.reshape(self._counts.shape)

    def _class(self, values: Integers) -> Integers:
        return values if self._classes == self._size else values * self._classes // self._size


def _shrunk(counts: Integers, prior: Integers, strength: int) -> Integers:
    """(counts + strength * prior) / (all + strength) in fixed point, at least 1."""
    return np.maximum(1, (counts * _ONE + strength * prior) // (counts.sum(-1, keepdims=True) + strength))
