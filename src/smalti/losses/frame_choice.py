"""Which frames of a clip a 2-D loss or discriminator sees."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Frames = Literal["random", "all"]
"""`random`: one frame per clip, chosen by the caller's index (MagicMaster); `all`: every frame as a sample."""


def random_frames(clips: int, frames: int, rng: torch.Generator) -> Int[Tensor, " clips"]:
    """One uniform frame number in [0, frames) per clip, on the CPU. One rng, one draw per clip, in clip order."""
    return torch.randint(frames, (clips,), generator=rng)


def select_frames(video: Float[Tensor, "b 3 t h w"], index: Int[Tensor, " b"] | None) -> Float[Tensor, "n 3 1 h w"]:
    """Frames as one-frame videos. With an index, frame `index[i]` of clip i (n = b); with None, all frames in the
    order (clip, frame), n = b t. Equal for t = 1.

    The index is moved to the video's device. Real and reconstructed clips take the same index.
    """
    if index is None:
        return video.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    index = index.to(video.device)
    return video[torch.arange(video.shape[0], device=video.device), :, index].unsqueeze(2)
