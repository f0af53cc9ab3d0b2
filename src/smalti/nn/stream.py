"""The past of one video, owned by the caller, and what the chunks of a video may be."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from smalti.errors import BadTensor
from smalti.video import describe


class Stream:
    """The past of one video: what each causal layer has not read yet. A fresh one is its start; passing it advances it.

    State lives here and not on modules, so any number of videos can be in flight through one model, and a stream can be
    forked to try several continuations. The keys are the layers themselves.
    """

    def __init__(self) -> None:
        self._carries: dict[nn.Module, Tensor] = {}
        self._rooms: dict[nn.Module, Tensor] = {}  # in whose first places the carries of `extend` lie
        self._sizes: dict[nn.Module, tuple[int, ...]] = {}
        self.is_ending = False
        """Whether the next chunk is the last: layers then give what they hold back for later chunks."""

    def get(self, layer: nn.Module) -> Tensor | None:
        """Return what `layer` carried over, or None at the start of the video."""
        return self._carries.get(layer)

    def put(self, layer: nn.Module, carry: Tensor) -> None:
        """Replace what `layer` carries over. Detached and copied: a view would keep its whole chunk alive."""
        self._carries[layer] = carry.detach().clone()

    def extend(self, layer: nn.Module, new: Tensor, dim: int) -> Tensor:
        """Append `new` along axis `dim` to what `layer` carries over, and return all of it.

        The past is not copied at each call: it lies in a tensor with room for half as much again, so that n calls copy
        some 3n places and not n^2 / 2. What was returned before stays as it is. Where gradients are recorded or a graph
        is made, the whole is a new tensor; the carry is detached all the same.
        """
        past = self._carries.get(layer)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            whole = new if past is None else torch.cat([past, new], dim)
            self._rooms.pop(layer, None)
            self.put(layer, whole)
            return whole
        length = 0 if past is None else past.shape[dim]
        size, room = length + new.shape[dim], self._rooms.get(layer)
        if room is None or room.shape[dim] < size or room.is_inference() != torch.is_inference_mode_enabled():
            shape = [size + size // 2 if axis == dim % new.dim() else count for axis, count in enumerate(new.shape)]
            room = self._rooms[layer] = new.new_empty(shape)
            if past is not None:
                room.narrow(dim, 0, length).copy_(past)
        room.narrow(dim, length, new.shape[dim]).copy_(new)
        self._carries[layer] = room.narrow(dim, 0, size)
        return self._carries[layer]

    def fork(self) -> "Stream":
        """An independent stream with the same past; what a carry holds is never overwritten, so it can be shared, and
        only this stream goes on in the room behind it."""
        twin = Stream()
        twin._carries, twin._sizes = dict(self._carries), dict(self._sizes)
        twin.is_ending = self.is_ending
        return twin

    @property
    def carries(self) -> dict[nn.Module, Tensor]:
        """Tensors that the layers carry over, in the order in which they ran; an empty one marks that its layer has."""
        return dict(self._carries)

    @classmethod
    def continued(cls, carries: Mapping[nn.Module, Tensor]) -> "Stream":
        """Return a stream that goes on from such carries."""
        stream = cls()
        stream._carries = dict(carries)
        return stream

    def check_size(self, network: nn.Module, size: tuple[int, ...]) -> None:
        """Raise BadTensor unless every chunk of `network` has the `size` (batch, height, width) of the first."""
        first = self._sizes.setdefault(network, size)
        if first != size:
            raise BadTensor(f"a chunk of a stream has (batch, height, width) = {first} as the first one (found {size})")

    @property
    def started(self) -> bool:
        """Whether anything has passed."""
        return bool(self._carries)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(carry.nbytes for carry in self._carries.values())


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
