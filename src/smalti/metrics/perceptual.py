"""A perceptual distance as a score: a callable that is handed in, with the name that its figures must carry."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Perceptual(NamedTuple):
    """A distance of frames, and what it is."""

    distance: Callable[[Tensor, Tensor], Tensor]
    """(a, b), each float32 `n 3 h w` in [-1, 1] -> `n`."""
    net: Literal["vgg", "alex"]
    digest: str
    """sha256 of its weights: two figures compare only if this is equal."""
    smallest: int = 32
    """Pixels per side that it needs."""
    batch: int = 8
    """Frames per call; bounds memory. A float32 network may round otherwise for another one (1e-7 relative)."""

    def frames(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
        """The distance of each pair of frames in float64, without gradients."""
        with torch.no_grad():
            parts = [
                self.distance(x.float(), y.float())
                for x, y in zip(a.split(self.batch), b.split(self.batch), strict=True)
            ]
        return torch.cat(parts).double()
