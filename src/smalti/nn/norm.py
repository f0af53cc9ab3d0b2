"""Norms, and what they decide: `position` is causal and tile-exact, `frame` is causal, `clip` is neither.

`clip` is GroupNorm over time too: MagicMaster, Open-MAGVIT2 and mindone trained with it, and it is here for their
weights.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.causal import stretch

NormKind = Literal["position", "frame", "clip"]
_EPS = 1e-6
_GROUPS = 32


class Norm(nn.Module):
    """Normalisation of `t b c h w`, with a weight and a bias per channel if `affine`."""

    def __init__(self, kind: NormKind, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.kind, self.channels = kind, channels
        self.groups = math.gcd(channels, _GROUPS)
        self.weight = nn.Parameter(nn.init.ones_(Tensor(channels))) if affine else None
        self.bias = nn.Parameter(nn.init.zeros_(Tensor(channels))) if affine else None

    def forward(self, x: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b c h w"]:
        """Statistics over the channels of one position, over groups of channels of one frame, or of one clip."""
        if self.kind == "position":
            rows = F.layer_norm(x.movedim(2, -1), (self.channels,), self.weight, self.bias, _EPS)
            return rows.movedim(-1, 2)
        if self.kind == "frame":
            frames = torch.group_norm(x.flatten(0, 1), self.groups, self.weight, self.bias, _EPS)
            return frames.unflatten(0, x.shape[:2])
        clips = torch.group_norm(x.permute(1, 2, 0, 3, 4), self.groups, self.weight, self.bias, _EPS)
        return clips.permute(2, 0, 1, 3, 4)


class AdaptiveNorm(nn.Module):
    """A norm whose weight and bias are maps predicted from the codes: norm(x) * (1 + scale(codes)) + shift(codes).

    The codes are stretched to the resolution of x, so every position is modulated by its own code: causal, tile-exact
    and free of any fixed size, unlike the pooled forms of MagicMaster and Open-MAGVIT2.
    """

    def __init__(self, kind: NormKind, channels: int, code_dim: int, time_stride: int) -> None:
        super().__init__()
        self.time_stride = time_stride
        """Frames of x per frame of codes."""
        self.norm = Norm(kind, channels, affine=False)
        self.modulation = nn.Conv2d(code_dim, 2 * channels, 1)
        nn.init.zeros_(self.modulation.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "t b c h w"], codes: Float[Tensor, "t2 b d h2 w2"]
    ) -> Float[Tensor, "t b c h w"]:
        """`codes` are the decoder's input, at its own resolution."""
        maps: Tensor = self.modulation(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])
        scale, shift = stretch(maps, (x.shape[0], x.shape[3], x.shape[4]), self.time_stride).chunk(2, 2)
        y: Tensor = self.norm(x)
        return y * (1 + scale) + shift
