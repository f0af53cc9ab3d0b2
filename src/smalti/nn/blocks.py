"""The residual block, and the stems that trade pixels for channels."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.activation import silu
from smalti.nn.causal import CausalConv, Window
from smalti.nn.norm import GROUPS, Norm, NormKind
from smalti.nn.stream import Stream


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the skip where the width changes.

    The second convolution starts at zero, so a fresh network is its stems, strides and skips alone.
    """

    def __init__(
        self, channels: int, out: int, window: Window, *, norm: NormKind, groups: int = GROUPS, bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = Norm(norm, channels, groups=groups)
        self.conv1 = CausalConv(channels, out, window, bias=bias)
        self.norm2 = Norm(norm, out, groups=groups)
        self.conv2 = CausalConv(out, out, window, bias=bias)
        self.skip = CausalConv(channels, out, kernel=1, bias=bias) if channels != out else None
        nn.init.zeros_(self.conv2.now.weight)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c2 h w"]:
        """The shape of x but for the channels."""
        y: Tensor = self.conv1(silu(self.norm1(x)), stream)
        y = self.conv2(silu(self.norm2(y)), stream)
        return y + (x if self.skip is None else self.skip(x))


def to_patches(x: Float[Tensor, "t b c h w"], patch: int) -> Float[Tensor, "t b c2 h2 w2"]:
    """Space to depth: every patch x patch square becomes channels."""
    return F.pixel_unshuffle(x.flatten(0, 1), patch).unflatten(0, x.shape[:2])


def from_patches(x: Float[Tensor, "t b c h w"], patch: int) -> Float[Tensor, "t b c2 h2 w2"]:
    """Depth to space, the inverse of `to_patches`."""
    return F.pixel_shuffle(x.flatten(0, 1), patch).unflatten(0, x.shape[:2])
