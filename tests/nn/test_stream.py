"""The past of a stream that grows: equal to joining it anew, whoever forks it, with copies as many as it is long."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from smalti.generation import AutoregressiveConfig, TokenSamplingConfig, empty_prompt
from smalti.generation.autoregressive import sample_autoregressive
from smalti.nn.causal import Stream


class Copies(TorchDispatchMode):
    """Counts the numbers that are copied from tensor to tensor."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("cat", "stack", "clone", "copy_", "contiguous"):
            self.numbers += found.numel()
        return found


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), fork=st.integers(0, 11), dim=st.sampled_from([1, 2, -1])
)
@settings(max_examples=60, deadline=None)
def test_what_is_extended_is_what_would_be_joined_also_in_a_fork(sizes, fork, dim):
    layer, rng = nn.Identity(), torch.Generator().manual_seed(0)
    streams, wanted = [Stream()], [[]]
    with torch.no_grad():
        for number, size in enumerate(sizes):
            if number == fork:
                streams, wanted = [streams[0], streams[0].fork()], [wanted[0], [*wanted[0]]]
            for stream, pieces in zip(streams, wanted, strict=True):
                shape = [2, 3, 4]
                shape[dim] = size
                pieces.append(torch.rand(shape, generator=rng))
                found = stream.extend(layer, pieces[-1], dim)
                assert torch.equal(found, torch.cat(pieces, dim))
                carry = stream.get(layer)
                assert carry is not None
                assert torch.equal(carry, found)
                assert not carry.requires_grad
    for stream, pieces in zip(streams, wanted, strict=True):
        assert torch.equal(stream.carries[layer], torch.cat(pieces, dim))


def test_gradients_reach_what_is_new_and_stop_at_the_past():
    layer, stream = nn.Identity(), Stream()
    first, second = (torch.ones(1, 2, requires_grad=True) for _ in range(2))
    stream.extend(layer, first, 1)
    stream.extend(layer, second, 1).sum().backward()
    assert first.grad is None
    assert torch.equal(second.grad, torch.ones(1, 2))


def test_a_past_of_inference_mode_goes_on_outside_it_and_back():
    layer, stream = nn.Identity(), Stream()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad, torch.no_grad):
        with mode():
            found = stream.extend(layer, torch.ones(1, 3), 1)
    assert torch.equal(found, torch.ones(1, 15))


@pytest.mark.parametrize("groups", [1, 3])
def test_copies_of_a_sample_grow_with_its_length_and_not_with_the_square(groups):
    def copied(tokens):
        torch.manual_seed(0)
        config = AutoregressiveConfig(
            levels=(4,) * groups, grid=(1, 1, tokens), width=8, depth=1, heads=2, part_layers=0
        )
        model = config.build()
        with Copies() as counter:
            sample_autoregressive(model, empty_prompt(1, config.grid), TokenSamplingConfig())
        return counter.numbers

    assert copied(400) < 2.6 * copied(200)
