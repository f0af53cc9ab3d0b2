"""Frames as a batch of images and back, and joined in time, in the order in memory that kernels look for.

A kernel takes a tensor for channels-last by its strides, those of axes of size one among them. For one frame of one
video `flatten` and `unflatten` leave such an axis a stride that says "channels first", and `cat`, `stack` and
`repeat_interleave` lose the order of any five axes: each convolution then converts (1.2 to 1.45 times as long). Here
axes are joined and split with the channels in the last place, where every tensor has the strides of a dense one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def time_first(
    x: Float[Tensor, "b c t h w"], dtype: torch.dtype, *, contiguous: bool = False
) -> Float[Tensor, "t b c h w"]:
    """Return a video, latents or codes with time first, in a number type, with the channels last in memory or, if
    `contiguous`, apart: whatever the order of x, always the same, so that equal numbers give equal bits."""
    frames = x.permute(2, 0, 1, 3, 4)
    order = torch.contiguous_format if contiguous else torch.channels_last
    return to_frames(to_images(frames).to(dtype, memory_format=order), frames.shape[:2])


def channels_to_end(x: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b h w c"]:
    """Return a view with the channels in the last place."""
    return x.permute(0, 1, 3, 4, 2)


def channels_from_end(x: Float[Tensor, "t b h w c"]) -> Float[Tensor, "t b c h w"]:
    """Return a view with the channels back in their place, the inverse of `channels_to_end`."""
    return x.permute(0, 1, 4, 2, 3)


def to_images(frames: Float[Tensor, "t b c h w"]) -> Float[Tensor, "n c h w"]:
    """Join time and batch; a view unless frames are left out in between."""
    return channels_to_end(frames).flatten(0, 1).permute(0, 3, 1, 2)


def to_frames(images: Float[Tensor, "n c h w"], counts: Sequence[int]) -> Float[Tensor, "t b c h w"]:
    """Split images into `counts` = (t, b), the inverse of `to_images`."""
    return channels_from_end(images.permute(0, 2, 3, 1).unflatten(0, counts))


def join_frames(parts: Sequence[Float[Tensor, "_ b c h w"]]) -> Float[Tensor, "t b c h w"]:
    """Join in time."""
    return channels_from_end(torch.cat([channels_to_end(part) for part in parts]))


def repeat_frames(x: Float[Tensor, "t b c h w"], times: int) -> Float[Tensor, "t2 b c h w"]:
    """Repeat each frame."""
    return channels_from_end(channels_to_end(x).repeat_interleave(times, 0))


def interleave(first: Float[Tensor, "t b c h w"], second: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t2 b c h w"]:
    """Return the frames of both in turns."""
    return channels_from_end(torch.stack([channels_to_end(first), channels_to_end(second)], 1).flatten(0, 1))


def order_weights(network: nn.Module) -> None:
    """Lay the weights of 2-D convolutions out with the channels last, in place, for inputs that lie so: torch converts
    others at every call, which took up to 5 % of the time of a small image."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
