"""On a GPU the losses and gradients of a training step wait for nothing: no value is read, nothing is copied there.

A step is run on tensors without values, where looking at one is an error, and every copy from the host is seen."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smalti.recipes import find
from smalti.training import tokenizer_step
from smalti.training.distributed import Part, World
from smalti.training.optimizer import clip_gradient, make_optimizer, update_ema
from smalti.training.tokenizer_state import TrainState, start_tokenizer

META = torch.device("meta")


class Host(TorchDispatchMode):
    """Lists the calls that bring a tensor from the host to the device; scalars of kernels are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        result = call(*args, **(kwargs or {}))
        given = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = {x.device.type for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        self.calls += 1
        if "cpu" in given or "cpu" in made:
            self.copies.append(str(call))
        return result


def without_values(config) -> TrainState:
    """The state of a run whose weights have no values."""
    state = start_tokenizer(config, World(0, 1, torch.device("cpu")))
    state.tokenizer.to(META)
    state.ema.to(META)
    state.world = World(0, 1, META)
    state.optimizer = make_optimizer(state.tokenizer, config.optimizer)
    return state


@pytest.mark.parametrize(("name", "frames"), [("tiny", 1), ("tiny-video", 5), ("tiny-video-conditional", 9)])
def test_losses_and_gradients_wait_for_nothing(name, frames, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # these tensors have none
    muon = ["optimizer.muon={turns: 2}", "init=null", "lpips=null", "gan=null", "precision=float32"]
    state = without_values(find(name, tiny=True).override(muon))
    video = torch.empty(2, 3, frames, 32, 32, device=META)
    part = Part(video, (0, 1), torch.zeros(2, dtype=torch.long, device=META), 1.0, 2)
    rates = [torch.empty((), device=META) for _ in state.optimizer.param_groups]
    with Host() as host:
        tokenizer_step.accumulate(state, part)
        clip_gradient(state.tokenizer, 1.0)
        update_ema(state.ema, state.tokenizer, 0.9)
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        state.optimizer.move_kernels()
    assert host.calls > 300
    assert host.copies == []
