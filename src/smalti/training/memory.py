"""The memory of a training run: what its state takes, what its steps hold for the way back, and how they hold less."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.nn.causal import CausalConv
from smalti.training.task import Task

_FLOAT = 4
"""Bytes of a parameter, of its gradient, of each of Adam's two moments and of its EMA weight."""


def state_bytes(trained: Iterable[nn.Module], frozen: Iterable[nn.Module], averaged: nn.Module) -> int:
    """Return the bytes of a run between two steps: weights, gradients and both moments of what is trained, the EMA
    weights, and networks that only compute losses."""
    own = sum(parameter.numel() for module in trained for parameter in module.parameters())
    fixed = sum(parameter.numel() for module in (*frozen, averaged) for parameter in module.parameters())
    return _FLOAT * (4 * own + fixed)


def checkpoint_bytes(task: Task, trained: Iterable[nn.Module]) -> int:
    """Return the bytes of a checkpoint: weights and both moments of what is trained, and the EMA weights."""
    own = sum(parameter.numel() for module in trained for parameter in module.parameters())
    return _FLOAT * (3 * own + sum(parameter.numel() for parameter in task.ema.parameters()))


class _Held:
    """A tensor that a graph holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes(AbstractContextManager["SavedBytes"]):
    """A block in which the tensors that graphs hold for the way back are counted: `peak` has the most at once.

    They are nearly all that grows with the number of rows. Storages are counted once, however many views of them are
    held, and those of `modules` (their weights) not at all.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.peak = self._now = 0
        self._known = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
        self._holders = Counter[int]()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._hold, self._give)

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _hold(self, tensor: Tensor) -> Tensor | _Held:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._known:
            return tensor
        held = _Held(tensor)
        if not self._holders[place]:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._holders[place] += 1
        weakref.finalize(held, self._release, place, size)
        return held

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self._now -= size

    @staticmethod
    def _give(held: Tensor | _Held) -> Tensor:
        return held.tensor if isinstance(held, _Held) else held


def layers_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that a network has in lists: blocks, norms and changes of size, but not their own parts."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif not isinstance(child, CausalConv):  # its list is of taps
            yield from layers_of(child)


def recompute(network: nn.Module) -> None:
    """Let the layers of a network keep their inputs alone where gradients are recorded, and compute the rest of what
    they hold again on the way back (Chen et al. 2016). Values, gradients and the names of weights stay as they are."""
    for layer in layers_of(network):
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Tensor], *inputs: object) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    # No layer has random numbers, so their state need not be kept.
    found: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
    return found
