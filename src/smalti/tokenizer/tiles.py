"""Large frames in tiles, with the tokens and pixels of the whole frame.

Each tile is computed with as much of its surroundings as its own pixels can see (the reach of the network), and the
surroundings are cut off. That is exact where statistics are per position: no blending, no seams. The cost is
((tile + 2 reach) / tile)^2, so choose tiles well above the reach (`encoder.reach` pixels, `decoder.reach` latents).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import legal_size, pad_to, size_of


def encode_tiles(tokenizer: Tokenizer, video: Tensor, tile: int) -> Tensor:
    """Compute the ids of `video` (`b 3 t h w`), `tile` x `tile` pixels at a time.

    Raises ValueError unless the tokenizer is tile-exact and `tile` a multiple of its spatial stride.
    """
    _check(tokenizer, tile)
    _, _, stride = tokenizer.strides
    video = pad_to(video, legal_size(size_of(video), tokenizer.strides))
    margin = -(-_reach(tokenizer.encoder.reach) // stride) * stride
    rows = [
        torch.cat([_inside(tokenizer.encode(video[..., y.outer, x.outer]), y, x, stride, 1) for x in columns], -1)
        for y, columns in _grid(video.shape[3], video.shape[4], tile, margin)
    ]
    return torch.cat(rows, -2)


def decode_tiles(tokenizer: Tokenizer, ids: Tensor, tile: int) -> Tensor:
    """Compute the video of `ids` (`b t h w`), `tile` x `tile` pixels at a time. Raises as `encode_tiles` does."""
    _check(tokenizer, tile)
    _, _, stride = tokenizer.strides
    rows = [
        torch.cat([_inside(tokenizer.decode(ids[..., y.outer, x.outer]), y, x, 1, stride) for x in columns], -1)
        for y, columns in _grid(ids.shape[2], ids.shape[3], tile // stride, _reach(tokenizer.decoder.reach))
    ]
    return torch.cat(rows, -2)


def choose_tile(tokenizer: Tokenizer) -> int:
    """Choose a tile for large images: 8 times the reach, so that the surroundings cost (10 / 8)^2 at most."""
    stride = tokenizer.strides[2]
    reach = max(_reach(tokenizer.encoder.reach), _reach(tokenizer.decoder.reach) * stride)
    return math.ceil(max(1024, 8 * reach) / stride) * stride


class _Span:
    """One tile along one axis: what is kept, and what is read to compute it."""

    def __init__(self, start: int, end: int, margin: int, size: int) -> None:
        self.outer = slice(max(0, start - margin), min(size, end + margin))
        self.inner = slice(start - self.outer.start, end - self.outer.start)


def _grid(height: int, width: int, tile: int, margin: int) -> Iterator[tuple[_Span, list[_Span]]]:
    def spans(size: int) -> list[_Span]:
        return [_Span(start, min(start + tile, size), margin, size) for start in range(0, size, tile)]

    for y in spans(height):
        yield y, spans(width)


def _inside(result: Tensor, y: _Span, x: _Span, down: int, up: int) -> Tensor:
    """The kept part of a tile's result, whose resolution is that of the input divided by `down`, times `up`."""
    rows, columns = (slice(s.inner.start * up // down, s.inner.stop * up // down) for s in (y, x))
    return result[..., rows, columns]


def _check(tokenizer: Tokenizer, tile: int) -> None:
    stride = tokenizer.strides[2]
    if not tokenizer.is_tile_exact:
        raise ValueError("a tokenizer whose norms see more than one position is not tile-exact; train with 'position'")
    if tile < 1 or tile % stride:
        raise ValueError(f"a tile is a multiple of {stride} pixels, the spatial stride (found {tile})")


def _reach(reach: int | None) -> int:
    assert reach is not None, "a network that is tile-exact has a reach"
    return reach
