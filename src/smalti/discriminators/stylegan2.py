"""The residual discriminator of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), on frames, in plain torch."""

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Config
from smalti.discriminators.blur import low_pass
from smalti.discriminators.discriminator import Discriminator, check_size, grid_mean
from smalti.losses.frame_choice import Frames, select_frames
from smalti.losses.pixel import widen

_GRID = 4
"""The blocks stop at 4x4 positions."""


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
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in itertools.pairwise(widths)))
        self.last = EqualisedConv(widths[-1] + 1, widths[-1], 3)
        self.hidden = EqualisedLinear(widths[-1] * _GRID**2, widths[-1])
        self.logit = EqualisedLinear(widths[-1], 1)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b t"]:
        """One logit per frame. Raises InputError below size / 4 pixels."""
        check_size(video, self.config.size // 4, f"the stylegan2 discriminator of size {self.config.size}")
        features = activate(self.first(select_frames(video, None).squeeze(2)))
        features = grid_mean(self.blocks(features), _GRID)
        features = torch.cat([features, minibatch_deviation(features, self.config.group)], dim=1)
        features = activate(self.last(features))
        logits: Tensor = self.logit(activate(self.hidden(features.flatten(1))))
        return logits.view(video.shape[0], video.shape[2])


class Block(nn.Module):
    """conv3, blur, conv3 of stride 2; beside it blur, conv1 of stride 2; sum over sqrt 2. n becomes floor(n / 2)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.inner = EqualisedConv(channels, channels, 3)
        self.down = EqualisedConv(channels, out, 3, stride=2, padding=0)
        self.skip = EqualisedConv(channels, out, 1, bias=False)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Half the height and width."""
        main = activate(self.inner(features))
        main = activate(self.down(low_pass(low_pass(main, 2, 1, (2, 2)), 3, 1, (2, 2))))
        # A 1x1 convolution reads only the positions that a stride keeps, so the blur makes no others.
        side = self.skip(low_pass(low_pass(features, 2, 2, (1, 1)), 3, 2, (1, 1)))
        return (main + side) / math.sqrt(2)


def activate(features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
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
