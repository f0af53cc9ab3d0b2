"""Norms, the residual block, attention in a frame, the stems that trade pixels for channels, and first weights.

A norm decides what is exact: `position` is causal and tile-exact, `frame` is causal, `clip` is neither. `clip` is
GroupNorm over time too: MagicMaster, Open-MAGVIT2 and mindone trained with it, and it is here for their weights.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.causal import (
    CausalConv,
    CausalUpsample,
    Stream,
    Window,
    channels_from_end,
    channels_to_end,
    silu,
    stretch,
    to_frames,
    to_images,
)

NormKind = Literal["position", "frame", "clip"]
AdaptiveKind = Literal["none", "position", "frame", "clip"]
_EPS = 1e-6
_EPS_POOLED = 1e-5
"""MagicMaster's in its norms that are modulated by pooled codes; all its other norms have 1e-6."""
GROUPS = 32
"""Groups of a group norm in all published networks. Narrow ones need fewer: a group of one channel loses its mean, the
colour."""


def fill_truncated_normal(values: Tensor, deviation: float) -> None:
    """Fill a tensor from N(0, deviation^2), redrawn beyond two deviations: from a seed the same weights in every torch.

    torch's own inverted the distribution function in 2.6 and redraws in 2.13; these are the numbers of 2.13.
    """
    if values.is_meta:
        return
    bound = torch.tensor(2 * deviation, dtype=values.dtype).item()
    with torch.no_grad():
        values.normal_(0, deviation)
        while bool((beyond := values.abs() > bound).any()):
            values.copy_(torch.where(beyond, torch.empty_like(values).normal_(0, deviation), values))


class Norm(nn.Module):
    """Normalisation of `t b c h w`, with a weight and a bias per channel if `affine`."""

    def __init__(
        self, kind: NormKind, channels: int, affine: bool = True, eps: float = _EPS, *, groups: int = GROUPS
    ) -> None:
        super().__init__()
        self.kind, self.channels, self.eps = kind, channels, eps
        self.groups = math.gcd(channels, groups)
        self.weight = nn.Parameter(nn.init.ones_(Tensor(channels))) if affine else None
        self.bias = nn.Parameter(nn.init.zeros_(Tensor(channels))) if affine else None

    def forward(self, x: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b c h w"]:
        """Statistics over the channels of one position, over groups of channels of one frame, or of one clip."""
        if self.kind == "position":
            rows = F.layer_norm(x.movedim(2, -1), (self.channels,), self.weight, self.bias, self.eps)
            return rows.movedim(-1, 2)
        if self.kind == "frame":
            frames = torch.group_norm(to_images(x), self.groups, self.weight, self.bias, self.eps)
            return to_frames(frames, x.shape[:2])
        clips = torch.group_norm(x.permute(1, 2, 0, 3, 4), self.groups, self.weight, self.bias, self.eps)
        return clips.permute(2, 0, 1, 3, 4)


class AdaptiveNorm(nn.Module):
    """A norm whose weight and bias are predicted from the codes: norm(x) * (1 + scale(codes)) + shift(codes).

    `by="position"`: the codes are stretched to the resolution of x, so every position is modulated by its own code;
    causal, tile-exact and free of any fixed size. `frame` takes the mean of the codes over each of their frames, and
    `clip` that over the whole clip, which is what MagicMaster and Open-MAGVIT2 trained with and is not causal.
    """

    def __init__(
        self,
        kind: NormKind,
        channels: int,
        code_dim: int,
        *,
        by: AdaptiveKind = "position",
        time_stride: int = 1,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.by = by
        self.time_stride = time_stride
        """Frames of x per frame of codes."""
        eps = _EPS if by == "position" else _EPS_POOLED
        self.norm = Norm(kind, channels, affine=False, eps=eps, groups=groups)
        self.modulation = nn.Conv2d(code_dim, 2 * channels, 1)
        nn.init.zeros_(self.modulation.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "t b c h w"], codes: Float[Tensor, "t2 b d h2 w2"]
    ) -> Float[Tensor, "t b c h w"]:
        """`codes` are the decoder's input, or a layer of it, at their own resolution."""
        if self.by == "clip":
            codes = codes.mean((0, 3, 4), keepdim=True)
        elif self.by == "frame":
            codes = codes.mean((3, 4), keepdim=True)
        maps: Tensor = to_frames(self.modulation(to_images(codes)), codes.shape[:2])
        if self.by == "position":
            maps = stretch(maps, (x.shape[0], x.shape[3], x.shape[4]), self.time_stride)
        elif self.by == "frame":
            maps = stretch(maps, (x.shape[0], 1, 1), self.time_stride)
        scale, shift = map(channels_from_end, channels_to_end(maps).chunk(2, -1))
        return torch.addcmul(shift, self.norm(x), 1 + scale)


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
    """Space to depth: every patch x patch square becomes channels; the order in memory stays that of x."""
    return to_frames(F.pixel_unshuffle(to_images(x), patch), x.shape[:2])


def to_patches_last(x: Float[Tensor, "t b c h w"], patch: int) -> Float[Tensor, "t b c2 h2 w2"]:
    """Do the same with the channels last in memory, whatever the order of x: in one copy, which keeps rows of a patch
    together where those of x are, so that pixels need no order before it (2 to 5 times as fast)."""
    squares = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # t b c h i w j
    # A clone, for `contiguous` would leave axes of size one the strides they have.
    rows = squares.permute(0, 1, 3, 5, 2, 4, 6).clone(memory_format=torch.contiguous_format)
    return channels_from_end(rows.flatten(4))


def from_patches(x: Float[Tensor, "t b c h w"], patch: int) -> Float[Tensor, "t b c2 h2 w2"]:
    """Depth to space, the inverse of `to_patches`."""
    return to_frames(F.pixel_shuffle(to_images(x), patch), x.shape[:2])


class FrameAttention(nn.Module):
    """x + out(attention(query, key, value of norm(x))): one head over all positions of a frame (VQGAN)."""

    def __init__(self, channels: int, *, norm: NormKind = "frame", groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = Norm(norm, channels, groups=groups)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c h w"]:
        """The shape of x; frames do not meet, so a stream has nothing to carry."""
        tokens = self.norm(x).flatten(0, 1).flatten(2).transpose(1, 2)  # (t b) (h w) c
        # With an axis of heads torch never makes the matrix of all pairs: 9 GB for 176 x 264 positions.
        query, key, value = self.query_key_value(tokens).unsqueeze(1).chunk(3, -1)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(query, key, value)[:, 0])
        return x + mixed.transpose(1, 2).unflatten(0, x.shape[:2]).unflatten(3, x.shape[3:])


Initialisation = Literal["smalti", "torch", "magicmaster", "flax"]
"""Rules for first weights, those of other projects among them. smalti's own: torch's defaults, but zeros in the second
convolution of every residual block, in the taps of past frames and in the biases of modulations, so that a fresh
network is its stems, strides and skips alone and treats every frame as an image."""


@torch.no_grad()
def initialise(network: nn.Module, kind: Initialisation) -> None:
    """Set all convolutions and linear layers by a rule, from torch's global rng; norms and quantizers stay.

    The kernels of a causal convolution count as one kernel over space and time, of `fan_in` inputs.

    - `smalti`: as they are.
    - `torch`: weights and biases ~ U(-1, 1) / sqrt(fan_in), torch's default, which is MindSpore's too (mindone).
    - `magicmaster`: the same, but an upsampling convolution is ~ U(-1, 1) sqrt(6 / fan_in) with the weights of all
      sub-pixels of a channel equal (no checkerboard at the start) and biases 0.
    - `flax`: LeCun normal, N(0, 1 / fan_in) cut at two standard deviations, and biases 0 (MAGVIT).
    """
    if kind == "smalti":
        return
    taps: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, CausalConv):
            layers = [*module.past, module.now]
            taps.update(layers)
            _fill([layer.get_parameter("weight") for layer in layers], module.now.bias, kind)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module not in taps:
            _fill([module.weight], module.bias, kind)
    for module in network.modules():
        if isinstance(module, CausalUpsample) and kind == "magicmaster":
            _equal_phases(module)


def _fill(kernels: list[Tensor], bias: Tensor | None, kind: Initialisation) -> None:
    fan_in = sum(kernel[0].numel() for kernel in kernels)
    for kernel in kernels:
        if kind == "flax":
            # Cut at two standard deviations a normal distribution keeps 0.8796 of its own.
            deviation = 1 / math.sqrt(fan_in) / 0.87962566103423978
            fill_truncated_normal(kernel, deviation)
        else:
            nn.init.uniform_(kernel, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    if bias is not None and kind == "flax":
        nn.init.zeros_(bias)
    elif bias is not None:
        nn.init.uniform_(bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def _equal_phases(module: CausalUpsample) -> None:
    """Give all phases of a channel, in time, height and width, the same weights."""
    conv, (time, space) = module.conv, module.strides
    kernels = [layer.get_parameter("weight") for layer in (*conv.past, conv.now)]
    bound = math.sqrt(6 / sum(kernel[0].numel() for kernel in kernels))
    for kernel in kernels:
        phases = kernel.view(time, -1, space**2, *kernel.shape[1:])  # (time phase, channel, row and column phase)
        one = torch.empty_like(phases[:1, :, :1]).uniform_(-bound, bound)
        phases.copy_(one.expand_as(phases))
    if conv.now.bias is not None:
        nn.init.zeros_(conv.now.bias)
