"""A recording without a GPU: the operations of a call as torch dispatches them, run again in their order and in the
same memory; those of a backward pass too."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smalti.nn.replay import Recording


class _Tape(TorchDispatchMode):
    """The operations inside the block, with what they were given and what they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.steps.append((function, args, kwargs or {}, result))
        return result

    def again(self) -> None:
        """Run the operations on what lies in the same memory now, and put there what they give."""
        for function, args, kwargs, result in self.steps:
            fresh = function(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(fresh), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():  # else a view, or in place
                    place.copy_(value)

    def names(self) -> set[str]:
        """The operations, and `nonzero` where an index is a mask."""
        masks = {
            "nonzero" for f, args, _, _ in self.steps if "index" in str(f) for x in tree_leaves(args) if is_mask(x)
        }
        return {str(function) for function, *_ in self.steps} | masks


def is_mask(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bool


@contextmanager
def as_if_captured() -> Iterator[None]:
    """A block in which torch says that a CUDA stream is being captured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        yield


class Traced:
    """Records as CUDA does: Python runs once, its choices are those of that call, weights are read where they lay,
    results lie still until a replay writes over them."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.operations: set[str] = set()
        """Those that were recorded."""

    def __call__(self, run: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor]) -> Recording:
        with torch.inference_mode(False), torch.no_grad():
            inputs = tuple(torch.empty_like(x).copy_(x) for x in tensors)
            with as_if_captured(), _Tape() as tape:
                found = run(*inputs)
            results = tuple(torch.zeros_like(x) for x in found)
        self.operations |= tape.names()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            with torch.inference_mode(False), torch.no_grad():
                tape.again()
                for result, value in zip(results, found, strict=True):
                    result.copy_(value)

        return Recording(inputs, results, replay)
