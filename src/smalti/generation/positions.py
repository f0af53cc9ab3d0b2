"""Places of tokens on the latent grid: raster and Halton order, and rotary angles on three axes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROTARY_BASE = 10_000.0
_BLOCK = 4096


class Rotation(NamedTuple):
    """Cosines and sines of the angle by which each pair of channels is turned at each place."""

    cos: Float[Tensor, "n p"]
    sin: Float[Tensor, "n p"]

    def __call__(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Channel p and channel p + d/2 are a pair."""
        left, right = x.chunk(2, -1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def places(grid: tuple[int, int, int], device: torch.device | None = None) -> Int[Tensor, "n 3"]:
    """(t, h, w) of every cell in raster order: w runs fastest."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid)).view(-1, 3)


def rotation(at: Int[Tensor, "n 3"], channels: int) -> Rotation:
    """The rotation of places by axial rotary embedding (Su et al. 2021, arXiv 2104.09864, on each axis).

    A third of the pairs of channels belongs to h, a third to w, the rest to t; pair j of m on an axis turns by
    place * 10000^(-j/m). The product of a turned query and a turned key depends on the difference of their places
    alone. Angles are float64, so that far places stay exact.
    """
    pairs = channels // 2
    third = pairs // 3
    angles = []
    for axis, count in enumerate((pairs - 2 * third, third, third)):
        j = torch.arange(count, dtype=torch.float64, device=at.device)
        angles.append(at[:, axis, None].double() * ROTARY_BASE ** (-j / max(1, count)))
    turned = torch.cat(angles, 1)
    return Rotation(turned.cos(), turned.sin())


def halton_order(grid: tuple[int, int, int]) -> Int[Tensor, "n"]:
    """The cells (raster index) in the order in which the points of the Halton sequence first fall into them.

    Point i = 1, 2, ... lies at row h * phi_2(i), column w * phi_3(i), frame t * phi_5(i), where phi_b mirrors the
    digits of i in base b at the point. Neighbours are far apart in time of revealing, so that tokens drawn at once
    depend on each other little (Besnier et al. 2025, Halton scheduler, arXiv 2503.17076; there in two dimensions).
    """
    t, h, w = grid
    seen: dict[int, None] = {}
    start = 1
    while len(seen) < t * h * w:
        i = torch.arange(start, start + _BLOCK)
        frame, row, column = _mirrored(i, 5, t), _mirrored(i, 2, h), _mirrored(i, 3, w)
        seen.update(dict.fromkeys(((frame * h + row) * w + column).tolist()))
        start += _BLOCK
    return torch.tensor(list(seen))


def _mirrored(i: Tensor, base: int, size: int) -> Tensor:
    """floor(size * phi_b(i)), in whole numbers: a fraction that should be whole is never a little less."""
    above, below = torch.zeros_like(i), 1
    while bool((i > 0).any()):
        above, below, i = above * base + i % base, below * base, i // base
    return above * size // below
