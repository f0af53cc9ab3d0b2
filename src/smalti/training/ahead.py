"""The batch of the next step is on its way to the device while this one is computed."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

_T = TypeVar("_T")
_B = TypeVar("_B", bound="Movable")


@runtime_checkable
class Movable(Iterable[object], Protocol):
    """A batch that can be copied to a device: a tuple, some of whose fields are tensors."""

    def to(self: _B, device: torch.device) -> _B:
        """Return it there; the program does not wait for a CUDA device."""
        ...


class Copies:
    """Copies of batches to a CUDA device, on a stream of their own; to other devices, where nothing is ahead, plain
    ones."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device) if device.type == "cuda" else None

    @property
    def are_ahead(self) -> bool:
        """Whether a copy costs the step before it no time."""
        return self._stream is not None

    def begin(self, batch: _B) -> _B:
        """Begin a copy, from any thread; `finish` makes it fit for use."""
        if self._stream is None:
            return batch.to(self._device)
        with self._cuda.stream(self._stream):
            return batch.to(self._device)

    def finish(self, batch: _B) -> _B:
        """Let the work that comes now wait for the copies that were begun, and nothing else be put into the memory of
        this one until that work is done. The program waits for neither."""
        if self._stream is not None:
            current = self._cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for part in batch:
                if isinstance(part, Tensor) and part.is_cuda:
                    part.record_stream(current)
        return batch


def done(call: Callable[[], _T]) -> "Future[_T]":
    """Make a call now; what it gives or raises is for later."""
    future = Future[_T]()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future
