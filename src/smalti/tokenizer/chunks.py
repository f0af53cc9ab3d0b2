"""Chunks of a stream: what they may be, and which is the last."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from smalti.errors import BadTensor
from smalti.nn.stream import Stream
from smalti.video import crop_to, describe

_Item = TypeVar("_Item")


def check_whole(stream: Stream | None, remedy: str, wanted: str) -> None:
    """Raise BadTensor where images or ids of images are given as the chunk of a stream."""
    if stream is not None:
        raise BadTensor(f"a chunk of a stream is {wanted}: {remedy}")


def check_stream(stream: object, option: str) -> None:
    """Raise BadTensor for what is no stream: the value of an `option` that was given without its name."""
    if stream is not None and not isinstance(stream, Stream):
        raise BadTensor(f"the second argument is a Stream, and others are named, as {option}={stream}")


def is_no_frames(chunk: object, axis: int) -> bool:
    """Return whether a chunk is a tensor without frames in `axis`."""
    return isinstance(chunk, Tensor) and chunk.ndim == axis + 3 and not chunk.shape[axis]


def crop(video: Float[Tensor, "b 3 *t h w"], size: tuple[int, ...]) -> Float[Tensor, "b 3 *t2 h2 w2"]:
    """Crop to (frames, height, width), of images to (height, width). Raises BadTensor for what is not within them."""
    have = tuple(video.shape[2:])
    if len(size) != len(have) or any(not 1 <= wanted <= most for wanted, most in zip(size, have, strict=True)):
        axes = "(frames, height, width)" if len(have) == 3 else "(height, width)"
        raise BadTensor(f"size: {size} is not within {axes} = {have}, which these ids give")
    if len(size) == 3:
        return crop_to(video, (size[0], size[1], size[2]))
    return video[..., : size[0], : size[1]]


def several(chunks: Iterable[Tensor], remedy: str) -> Iterable[Tensor]:
    """Return chunks if they are several tensors. Raises BadTensor for one tensor, with what makes chunks of it."""
    if isinstance(chunks, Tensor) or not isinstance(chunks, Iterable):
        raise BadTensor(f"chunks must be several tensors, as {remedy} (found {describe(chunks)})")
    return chunks


def mark_last(items: Iterable[_Item], *, waits: bool) -> Iterator[tuple[_Item, bool]]:
    """Yield each item, and whether it is the last one; unless it `waits` for the next to know, each at once as if it
    was not."""
    waiting: list[_Item] = []
    for item in items:
        if waits:
            waiting.append(item)
            if len(waiting) == 1:
                continue
            item = waiting.pop(0)
        yield item, False
    for item in waiting:
        yield item, True
