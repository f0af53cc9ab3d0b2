"""Trivial reconstructions that stand in every table of tokenizers: what a score is worth that they reach too.

Functions of frames, `t h w 3` uint8 -> (bytes, frames), as codecs are: one colour a clip, means of squares, JPEG.
"""

import io
import math

import torch
from PIL import Image
from torch import Tensor

from smalti.data.images import decode_image


def grey(frames: Tensor) -> tuple[int, Tensor]:
    """Middle grey, which costs nothing."""
    return 0, torch.full_like(frames, 128)


def mean_colour(frames: Tensor) -> tuple[int, Tensor]:
    """The mean colour of the clip, in three bytes."""
    mean = frames.double().mean((0, 1, 2)).round().to(torch.uint8)
    return 3, mean.expand_as(frames).contiguous()


def block_means(frames: Tensor, side: int = 16, length: int = 1) -> tuple[int, Tensor]:
    """The mean colour of every square of `side` pixels over `length` frames, three bytes each; the last are smaller."""
    t, h, w, _ = frames.shape
    made = torch.empty_like(frames)
    for first in range(0, t, length):
        for top in range(0, h, side):
            for left in range(0, w, side):
                place = (slice(first, first + length), slice(top, top + side), slice(left, left + side))
                made[place] = frames[place].double().mean((0, 1, 2)).round().to(torch.uint8)
    blocks = math.ceil(t / length) * math.ceil(h / side) * math.ceil(w / side)
    return 3 * blocks, made


def jpeg(frames: Tensor, most: int) -> tuple[int, Tensor]:
    """Every frame as the best JPEG of at most `most` bytes in all; the coarsest there is where none is so small."""
    share, size, made = most // len(frames), 0, []
    for frame in frames:
        image = Image.fromarray(frame.numpy())
        low, high = 1, 95
        while low < high:  # a JPEG grows with its quality
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(_coded(image, middle)) <= share else (low, middle - 1)
        data = _coded(image, low)
        size += len(data)
        made.append(decode_image(io.BytesIO(data), "JPEG"))
    return size, torch.stack(made)


def _coded(image: Image.Image, quality: int) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()
