"""The discriminators of MAGVIT.

The 3-D one of MAGVIT-v2 (Yu et al. 2024, arXiv 2310.05737) has residual blocks with blur-pools and no norm. The 2-D one
of MAGVIT (Yu et al. 2023, arXiv 2212.05199) is as its authors released it: StyleGAN2's residual blocks without its
equalised rate and minibatch deviation (google-research/magvit, stylegan_discriminator_2d.py). MAGVIT-v2's image
tokenizers have it with blur-pools in front of the strides, as here.
"""

import itertools
import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Config, Tuple
from smalti.discriminators.frames import Discriminator, grid_mean, halve
from smalti.losses import Frames, select_frames


class Magvit3DConfig(Config):
    """The defaults are the paper's."""

    kind: Literal["magvit3d"] = "magvit3d"
    width: int = Field(default=128, ge=1)
    """Channels of the first layer."""
    multipliers: Tuple[Annotated[int, Field(ge=1)]] = Field(default=(2, 4, 4, 4, 4), min_length=1)
    """Channels of each block as multiples of `width`; each block halves time, height and width."""
    grid: int = Field(default=4, ge=1)
    """Side of the grid of cells that the head averages over before its linear layers, so that any size works. 4 with
    five blocks is the paper's flattening at 17 x 128 x 128; 1 is a global mean."""
    frames: Literal["clip"] = "clip"
    """Frames that the discriminator is trained on: the whole clip."""
    initialisation: Literal["kaiming", "xavier"] = "kaiming"
    """Distribution of the first weights: Kaiming normal for slope 0.2, which keeps the variance of the features at
    about 1, or Xavier uniform (MAGVIT's authors)."""

    @property
    def compared_samples(self) -> int | None:
        """Samples of a call whose scores depend on each other: 1."""
        return 1

    def build(self) -> "Magvit3DDiscriminator":
        """The discriminator; weights as `initialisation` says from torch's global rng, biases 0."""
        return Magvit3DDiscriminator(self)


class Magvit3DDiscriminator(Discriminator):
    """conv 3³, blocks, conv 3³, mean, linear, linear, with a leaky ReLU of slope 0.2 after each but the last.

    Logits `b 1`. All convolutions are zero-padded on both sides: a discriminator need not be causal. Any length,
    height and width; an image is a clip of one frame.
    """

    def __init__(self, config: Magvit3DConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = config.frames
        widths = [config.width, *(config.width * multiplier for multiplier in config.multipliers)]
        self.first = nn.Conv3d(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(Magvit3DBlock(a, b) for a, b in itertools.pairwise(widths)))
        self.last = nn.Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.hidden = nn.Linear(widths[-1] * config.grid**2, widths[-1])
        self.logit = nn.Linear(widths[-1], 1)
        if config.initialisation == "xavier":
            xavier_uniform(self)
            return
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d | nn.Linear):
                # The variance of the features stays about 1 without a norm; torch's default loses half per layer.
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1"]:
        """One logit per clip."""
        if video.device.type == "cpu":
            # Under bfloat16 autocast, torch 2.13's gradients of 3-D weights on a CPU are now and then not finite
            # (4 of 40 first steps of a small run), and no faster.
            with torch.autocast("cpu", enabled=False):
                return self._logits(video.to(self.first.weight.dtype))
        return self._logits(video)

    def _logits(self, video: Tensor) -> Tensor:
        features = _leaky_relu(self.last(self.blocks(_leaky_relu(self.first(video)))))
        cells = grid_mean(features.mean(dim=2), self.config.grid)
        logits: Tensor = self.logit(_leaky_relu(self.hidden(cells.flatten(1))))
        return logits


class Magvit3DBlock(nn.Module):
    """conv 3³, blur-pool, conv 3³; beside it blur-pool, conv 1³; the sum over sqrt 2. An axis n becomes ceil(n / 2)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.inner = nn.Conv3d(channels, out, 3, padding=1)
        self.outer = nn.Conv3d(out, out, 3, padding=1)
        self.skip = nn.Conv3d(channels, out, 1, bias=False)

    def forward(self, features: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t2 h2 w2"]:
        """Half the length, height and width; an axis of length 1 stays."""
        main = halve(_leaky_relu(self.inner(features)), (4, 3, 2))
        side = self.skip(halve(features, (4, 3, 2)))
        return (_leaky_relu(self.outer(main)) + side) / math.sqrt(2)


def _leaky_relu(features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """leaky ReLU of slope 0.2."""
    return F.leaky_relu(features, 0.2)


class Magvit2DConfig(Config):
    """The defaults are the authors' for 128 x 128: 23,880,833 parameters."""

    kind: Literal["magvit2d"] = "magvit2d"
    width: int = Field(default=128, ge=1)
    """Channels of the first layer."""
    multipliers: Tuple[Annotated[int, Field(ge=1)]] = Field(default=(2, 4, 4, 4, 4), min_length=1)
    """Channels of each block as multiples of `width`; each block halves height and width."""
    grid: int = Field(default=4, ge=1)
    """Side of the grid of cells that the head averages over before its linear layers, so that any size works. With five
    blocks the authors' flattening is 4 at 128 x 128, 8 at 256 x 256 and 16 at 512 x 512; 1 is a global mean."""
    frames: Frames = "random"
    """Frames of a clip that the discriminator is trained on: one at random, or all."""

    @property
    def compared_samples(self) -> int | None:
        """Samples of a call whose scores depend on each other: 1."""
        return 1

    def build(self) -> "Magvit2DDiscriminator":
        """The discriminator; weights are Xavier uniform from torch's global rng, biases 0."""
        return Magvit2DDiscriminator(self)


class Magvit2DDiscriminator(Discriminator):
    """conv 3x3, blocks, conv 3x3, linear, linear, with a leaky ReLU of slope 0.2 after each but the last; no norm.

    Logits `b t`: one per frame, which depends on no other frame. Any height and width.
    """

    def __init__(self, config: Magvit2DConfig) -> None:
        super().__init__()
        self.config = config
        self.frames = config.frames
        widths = [config.width, *(config.width * multiplier for multiplier in config.multipliers)]
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(Magvit2DBlock(a, b) for a, b in itertools.pairwise(widths)))
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.hidden = nn.Linear(widths[-1] * config.grid**2, widths[-1])
        self.logit = nn.Linear(widths[-1], 1)
        xavier_uniform(self)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b t"]:
        """One logit per frame."""
        features = F.leaky_relu(self.first(select_frames(video, None).squeeze(2)), 0.2)
        features = F.leaky_relu(self.last(self.blocks(features)), 0.2)
        cells = grid_mean(features, self.config.grid).flatten(1)
        logits: Tensor = self.logit(F.leaky_relu(self.hidden(cells), 0.2))
        return logits.view(video.shape[0], video.shape[2])


class Magvit2DBlock(nn.Module):
    """conv 3x3, blur-pool, conv 3x3; beside it blur-pool, conv 1x1; the sum over sqrt 2. n becomes ceil(n / 2).

    The width changes in the second convolution, as the authors' code has it; figures of MAGVIT-v2 have it in the first.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Half the height and width; an axis of length 1 stays."""
        main = halve(F.leaky_relu(self.inner(features), 0.2), (3, 2))
        side = self.skip(halve(features, (3, 2)))
        return (F.leaky_relu(self.outer(main), 0.2) + side) / math.sqrt(2)


def xavier_uniform(module: nn.Module) -> None:
    """Set weights to U(-a, a), a = sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010), and biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
