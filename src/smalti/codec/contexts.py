"""The adaptive model: counts of a symbol by its neighbours in space and in time. Integers alone, so exact anywhere.

A plane is visited from coarse to fine: every eighth position first, then those between, so that most symbols are coded
when all their neighbours are known. A visit is one call of the coder: tables are fixed within it and learn after it.

Whole numbers stand in float64, whose division is several times as fast as that of int64: every numerator is below 2^52,
and there the floor of the rounded quotient is the quotient of integers.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Float64 = NDArray[np.float64]
"""Whole numbers below 2^52."""

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
    """`4 n`: positions that are known by then; -1 beyond the edge. `0 n` in the first visit."""
    there: Integers
    """`n`: number of neighbours that are no -1."""


@cache
def visits(height: int, width: int) -> tuple[Visit, ...]:
    """List every position of a plane once: those of the coarsest grid, then the middles of its squares, then the
    middles of the sides of those, with half the grid again and again; visits without positions are left out."""
    grid = [np.arange(0, n, COARSEST) for n in (height, width)]
    steps = [_visit([tuple(grid)], (), height, width)]
    step = COARSEST // 2
    while step:
        even = [np.arange(0, n, 2 * step) for n in (height, width)]
        odd = [np.arange(step, n, 2 * step) for n in (height, width)]
        corners = ((-step, -step), (-step, step), (step, -step), (step, step))
        sides = ((-step, 0), (step, 0), (0, -step), (0, step))
        steps.append(_visit([(odd[0], odd[1])], corners, height, width))
        steps.append(_visit([(even[0], odd[1]), (odd[0], even[1])], sides, height, width))
        step //= 2
    return tuple(visit for visit in steps if visit.at.size)


def _visit(grids: list[tuple[Integers, ...]], offsets: tuple[tuple[int, int], ...], height: int, width: int) -> Visit:
    rows = np.concatenate([np.repeat(y, len(x)) for y, x in grids])
    columns = np.concatenate([np.tile(x, len(y)) for y, x in grids])
    neighbours = np.full((len(offsets), rows.size), -1, np.int64)
    for i, (down, right) in enumerate(offsets):
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        neighbours[i, inside] = (y * width + x)[inside]
    return Visit(rows * width + columns, neighbours, (neighbours >= 0).sum(0))


class Contexts:
    """Counts of one symbol by context: (class of the value before it in time, twice the mean of its neighbours).

    The probabilities of a context are shrunk towards those without it, in steps: uniform, all values, those of
    either neighbourhood, the product of these, those of both. A context that was never seen costs no more than they do.
    """

    def __init__(self, size: int) -> None:
        self._size, self._classes = size, size if size <= FINEST else COARSE
        times, self._spaces = self._classes + 1, 2 * self._classes
        self.contexts = times * self._spaces
        """Number of contexts."""
        self._time, self._space = self.contexts, self.contexts + times
        # A row for each context, each value before, each mean around, and one for all: no sum is ever taken anew.
        self._counts: Float64 = np.zeros((self._space + self._spaces + 1, size))  # in fixed point
        self._totals: Float64 = np.repeat([_BOTH, _ALONE, _FIRST], [self._time, times + self._spaces, 1])[:, None] * 1.0
        self._ones, self._first = np.ones(size), np.full(size, float(_FIRST * (_ONE // size)))
        means = np.arange(4 * self._classes)
        around = [np.zeros_like(means), *(1 + (4 * means + n) // (2 * n) for n in range(1, 5))]
        self._around = np.concatenate(around)  # by the number of neighbours and the sum of their classes
        every = np.arange(self.contexts)
        self._every = self._rows(every // self._spaces, every % self._spaces)

    def rows(self, plane: Integers, before: Integers | None, visit: Visit) -> Integers:
        """Return the rows of counts `4 n` of each position of a visit: its context's, those of the value before and of
        the mean around alone, that of all.

        `plane` has one value more than positions, a zero, where neighbours beyond the edge look; `before` is the last
        plane.
        """
        total = np.add.reduce(self._class(plane.take(visit.neighbours)))
        space = self._around.take(visit.there * (4 * self._classes) + total)
        time = np.full(visit.at.size, self._classes) if before is None else self._class(before.take(visit.at))
        return self._rows(time, space)

    def weights(self, rows: Integers | None = None) -> tuple[Float64, Integers | None]:
        """Return positive whole numbers for every value, `m size`, and which of the m belongs to each column of `rows`.

        They are made for these alone, one for each (None), or for all contexts where there are fewer of them, or
        without `rows`.
        """
        if rows is None or rows.shape[1] >= self.contexts:
            return self._weights(self._every), self._every[0] if rows is None else rows[0]
        return self._weights(rows), None

    def learn(self, rows: Integers, symbols: Integers) -> None:
        """Count the symbols of a visit."""
        counts = np.bincount((rows * self._size + symbols).reshape(-1), minlength=self._counts.size)
        counts = counts.reshape(self._counts.shape)
        self._totals += (counts @ self._ones)[:, None]
        self._counts += counts * _ONE

    def _rows(self, time: Integers, space: Integers) -> Integers:
        rows = np.empty((4, time.size), np.int64)
        np.multiply(time, self._spaces, out=rows[0])
        rows[0] += space
        np.add(time, self._time, out=rows[1])
        np.add(space, self._space, out=rows[2])
        rows[3] = self._space + self._spaces
        return rows

    def _weights(self, rows: Integers) -> Float64:
        counts, totals = self._counts, self._totals
        anywhere = _shrunk(counts[-1] + self._first, totals[-1])
        margins = _shrunk(counts[self._time : -1] + _ALONE * anywhere, totals[self._time : -1])
        product = margins.take(rows[1] - self._time, 0)
        product *= margins.take(rows[2] - self._time, 0)
        product /= anywhere
        np.floor(product, product)
        scale = product @ self._ones
        product *= _ONE
        product = _shrunk(product, scale[:, None])
        product *= _BOTH
        product += counts.take(rows[0], 0)
        return _shrunk(product, totals.take(rows[0], 0))

    def _class(self, values: Integers) -> Integers:
        return values if self._classes == self._size else values * self._classes // self._size


def _shrunk(counts: Float64, totals: Float64) -> Float64:
    """Floor counts / totals, in place, to at least 1."""
    counts /= totals
    np.floor(counts, counts)
    return np.maximum(counts, 1.0, out=counts)
