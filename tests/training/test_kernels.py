"""Number formats and choice of a GPU's kernels: what `fast_kernels` sets within a step, and nowhere else."""

import pytest
import torch

from smalti.devices import fast_kernels, whole_float32
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step
from tests.reference.plain_step import ALONE
from tests.training.test_step import GANS, clips, training


def flags():
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark


DEFAULT, FAST, WHOLE = (True, False, False), (True, True, True), (False, False, False)


@pytest.mark.parametrize("wanted", [False, True])
def test_a_step_has_fast_kernels_where_they_are_wanted_forward_backward_and_in_its_update(wanted):
    state, seen = start_tokenizer(training(fast_kernels=wanted, gan=GANS["patch"]), ALONE), {}
    for name, module in (("tokenizer", state.tokenizer.encoder.stem), ("discriminator", state.gan.discriminator)):
        module.register_forward_hook(lambda *_, name=name: seen.update({f"{name} forward": flags()}))
        weight = next(module.parameters())
        weight.register_hook(lambda _, name=name: seen.update({f"{name} backward": flags()}))
    state.optimizer.register_step_pre_hook(lambda *_: seen.update(update=flags()))
    assert flags() == DEFAULT
    step(state, clips(size=24).float())
    assert flags() == DEFAULT
    assert len(seen) == 5
    assert {*seen.values()} == {FAST if wanted else DEFAULT}


def test_a_step_that_fails_leaves_the_flags_as_they_were():
    state = start_tokenizer(training(fast_kernels=True, weights={"l1": 1.0}), ALONE)
    with pytest.raises(Exception, match="no weight for the loss"):
        step(state, clips().float())
    assert flags() == DEFAULT


def test_ids_are_found_in_whole_float32_also_within_fast_kernels():
    with fast_kernels(True):
        assert flags() == FAST
        with whole_float32(torch.device("cuda")):
            assert flags() == (False, False, True)
        assert flags() == FAST
    with whole_float32(torch.device("cuda")):
        assert flags() == WHOLE
    assert flags() == DEFAULT
