"""The patch discriminator (Isola et al. 2017, arXiv 1611.07004): one logit per patch of a frame."""

import math
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Config
from smalti.discriminators.discriminator import Discriminator, check_size
from smalti.losses.frame_choice import Frames, select_frames


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
