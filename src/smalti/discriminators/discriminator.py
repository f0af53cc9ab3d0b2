"""What all discriminators share: one call, and which frames they see."""

from abc import abstractmethod
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.errors import InputError
from smalti.losses.pixel import select_frames


class Discriminator(nn.Module):
    """A network that scores samples: a video in, logits out; above 0 means "real"."""

    frames: Literal["random", "all", "clip"]
    """What is one sample: one frame per clip, every frame, or the whole clip."""

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
