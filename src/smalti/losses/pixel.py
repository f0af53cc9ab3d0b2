"""Losses on pixels, the frames that they see, and the one weighted sum of all losses.

Distances are means over all elements, in float32 or wider. With pixels in [-1, 1] an l1 is twice, an l2 four times that
of pixels in [0, 1].
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.errors import ConfigError
from smalti.text import nearest

Frames = Literal["random", "all"]
"""`random`: one frame per clip, chosen by the caller's index (MagicMaster); `all`: every frame as a sample."""


def l1(recon: Float[Tensor, "b 3 t h w"], video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
    """mean |recon - video|."""
    return (widen(recon) - widen(video)).abs().mean()


def l2(recon: Float[Tensor, "b 3 t h w"], video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
    """mean (recon - video)^2."""
    return (widen(recon) - widen(video)).square().mean()


def widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """bfloat16 and float16 as float32; float32 and float64 as they are. Losses are computed after it, because a mean
    over 10^6 elements needs more than the 8 bits of bfloat16.
    """
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


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


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """sum_i weights[i] * losses[i], a scalar. Raises ConfigError unless both have the same, non-empty set of names,
    so that a misspelt weight stops the run at its first step.
    """
    unweighted, unused = sorted(set(losses) - set(weights)), sorted(set(weights) - set(losses))
    if unweighted or unused:
        parts = [f"no weight for the loss {name!r}{nearest(name, unused, ', ')}" for name in unweighted]
        parts += [f"no loss for the weight {name!r}{nearest(name, unweighted, ', ')}" for name in unused]
        raise ConfigError(f"weights: {'; '.join(parts)} (losses: {', '.join(sorted(losses)) or 'none'})")
    if not losses:
        raise ConfigError("weights: there are no losses to weigh; name at least one loss and its weight")
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
