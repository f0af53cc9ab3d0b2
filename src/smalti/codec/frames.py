"""Between frames and blocks: what a tokenizer makes of a video, group by group, in constant memory, and back."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, groupby, islice

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from smalti.codec.entropy import decode_ids
from smalti.codec.format import Block, Head
from smalti.errors import IntegrityError
from smalti.nn.stream import Stream
from smalti.tokenizer.reconstruct import TILED_ABOVE, chunk_frames
from smalti.tokenizer.tiles import choose_tile, decode_tiles, encode_tiles
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import crop_to, to_uint8, to_video

BLOCK_TOKENS = 1 << 16
"""About as many tokens make a block of video: tables are learnt anew in each, which costs a few hundred bytes."""


def head_for(tokenizer: Tokenizer, size: tuple[int, int], rate: Fraction | None, group: int = 0) -> Head:
    """The head of a new file of frames of `size` = (rows, columns); a picture has no `rate`."""
    head = Head(
        kind="picture" if rate is None else "video",
        tokenizer=tokenizer.fingerprint,
        levels=tokenizer.levels,
        strides=tokenizer.strides,
        height=size[0],
        width=size[1],
        rate=None if rate is None else (rate.numerator, rate.denominator),
        block=1,
        group=group,
    )
    rows, columns = head.grid
    return head if rate is None else head.replace({"block": max(1, BLOCK_TOKENS // (rows * columns))})


@torch.inference_mode()
def encode_picture(tokenizer: Tokenizer, frame: UInt8[Tensor, "h w 3"]) -> Int[Tensor, "1 1 h2 w2"]:
    """The ids of a picture, tile by tile where it is large and that changes no token."""
    video = to_video(frame).to(_device(tokenizer))
    if _in_tiles(tokenizer, frame.shape[0], frame.shape[1]):
        return encode_tiles(tokenizer, video, choose_tile(tokenizer))
    return tokenizer.encode(video)


@torch.inference_mode()
def encode_blocks(tokenizer: Tokenizer, frames: Iterator[Tensor], head: Head) -> Iterator[tuple[int, Tensor]]:
    """(frames, ids `1 t h w`) of each block of a video, whose frames come as uint8 `h w 3`."""
    for group in _groups(frames, head.group):
        waiting, given = None, 0
        for part in _encoded(tokenizer, group):
            waiting = part if waiting is None else torch.cat([waiting, part], 1)
            while waiting.shape[1] > head.block:  # there is more, so this block is full
                full = head.room(given)
                yield full, waiting[:, : head.block]
                waiting, given = waiting[:, head.block :], given + full
        assert waiting is not None, "a group has a frame"
        yield group.taken - given, waiting


@torch.inference_mode()
def decode_blocks(
    tokenizer: Tokenizer, blocks: Iterable[Block], head: Head, name: str
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """The frames of blocks that follow each other, the first of which starts a group."""
    for _, group in groupby(blocks, lambda block: head.group_start(block.start)):
        ids = ((block.frames, _ids(block, head, name).to(_device(tokenizer))) for block in group)
        for left, video in _decode_group(tokenizer, ids, head):
            whole = crop_to(video, (min(left, video.shape[2]), head.height, head.width))
            yield from to_uint8(whole.cpu())[0]


def _decode_group(tokenizer: Tokenizer, ids: Iterator[tuple[int, Tensor]], head: Head) -> Iterator[tuple[int, Tensor]]:
    """(frames wanted, video) of one group. The cuts depend on the file alone: equal pieces give equal bits."""
    if head.kind == "picture":
        yield from ((left, _decode_picture(tokenizer, picture, head)) for left, picture in ids)
    elif not tokenizer.is_causal:
        counts, parts = zip(*ids, strict=True)
        yield sum(counts), tokenizer.decode(torch.cat(parts, 1))
    else:
        stream = Stream()
        latents = chunk_frames(head.height, head.width, head.strides[0]) // head.strides[0]
        for left, whole in ids:
            for part in whole.split(latents, 1):
                video = tokenizer.decode(part, stream)
                yield left, video
                left -= video.shape[2]


def _decode_picture(tokenizer: Tokenizer, ids: Tensor, head: Head) -> Tensor:
    if _in_tiles(tokenizer, head.height, head.width):
        return decode_tiles(tokenizer, ids, choose_tile(tokenizer))
    return tokenizer.decode(ids)


def _in_tiles(tokenizer: Tokenizer, height: int, width: int) -> bool:
    return height * width > TILED_ABOVE and tokenizer.is_tile_exact


def _ids(block: Block, head: Head, name: str) -> Int[Tensor, "1 t h w"]:
    shape = (head.latents(block.start, block.frames), *head.grid)
    try:
        return torch.from_numpy(decode_ids(block.data, shape, head.levels))[None]
    except ValueError as error:
        raise IntegrityError(f"{name}: the block of frame {block.start} cannot be decoded: {error}") from None


class _Group:
    """The frames of one group, counted as they are taken."""

    def __init__(self, frames: Iterator[Tensor]) -> None:
        self._frames, self.taken = frames, 0

    def __iter__(self) -> "Iterator[Tensor]":
        return self

    def __next__(self) -> Tensor:
        frame = next(self._frames)
        self.taken += 1
        return frame


def _groups(frames: Iterator[Tensor], size: int) -> Iterator[_Group]:
    while (first := next(frames, None)) is not None:
        yield _Group(islice(chain([first], frames), size or None))


def _encoded(tokenizer: Tokenizer, group: _Group) -> Iterator[Tensor]:
    """The ids of one group, in pieces."""
    device = _device(tokenizer)
    if not tokenizer.is_causal:
        yield tokenizer.encode(to_video(torch.stack(list(group))).to(device))
        return

    def chunks() -> Iterator[Tensor]:
        length = 1
        while taken := list(islice(group, length)):
            yield to_video(torch.stack(taken)).to(device)
            length = chunk_frames(taken[0].shape[0], taken[0].shape[1], tokenizer.strides[0])

    yield from tokenizer.encode_stream(chunks())


def _device(tokenizer: Tokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
