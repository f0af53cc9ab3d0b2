"""On a GPU a training step waits for nothing: no value is read, and what comes from the host is copied without waiting.

A step is run on tensors without values, where looking at one is an error, and every copy from the host is seen. What a
step of true values reads is in `test_step.py`."""

import sys
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smalti.data import Batch
from smalti.recipes import find
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.optimizer import make_optimizer
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.training.tokenizer_step import begin
from tests.reference.late import device_decides

META = torch.device("meta")


class Host(TorchDispatchMode):
    """Lists the calls between host and device that wait: all but copies that say that they do not. Scalars of kernels
    are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies = self.calls = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        result = call(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        self.calls += 1
        if {x.device.type for x in tensors} == {"cpu", "meta"}:
            self.copies += 1
            if not (kwargs or {}).get("non_blocking"):
                self.waits.append(str(call))
        return result


def without_values(config: TokenizerTraining) -> TrainState:
    """The state of a run whose weights have no values."""
    state = start_tokenizer(config, World(0, 1, torch.device("cpu")))
    state.tokenizer.to(META)
    state.ema.to(META)
    state.world = World(0, 1, META)
    state.optimizer = make_optimizer(state.tokenizer, config.optimizer)
    return state


@pytest.mark.parametrize("muon", ["optimizer.muon={turns: 2}", "optimizer.muon=null"])
@pytest.mark.parametrize("cut", ["accumulate=1", "accumulate=2"])
@pytest.mark.parametrize(("name", "frames"), [("tiny", 1), ("tiny-video", 5), ("tiny-video-conditional", 9)])
def test_a_whole_step_waits_for_nothing(name, frames, cut, muon, monkeypatch):
    device_decides(monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # these tensors have none
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta", "cpu"]
    )
    changes = ["init=null", "lpips=null", "gan=null", "precision=float32", "batch_size=4"]
    state = without_values(find(name, tiny=True).override([*changes, cut, muon]))
    batch = Batch(torch.zeros(2, frames, 32, 32, 3, dtype=torch.uint8), ("a", "b"), 0, (None, None), (0, 1), 2)
    for _ in range(2):
        with Host() as host:
            begun = begin(state, batch.to(META).video, batch.places)
        assert host.calls > 300
        assert host.copies > 0
        assert host.waits == []
    assert begun.figures is not None
    assert begun.figures.is_meta
    assert begun.ids is not None
    assert begun.ids.is_meta
