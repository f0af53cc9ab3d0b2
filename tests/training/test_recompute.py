"""Layers that are computed again on the way back: equal figures and weights, in less memory."""

import pytest
import torch

from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import PatchConfig
from smalti.quantize import FSQConfig
from smalti.training.config import GANConfig, HeldTokens, TokenizerTraining
from smalti.training.memory import SavedBytes
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step
from tests.reference.plain_step import ALONE
from tests.tokenizer.graph_laws import CONFIGS

WEIGHTS = {"l1": 1.0, "batch_entropy": -0.1}
GAN = GANConfig(discriminator=PatchConfig(width=8), adaptive=True, weight=0.75, lecam=0.1)
FORMS = {
    "micro-batches": {"accumulate": 2},
    "gan": {"gan": GAN},
    "gan, micro-batches": {"gan": GAN, "accumulate": 4},
    "bfloat16": {"precision": "bfloat16"},
}
FAMILIES = {name: config for name, config in CONFIGS.items() if config.modes == 1}
"""Configs that are trained: quarters are switched on afterwards."""


def started(tokenizer, again, **changes):
    quantizer = FSQConfig(levels=(8, 5, 4), losses=("batch_entropy",))
    settings = {
        "tokenizer": tokenizer.with_quantizer(quantizer), "data": ImagesConfig(path=photos("train")), "steps": 3,
        "batch_size": 4, "weights": WEIGHTS, "checkpoint_activations": again,
    }  # fmt: skip
    state = start_tokenizer(TokenizerTraining(**settings | changes), ALONE)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():  # what starts at zero would hide faults
        for parameter in state.tokenizer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return state


def clips(tokenizer, seed):
    first, stride = tokenizer.first_frames, tokenizer.total_strides[0]
    frames = 1 if tokenizer.time_kernel == 1 else first + 2 * stride
    return torch.rand(4, 3, frames, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trained(tokenizer, again, **changes):
    """What three steps are logged as, and all tensors that they leave."""
    state = started(tokenizer, again, **changes)
    lines = [step(state, clips(tokenizer, seed)).line() for seed in range(3)]
    assert not any(line["skipped"] for line in lines)
    parts = {"ema": state.ema, **state.tensors()}
    return lines, {f"{part}.{name}": t for part, own in parts.items() for name, t in own.state_dict().items()}


def assert_equal(tokenizer, **changes):
    (lines, tensors), (again, others) = (trained(tokenizer, again, **changes) for again in (False, True))
    assert lines == again
    assert tensors.keys() == others.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], others[name])]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_that_are_computed_again_train_to_the_same_bits(name):
    assert_equal(FAMILIES[name])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["video point fsq", "conditional"])
def test_they_do_with_micro_batches_and_a_discriminator_and_in_bfloat16(name, form):
    assert_equal(FAMILIES[name], **FORMS[form])


def test_they_do_where_tokens_are_held():
    assert_equal(FAMILIES["conditional"], held_tokens=HeldTokens(), still_frames=7)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_holds_the_inputs_of_layers_alone(name):
    held = []
    for again in (False, True):
        state = started(FAMILIES[name], again)
        with SavedBytes([state.tokenizer]) as saved:
            step(state, clips(FAMILIES[name], 0))
        held.append(saved.peak)
    assert held[1] < 0.6 * held[0]
