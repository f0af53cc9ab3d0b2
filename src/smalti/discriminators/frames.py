"""Discriminators on frames, and what all discriminators share: one call, their samples, the low-pass filter.

The patch discriminator (Isola et al. 2017, arXiv 1611.07004) gives one logit per patch of a frame, the residual one of
StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) one per frame. The filter [1, 3, 3, 1] / 8 in front of a stride is
Zhang's (2019, arXiv 1904.11486), channel by channel.
"""

import itertools
import math
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Config
from smalti.errors import InputError
from smalti.losses import Frames, select_frames, widen

TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
"""They sum to 1, so constants pass unchanged away from the zero-padded border. Exact in bfloat16."""
_GRID = 4
"""The blocks stop at 4x4 positions."""


class Discriminator(nn.Module):
    """A network that scores samples: a video in, logits out; above 0 means "real"."""

    frames: Literal["random", "all", "clip"]
    """One sample: one frame per clip, every frame, or the whole clip."""

    @abstractmethod
    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b *positions"]:
        """One or more logits per sample."""

    def samples(
        self, video: Float[Tensor, "b 3 t h w"], index: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "n 3 s h w"]:
        """The samples that this discriminator is trained on, as its `frames` says; `index` (one frame number per
        clip) is read by "random" alone. Gradient penalties are means over these samples.
        """
        if self.frames == "clip":
            return video
        if self.frames == "all":
            return select_frames(video, None)
        if index is None:
            raise ValueError('a discriminator with frames = "random" needs a frame index per clip')
        return select_frames(video, index)


def check_size(video: Tensor, least: int, name: str) -> None:
    """Raise InputError if height or width is below `least`."""
    height, width = video.shape[-2:]
    if min(height, width) < least:
        raise InputError(f"frames of {height}x{width} are too small for {name}: use {least}x{least} or more")


def grid_mean(features: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c {side} {side}"]:
    """The means over side x side cells: the identity when h = w = side, and a fixed size from any other.

    Cell i of n rows covers floor(i n / side) to ceil((i + 1) n / side), so that a smaller map is repeated.
    """
    return features if features.shape[2:] == (side, side) else F.adaptive_avg_pool2d(features, side)


def low_pass(features: Tensor, axis: int, stride: int, padding: tuple[int, int]) -> Tensor:
    """y[i] = sum_k TAPS[k] * x[i * stride + k - padding[0]] along one axis, zeros outside.

    The length becomes (n + sum(padding) - 4) // stride + 1. Other axes, channels among them, are not mixed. It is a
    product with a banded matrix: linear, differentiable any number of times, and on a CPU four to five times as
    fast as a depthwise 3-D convolution (256 channels of 17 x 64 x 64, forward and backward: 0.20 s against 0.99 s).
    """
    axis %= features.ndim
    n = features.shape[axis]
    matrix = band(n, (n + sum(padding) - len(TAPS)) // stride + 1, stride, padding[0], features)
    if axis == features.ndim - 1:
        return features @ matrix.T
    return (matrix @ features.flatten(axis + 1)).unflatten(-1, features.shape[axis + 1 :])


def band(n: int, m: int, stride: int, before: int, like: Tensor) -> Tensor:
    """The matrix `m n` of that filter, on the device and with the type of `like`."""
    taps = torch.tensor(TAPS, dtype=like.dtype, device=like.device)
    row, column = torch.arange(m, device=like.device)[:, None], torch.arange(n, device=like.device)
    k = column - stride * row + before
    return taps[k.clamp(0, len(TAPS) - 1)] * ((k >= 0) & (k < len(TAPS)))


def halve(features: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Blur and take every second value along each of `axes`: n becomes ceil(n / 2).

    An axis of length 1 is left as it is: there is nothing to halve, and the zero padding would only scale it by 3/8.
    """
    for axis in axes:
        n = features.shape[axis]
        if n > 1:
            features = low_pass(features, axis, stride=2, padding=(1, 1 + n % 2))
    return features


class PatchConfig(Config):
    """MagicMaster's has norm="batch": 663,361 parameters."""

    kind: Literal["patch"] = "patch"
    width: int = Field(default=64, ge=1)
    """Channels of the first layer; stage i has `width` * min(2^i, 8) channels."""
    stages: int = Field(default=2, ge=1, le=8)
    """Stages after the first layer; all but the last halve the frame."""
    norm: Literal["batch", "group", "none"] = "group"
    """Norm after each convolution: up to 32 groups over one frame (`group`), over the batch (`batch`; MagicMaster's,
    unstable with the small batches of video), or none."""
    frames: Frames = "random"
    """Frames of a clip that the discriminator is trained on: one at random, or all."""

    @property
    def compared_samples(self) -> int | None:
        """Samples of a call whose scores depend on each other: all (None) with a batch norm, else 1."""
        return None if self.norm == "batch" else 1

    def build(self) -> "PatchDiscriminator":
        """The discriminator, with convolutions ~ N(0, 0.02) and norm weights ~ N(1, 0.02) from torch's global rng."""
        return PatchDiscriminator(self)


class PatchDiscriminator(Discriminator):
    """4x4 convolutions, each padded by 1: stride 2 in the first layer and in all stages but the last, then stride 1.

    Logits `b t h' w'`, with h' = floor(h / 2^stages) - 2.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = config.frames
        layers: list[nn.Module] = [nn.Conv2d(3, config.width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = config.width
        for stage in range(1, config.stages + 1):
            out = config.width * min(2**stage, 8)
            stride = 2 if stage < config.stages else 1
            layers.append(nn.Conv2d(channels, out, 4, stride=stride, padding=1, bias=config.norm == "none"))
            layers += [_norm(config.norm, out), nn.LeakyReLU(0.2)]
            channels = out
        layers.append(nn.Conv2d(channels, 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b t hp wp"]:
        """One logit per patch of every frame. Raises InputError below 3 * 2^stages pixels."""
        check_size(video, 3 * 2**self.config.stages, "the patch discriminator")
        logits: Tensor = self.layers(select_frames(video, None).squeeze(2))
        return logits.view(video.shape[0], video.shape[2], *logits.shape[2:])


def _norm(kind: Literal["batch", "group", "none"], channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(norm_groups(channels), channels) if kind == "group" else nn.Identity()


def norm_groups(channels: int) -> int:
    """Groups of a norm: a power of two, at most 32, with at least four channels in each. One channel per group would
    take the contrast of every feature away.
    """
    return math.gcd(32, channels, max(1, channels // 4))


class StyleGAN2Config(Config):
    """The defaults are MagicMaster's for 128x128: 28,389,121 parameters."""

    kind: Literal["stylegan2"] = "stylegan2"
    size: Literal[8, 16, 32, 64, 128, 256, 512, 1024] = 128
    """Height and width of the frames: log2(size) - 2 blocks. Other frames of at least size / 4 work too: the last map
    is then averaged over 4x4 cells."""
    channel_multiplier: int = Field(default=2, ge=1)
    """Factor of the channels: min(`width`, 16384 * `channel_multiplier` / r) at resolution r."""
    width: int = Field(default=512, ge=1)
    """Largest number of channels."""
    group: int = Field(default=4, ge=1)
    """Samples per group of the minibatch deviation, reduced to a divisor of the batch size; 1 switches it off."""
    frames: Frames = "random"
    """Frames of a clip that the discriminator is trained on: one at random, or all."""

    def channels(self, resolution: int) -> int:
        """Channels of the maps at a resolution."""
        return max(1, min(self.width, 16384 * self.channel_multiplier // resolution))

    @property
    def compared_samples(self) -> int | None:
        """Samples of a call whose scores depend on each other: a group."""
        return self.group

    def build(self) -> "StyleGAN2Discriminator":
        """The discriminator; weights ~ N(0, 1) from torch's global rng, biases 0."""
        return StyleGAN2Discriminator(self)


class StyleGAN2Discriminator(Discriminator):
    """1x1 convolution, residual blocks down to 4x4, minibatch deviation, 3x3 convolution, two linear layers.

    Logits `b t`: one per frame. The score of a frame depends on the others of its group through `minibatch_deviation`.
    """

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.frames = config.frames
        sizes = [2**i for i in range(int(math.log2(config.size)), 1, -1)]  # size ... 4
        widths = [config.channels(size) for size in sizes]
        self.first = EqualisedConv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(StyleGAN2Block(a, b) for a, b in itertools.pairwise(widths)))
        self.last = EqualisedConv(widths[-1] + 1, widths[-1], 3)
        self.hidden = EqualisedLinear(widths[-1] * _GRID**2, widths[-1])
        self.logit = EqualisedLinear(widths[-1], 1)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b t"]:
        """One logit per frame. Raises InputError below size / 4 pixels."""
        check_size(video, self.config.size // 4, f"the stylegan2 discriminator of size {self.config.size}")
        features = _scaled_leaky_relu(self.first(select_frames(video, None).squeeze(2)))
        features = grid_mean(self.blocks(features), _GRID)
        features = torch.cat([features, minibatch_deviation(features, self.config.group)], dim=1)
        features = _scaled_leaky_relu(self.last(features))
        logits: Tensor = self.logit(_scaled_leaky_relu(self.hidden(features.flatten(1))))
        return logits.view(video.shape[0], video.shape[2])


class StyleGAN2Block(nn.Module):
    """conv3, blur, conv3 of stride 2; beside it blur, conv1 of stride 2; sum over sqrt 2. n becomes floor(n / 2)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.inner = EqualisedConv(channels, channels, 3)
        self.down = EqualisedConv(channels, out, 3, stride=2, padding=0)
        self.skip = EqualisedConv(channels, out, 1, bias=False)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Half the height and width."""
        main = _scaled_leaky_relu(self.inner(features))
        main = _scaled_leaky_relu(self.down(low_pass(low_pass(main, 2, 1, (2, 2)), 3, 1, (2, 2))))
        # A 1x1 convolution reads only the positions that a stride keeps, so the blur makes no others.
        side = self.skip(low_pass(low_pass(features, 2, 2, (1, 1)), 3, 2, (1, 1)))
        return (main + side) / math.sqrt(2)


def _scaled_leaky_relu(features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """leaky ReLU of slope 0.2, times sqrt 2."""
    return F.leaky_relu(features, 0.2) * math.sqrt(2)


class EqualisedConv(nn.Module):
    """A convolution with weight_orig / sqrt(fan_in): unit-variance parameters, so that one Adam step moves the layers'
    gains alike, whatever their width (Karras et al. 2018, arXiv 1710.10196).
    """

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, padding: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight_orig = nn.Parameter(torch.randn(out, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.gain = 1 / math.sqrt(channels * kernel**2)
        self.stride = stride
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """The convolution."""
        return F.conv2d(features, self.weight_orig * self.gain, self.bias, self.stride, self.padding)


class EqualisedLinear(nn.Module):
    """A linear layer with weight_orig / sqrt(fan_in)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight_orig = nn.Parameter(torch.randn(out, channels))
        self.bias = nn.Parameter(torch.zeros(out))
        self.gain = 1 / math.sqrt(channels)

    def forward(self, features: Float[Tensor, "b c"]) -> Float[Tensor, "b c2"]:
        """The product."""
        return F.linear(features, self.weight_orig * self.gain, self.bias)


def minibatch_deviation(features: Float[Tensor, "n c h w"], group: int) -> Float[Tensor, "n 1 h w"]:
    """sqrt(variance over the group + 1e-8), averaged over channels and positions: one number per group, as a map.

    The group size g is the largest divisor of n that is at most `group`; samples i, i + n/g, i + 2n/g, ... are a group.
    """
    n, _, height, width = features.shape
    size = max(divisor for divisor in range(1, min(group, n) + 1) if n % divisor == 0)
    groups = widen(features).view(size, n // size, -1)
    deviation = (groups.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=1)
    return deviation.to(features.dtype).repeat(size).view(n, 1, 1, 1).expand(n, 1, height, width)
