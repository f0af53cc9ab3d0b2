"""Large frames in tiles, with the tokens and pixels of the whole frame.

Each tile is computed with as much of its surroundings as its own results can see (the reach of the network), and the
surroundings are cut off. That is exact where statistics are per position: no blending, no seams. The cost is
((tile + 2 reach) / tile)^2, so choose tiles well above the reach (`encoder.reach` pixels, `decoder.reach` latents).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


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

    def compute(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return `function(x)`, a tile at a time; `side` and `margin` are multiples of `down`."""
        rows = []
        for y in self._spans(x.shape[-2]):
            tiles = [
                self._inside(function(x[..., y.outer, column.outer]), y, column) for column in self._spans(x.shape[-1])
            ]
            rows.append(torch.cat(tiles, -1))
        return torch.cat(rows, -2)

    def _spans(self, size: int) -> "Iterator[_Span]":
        for start in range(0, size, self.side):
            yield _Span(start, min(start + self.side, size), self.margin, size)

    def _inside(self, result: Tensor, y: "_Span", x: "_Span") -> Tensor:
        """Cut the surroundings off the result of a tile."""
        rows, columns = (
            slice(s.inner.start * self.up // self.down, s.inner.stop * self.up // self.down) for s in (y, x)
        )
        return result[..., rows, columns]


class _Span:
    """One tile along one axis: what is kept, and what is read to compute it."""

    def __init__(self, start: int, end: int, margin: int, size: int) -> None:
        self.outer = slice(max(0, start - margin), min(size, end + margin))
        self.inner = slice(start - self.outer.start, end - self.outer.start)
