"""The first weights by the rules of other projects: which interval, which variance, which zeros."""

import itertools
import math

import pytest
import torch
from torch import nn

from smalti.nn.blocks import AdaptiveNorm, ResidualBlock, fill_truncated_normal, initialise
from smalti.nn.causal import CausalConv, CausalUpsample, Window
from smalti.quantize import FSQConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig, VQGANConfig

MODELS = {
    "images": TokenizerConfig(quantizer=FSQConfig(levels=(8, 5)), width=32, multipliers=(1, 2), strides=((1, 2),)),
    "video": TokenizerConfig(
        quantizer=FSQConfig(levels=(8, 5)), width=32, multipliers=(1, 2), strides=((2, 2),), time_kernel=3,
        past_kernel="full", depth=1, decoder_depth=1,
    ),
    "point": TokenizerConfig(
        quantizer=FSQConfig(levels=(8, 5)), width=32, multipliers=(1, 2), strides=((2, 2),), time_kernel=3, bias=False
    ),
    "vqgan": VQGANConfig(quantizer=FSQConfig(levels=(8, 5)), width=32, multipliers=(1, 2), latent=16),
}  # fmt: skip
KINDS = ("torch", "magicmaster", "flax")
BOTH = list(itertools.product(MODELS, KINDS))


def made(name, kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = Tokenizer(MODELS[name])
        initialise(tokenizer, kind)
        return tokenizer


def layers(tokenizer):
    """(kernels, bias, fan in, whether it is a tokenizer's upsampling) of every convolution and linear layer."""
    inner = set()
    for module in tokenizer.modules():
        if isinstance(module, CausalConv):
            inner |= {module.now, *module.past}
            kernels = [module.now.weight, *(tap.weight for tap in module.past)]
            upsamples = any(isinstance(m, CausalUpsample) and m.conv is module for m in tokenizer.modules())
            # One kernel over space and time: channels times the positions that one output sees.
            yield kernels, module.now.bias, kernels[0].shape[1] * sum(k[0, 0].numel() for k in kernels), upsamples
    for module in tokenizer.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in inner:
            yield [module.weight], module.bias, module.weight[0].numel(), False


@pytest.mark.parametrize("out", [4, 6])
@pytest.mark.parametrize("past", ["point", "full"])
def test_a_fresh_residual_block_adds_a_number_per_channel_to_its_skip(out, past):
    """The bias of its second convolution, whose weights are zero: a fresh network is its stems, strides and skips."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = ResidualBlock(4, out, Window(3, past), norm="position").double()
    x = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        skip = x if block.skip is None else block.skip(x)
        bias = block.conv2.now.bias.view(1, 1, -1, 1, 1)
        torch.testing.assert_close(block(x), skip + bias, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", MODELS)
def test_smaltis_own_changes_nothing_and_takes_no_random_number(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Tokenizer(MODELS[name])
        before, state = {k: v.clone() for k, v in tokenizer.state_dict().items()}, torch.get_rng_state()
        initialise(tokenizer, "smalti")
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_weights_fill_the_interval_of_their_fan_in(name, kind):
    for kernels, bias, fan_in, upsamples in layers(made(name, kind)):
        values = torch.cat([kernel.flatten() for kernel in kernels])
        if kind == "flax":
            limit, deviation = 2 / 0.8796 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)
        else:
            limit = math.sqrt((6 if kind == "magicmaster" and upsamples else 1) / fan_in)
            deviation = limit / math.sqrt(3)
        assert values.abs().max() <= limit * 1.0001
        if values.numel() > 2000:
            assert values.abs().max() > 0.9 * limit
            assert values.std().item() == pytest.approx(deviation, rel=0.1)
            assert abs(values.mean().item()) < 0.1 * deviation
        if bias is not None and (kind == "flax" or (kind == "magicmaster" and upsamples)):
            assert not bias.any()
        elif bias is not None:
            assert bias.abs().max() <= 1 / math.sqrt(fan_in)
            assert bias.numel() < 8 or bias.any()


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_nothing_starts_at_zero_where_smaltis_own_does(name, kind):
    ours, theirs = made(name, "smalti"), made(name, kind)
    blocks = [m.conv2.now.weight for m in ours.modules() if isinstance(m, ResidualBlock)]
    assert blocks
    assert not any(weight.any() for weight in blocks)
    for module in theirs.modules():
        if isinstance(module, ResidualBlock):
            assert module.conv2.now.weight.any()
        if isinstance(module, CausalConv):
            assert all(tap.weight.any() for tap in module.past)
        if isinstance(module, AdaptiveNorm):
            assert module.modulation.weight.any()


@pytest.mark.parametrize("name", ["images", "video", "point"])
def test_magicmasters_upsampling_starts_without_a_checkerboard(name):
    """All pixels and frames that come of one position are equal at the start."""
    tokenizer = made(name, "magicmaster")
    for module in tokenizer.modules():
        if isinstance(module, CausalUpsample):
            x = torch.randn(5, 2, module.conv.now.in_channels, 3, 4, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                y = module(x)
            time, space = module.strides
            blocks = y[1:].unflatten(0, (4, time)).unflatten(4, (3, space)).unflatten(6, (4, space))
            first = blocks[:, :1, :, :, :, :1, :, :1]
            assert torch.allclose(blocks, first.expand_as(blocks), atol=1e-5)
            assert y.std() > 0.1


def test_a_truncated_normal_has_the_same_numbers_in_every_torch_and_none_beyond_two_deviations():
    """Sums of 64 values of seed 0, and the number that follows them: torch's own were others in 2.6."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = torch.empty(64)
        fill_truncated_normal(values, 1.0)
        assert values.double().sum().item() == pytest.approx(1.4025031, abs=1e-5)
        assert (values.double() * torch.arange(64)).sum().item() == pytest.approx(47.3673331, abs=1e-4)
        assert torch.rand(()).item() == pytest.approx(0.3251, abs=1e-4)
        many = torch.empty(100_000, dtype=torch.float64)
        fill_truncated_normal(many, 0.3)
    assert many.abs().max() <= 0.6
    assert many.square().mean().sqrt() == pytest.approx(0.3 * 0.87962566, rel=0.01)
