"""Large frames in tiles, with the tokens and pixels of the whole frame.

Each tile is computed with as much of its surroundings as its own results can see (the reach of the network), and the
surroundings are cut off. That is exact where statistics are per position: no blending, no seams. The cost is
((tile + 2 reach) / tile)^2, so choose tiles well above the reach (`encoder.reach` pixels, `decoder.reach` latents).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """One tile: what is read for it, which part of the result of that is kept, and where that lies in the whole."""

    read: tuple[slice, slice]
    """Rows and columns of the input, with the surroundings."""
    inside: tuple[slice, slice]
    """Rows and columns of the result of that, without the surroundings."""
    place: tuple[slice, slice]
    """Rows and columns of the whole result."""


class Tiles(NamedTuple):
    """Cut of the last two axes into squares, and the resolution of the results."""

    side: int
    """Rows and columns of a tile."""
    margin: int
    """Rows and columns around it that its results can see."""
    down: int = 1
    """Rows of the input for a row of the result (encoding)."""
    up: int = 1
    """Rows of the result for a row of the input (decoding)."""

    def compute(self, function: Callable[[tuple[slice, slice]], Tensor], size: tuple[int, int]) -> Tensor:
        """Return the results of `function`, which takes the slices of a tile of an input of `size` = (rows, columns),
        as one tensor; `side`, `margin` and `size` are multiples of `down`.

        Each result is copied to its place and let go, so that the whole is held once.
        """
        whole: Tensor | None = None
        for tile in self.cut(size):
            result = function(tile.read)
            if whole is None:
                rows, columns = (length * self.up // self.down for length in size)
                whole = result.new_empty(*result.shape[:-2], rows, columns)
            whole[(..., *tile.place)] = result[(..., *tile.inside)]
        return torch.empty(0) if whole is None else whole

    def cut(self, size: tuple[int, int]) -> Iterator[Tile]:
        """Yield the tiles of an input of `size` = (rows, columns), row by row."""
        for y in self._spans(size[0]):
            for x in self._spans(size[1]):
                yield Tile((y[0], x[0]), (y[1], x[1]), (y[2], x[2]))

    def _spans(self, length: int) -> Iterator[tuple[slice, slice, slice]]:
        """Yield what `Tile` has of each tile, along one axis."""

        def result(start: int, end: int) -> slice:
            return slice(start * self.up // self.down, end * self.up // self.down)

        for start in range(0, length, self.side):
            end, first = min(start + self.side, length), max(0, start - self.margin)
            yield slice(first, min(length, end + self.margin)), result(start - first, end - first), result(start, end)
