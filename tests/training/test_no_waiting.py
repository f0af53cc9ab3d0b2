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
from smalti.training.generator_task import begin_generator
from smalti.training.optimizer import make_optimizer
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.training.tokenizer_step import begin
from tests.reference.late import device_decides
from tests.reference.plain_step import ALONE
from tests.reference.token_models import MODELS, batch, save_tokenizer, started, training

META = torch.device("meta")
NOWHERE = World(0, 1, META)


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
    state = start_tokenizer(config, ALONE)
    state.tokenizer.to(META)
    state.ema.to(META)
    state.world = NOWHERE
    state.optimizer = make_optimizer(state.tokenizer, config.optimizer)
    return state


@pytest.fixture
def nowhere(monkeypatch):
    """Lets tensors without values be those of a device that decides by itself."""
    device_decides(monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # these tensors have none
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta", "cpu"]
    )


@pytest.mark.parametrize("muon", ["optimizer.muon={turns: 2}", "optimizer.muon=null"])
@pytest.mark.parametrize("cut", ["accumulate=1", "accumulate=2"])
@pytest.mark.parametrize(
    ("name", "frames", "held"),
    [("tiny", 1, "null"), ("tiny-video", 5, "null"), *(("tiny-video-conditional", 9, held) for held in ("null", "{}"))],
)
def test_a_whole_step_waits_for_nothing(name, frames, held, cut, muon, nowhere):
    changes = ["init=null", "lpips=null", "gan=null", "precision=float32", "batch_size=4", f"held_tokens={held}"]
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


@pytest.mark.parametrize("muon", [{"turns": 2}, None])
@pytest.mark.parametrize("visible", [0.0, 0.5])
@pytest.mark.parametrize("model", MODELS)
def test_a_whole_step_of_a_token_model_waits_for_nothing(model, visible, muon, nowhere, monkeypatch):
    optimizer = {"lr": 1e-3, "warmup": 2, "muon": muon}
    steps_wait_for_nothing(training(model, optimizer=optimizer, loss={"visible": visible}), 6, monkeypatch)


def test_a_step_with_hints_waits_for_nothing(tmp_path, nowhere, monkeypatch):
    config = training("classes", tokenizer=str(save_tokenizer(tmp_path / "tokenizer")))
    steps_wait_for_nothing(config, 12, monkeypatch)


def steps_wait_for_nothing(config, steps, monkeypatch):
    """Run some steps, in which all tasks come, on tensors without values."""
    state = started(config, ALONE)
    if state.tokenizer is not None:
        state.tokenizer.to(META)
    state.model.to(META)
    state.ema.model.to(META)
    state.world, state.optimizer = NOWHERE, make_optimizer(state.model, config.optimizer)
    # There is no random generator without values; that of a CPU may make such tensors.
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator("cpu" if device == META else device))
    seen = set()
    for _ in range(steps):
        with Host() as host:
            begun = begin_generator(state, batch().to(META))
        assert host.calls > 200
        assert host.copies > 3
        assert host.waits == []
        assert begun.figures.is_meta
        seen.add(begun.task)
    assert seen == {share.task.kind for share in config.tasks}
