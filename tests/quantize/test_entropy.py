"""Entropies against the sum over every code, written out; saturation, chunks, memory."""

import math
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.quantize import FSQConfig, LFQConfig, entropy
from smalti.quantize.entropy import batch_entropy, halves, mean_code, soft_digits, token_entropy

CASES = [(2,) * 10, (2,), (3, 4), (8, 8, 5), (5, 4, 3, 2)]


def written_out(z, values, levels, temperature):
    """log p over all codes at every position, by softmax of minus squared distances to the full codebook."""
    grids = torch.cartesian_prod(*(torch.arange(level) for level in levels)).view(-1, len(levels))
    codebook = values[torch.arange(len(levels)), grids]
    return (-(z[:, None] - codebook).square().sum(-1) / temperature).log_softmax(-1)


def case(levels, scale=1.0, n=37):
    rng = torch.Generator().manual_seed(1)
    config = LFQConfig(bits=len(levels)) if set(levels) == {2} else FSQConfig(levels=levels)
    values = config.build().double().values()
    return scale * torch.randn(n, len(levels), generator=rng, dtype=torch.float64), values


@pytest.mark.parametrize("levels", CASES)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_entropies_and_gradients_equal_the_sum_over_all_codes(levels, temperature, scale):
    z, values = case(levels, scale)
    z.requires_grad_()
    log_p = soft_digits(z, values, levels, temperature)
    ours = token_entropy(log_p), batch_entropy(log_p, levels)
    log_q = written_out(z, values, levels, temperature)
    mean = log_q.exp().mean(0)
    theirs = -(log_q.exp() * log_q).sum(-1).mean(), -(mean * mean.clamp_min(1e-300).log()).sum()
    for a, b in zip(ours, theirs, strict=True):
        assert math.isclose(a.item(), b.item(), rel_tol=1e-11, abs_tol=1e-13)
    for a, b in zip(ours, theirs, strict=True):
        (ga,), (gb,) = (torch.autograd.grad(x, z, retain_graph=True) for x in (a, b))
        # The written-out logits are differences of numbers as large as (scale^2 / temperature): that is their error.
        assert (ga - gb).abs().max() <= 1e-9 * gb.abs().max() + 1e-16 * (1 + scale**2 / temperature)


@pytest.mark.parametrize("levels", CASES)
def test_the_marginal_is_a_distribution_whatever_the_chunk(levels, monkeypatch):
    z, values = case(levels)
    log_p = soft_digits(z, values, levels, 0.3)
    whole = mean_code(log_p, levels)
    assert whole.numel() == math.prod(levels)
    assert math.isclose(whole.sum().item(), 1, rel_tol=1e-12)
    monkeypatch.setattr(entropy, "_CHUNK", 5 * sum(whole.shape))
    assert torch.allclose(mean_code(log_p, levels), whole, rtol=1e-13, atol=0)


def test_saturated_digits_give_finite_gradients():
    for scale in (1e2, 1e4, 1e6):
        z = (scale * torch.randn(2, 18, 1, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
        losses = LFQConfig(bits=18, temperature=0.01).build()(z).losses
        (gradient,) = torch.autograd.grad(losses["token_entropy"] - losses["batch_entropy"], z)
        assert torch.isfinite(gradient).all()
        assert losses["token_entropy"].item() < 1e-12


def test_uniform_use_reaches_the_maximum():
    quantizer = LFQConfig(bits=10).build()
    every = quantizer.decode(torch.arange(1024).view(1, 1, 32, 32)) * 50
    assert math.isclose(quantizer(every).losses["batch_entropy"].item(), 10 * math.log(2), rel_tol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    levels=st.sampled_from(CASES),
    n=st.integers(1, 40),
    scale=st.sampled_from([0.0, 0.05, 1.0, 20.0]),
    temperature=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_the_batch_entropy_lies_between_the_token_entropy_and_its_two_bounds(levels, n, scale, temperature):
    z, values = case(levels, scale, n)
    log_p = soft_digits(z, values, levels, temperature)
    token, batch = token_entropy(log_p).item(), batch_entropy(log_p, levels).item()
    assert token - 1e-9 <= batch <= min(token + math.log(n), math.log(math.prod(levels))) + 1e-9


def test_both_bounds_are_reached():
    quantizer = LFQConfig(bits=10).build().double()
    sure = quantizer.decode(torch.arange(16).view(1, 1, 4, 4)) * 50
    assert math.isclose(quantizer(sure).losses["batch_entropy"].item(), math.log(16), rel_tol=1e-9)
    even = quantizer(torch.zeros(3, 10, 1, 2, 2)).losses
    assert math.isclose(even["batch_entropy"].item(), even["token_entropy"].item(), rel_tol=1e-9)


def test_one_undecided_position_has_the_entropy_of_the_whole_codebook():
    """log(min(n, codes)) = 0 is no bound for soft digits."""
    entropy = LFQConfig(bits=18).build()(torch.zeros(1, 18, 1, 1, 1)).losses["batch_entropy"]
    assert math.isclose(entropy.item(), 18 * math.log(2), rel_tol=1e-6)
    assert round(entropy.item(), 2) == 12.48


def test_autocast_leaves_entropies_in_float32():
    quantizer, z = LFQConfig(bits=14).build(), torch.randn(1, 14, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = quantizer(z).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(z).losses
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_the_split_is_balanced():
    assert halves((2,) * 18) == 9
    assert halves((8, 8, 8, 5, 5, 5)) == 3
    assert halves((2,)) in (0, 1)


def test_eighteen_bits_and_16384_tokens_fit_in_a_gigabyte():
    quantizer = LFQConfig(bits=18).build()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    z = torch.randn(1, 18, 1, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = quantizer(z).losses
    (losses["token_entropy"] - losses["batch_entropy"]).backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert torch.isfinite(z.grad).all()
    assert grown < 1024, f"{grown:.0f} MB"
