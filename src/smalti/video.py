"""The border between files and networks: uint8 images outside, float `video` in [-1, 1] inside, and the padding rule.

A `video` is float `b 3 t h w` in [-1, 1]; an image is a video with t = 1. uint8 appears only here, in `data` and where
results are written.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class Size(NamedTuple):
    """Frames, height and width of a video; also strides, the frames and pixels of one latent cell on each axis."""

    t: int
    h: int
    w: int


def size_of(video: Tensor) -> Size:
    """Return frames, height and width of a video `b 3 t h w`."""
    return Size(*video.shape[2:])


def to_video(
    pixels: UInt8[Tensor, "*b t h w 3"]
    | UInt8[Tensor, "h w 3"]
    | UInt8[np.ndarray, "t h w 3"]
    | UInt8[np.ndarray, "h w 3"],
) -> Float[Tensor, "_ 3 _ _ _"]:
    """Convert uint8 RGB to a float32 video `b 3 t h w`: u / 127.5 - 1, so 0 is -1 and 255 is 1 exactly.

    Takes one image `h w 3`, frames `t h w 3` (both give b = 1), or a batch of clips `b t h w 3`.
    """
    frames = torch.as_tensor(pixels)
    while frames.ndim < 5:
        frames = frames[None]
    return (frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).contiguous()


def to_uint8(video: Float[Tensor, "b 3 t h w"]) -> UInt8[Tensor, "b t h w 3"]:
    """Convert a video to uint8 RGB frames: clamped to [-1, 1], then ROUNDED to the nearest of 256 levels (not cut off).

    `to_uint8(to_video(u))` is u exactly. Cutting off instead of rounding, as some projects do, costs half a level of
    bias. A half level goes to the even neighbour. Raises ValueError on NaN, which has no grey level.
    """
    levels = (video.detach().float().clamp(-1, 1) + 1) * 127.5
    if torch.isnan(levels).any():
        raise ValueError("video has NaN values, which are no pixels: look for the step that produced them")
    return levels.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def legal_size(size: tuple[int, int, int], strides: tuple[int, int, int]) -> Size:
    """Return the smallest legal (t, h, w) that holds `size`: t' = 1 + s_t n frames, h' = s_h n and w' = s_w n.

    The first frame stands alone (an image is a video of one frame), then whole groups of s_t frames follow. Legal
    sizes map to themselves. Raises ValueError unless every number is at least 1.
    """
    if min(*size, *strides) < 1:
        raise ValueError(f"size {tuple(size)} and strides {tuple(strides)} must be at least 1 on every axis")
    t, h, w = (-(-(n - lead) // s) * s + lead for n, s, lead in zip(size, strides, (1, 0, 0), strict=True))
    return Size(t, h, w)


def pad_to(video: Float[Tensor, "b 3 t h w"], size: tuple[int, int, int]) -> Float[Tensor, "b 3 t2 h2 w2"]:
    """Pad a video: repeat the last column at the right, the last row at the bottom, the last frame at the end.

    Law: `pad_to(v, size)[..., i, j, k] = v[..., min(i, t-1), min(j, h-1), min(k, w-1)]`, by any amount. Repeating
    keeps pixels causal (nothing before the end changes) and makes no edge that costs tokens. `crop_to` undoes it.
    Raises ValueError where `size` is smaller than the video or the video is empty.
    """
    have = tuple(video.shape[2:])
    if min(have) < 1 or any(new < old for new, old in zip(size, have, strict=True)):
        raise ValueError(f"a video of (t, h, w) = {have} cannot be padded to {tuple(size)}")
    for axis, (new, old) in enumerate(zip(size, have, strict=True), start=2):
        if new > old:
            index = torch.arange(new, device=video.device).clamp(max=old - 1)
            video = video.index_select(axis, index)
    return video


def crop_to(video: Float[Tensor, "b 3 t h w"], size: tuple[int, int, int]) -> Float[Tensor, "b 3 t2 h2 w2"]:
    """Return the first t frames, h rows and w columns of pixels, as a view: `crop_to(pad_to(v, any), v's size)` is v.

    Raises ValueError where `size` is not within the video.
    """
    have = tuple(video.shape[2:])
    if any(not 1 <= new <= old for new, old in zip(size, have, strict=True)):
        raise ValueError(f"a video of (t, h, w) = {have} cannot be cropped to {tuple(size)}")
    t, h, w = size
    return video[:, :, :t, :h, :w]
