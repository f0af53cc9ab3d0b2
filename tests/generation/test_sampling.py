"""Draws from logits against exact probabilities, guidance in its one convention, and noise by key."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from smalti.errors import ConfigError
from smalti.generation import GuidanceConfig, SamplingConfig, TokenSamplingConfig
from smalti.generation.sampling import GuidedBatch, guide, gumbel, sample_logits, uniform_noise

CPU = torch.device("cpu")


def logits_of(values, seed=0):
    return 2 * torch.randn(1, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(logits, config, points=4000):
    """The share of each value over uniform numbers on a fine grid: its probability to 1/points."""
    uniform = (torch.arange(points) + 0.5) / points
    drawn = sample_logits(logits.expand(points, -1), uniform, config)
    return torch.bincount(drawn, minlength=logits.shape[1]) / points


@pytest.mark.parametrize("values", [2, 7, 320])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_samples_have_the_probabilities_of_the_softmax(values, temperature):
    logits = logits_of(values)
    wanted = (logits / temperature).softmax(1)[0]
    assert (spread(logits, TokenSamplingConfig(temperature=temperature)) - wanted).abs().max() <= 1 / 4000


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(0, 1000), st.integers(1, 50), st.floats(0.01, 1))
def test_top_k_and_top_p_leave_the_likeliest_and_their_proportions(values, seed, k, p):
    logits = logits_of(values, seed)
    probability = logits.softmax(1)[0]
    order = probability.argsort(descending=True)
    mass, left = 0.0, []
    for rank, value in enumerate(order.tolist()):
        if rank < k and mass < p - 1e-12:
            left.append(value)
        mass += probability[value].item()
    found = spread(logits, TokenSamplingConfig(top_k=k, top_p=p), points=2000)
    wanted = torch.zeros(values, dtype=torch.float64)
    wanted[left] = probability[left] / probability[left].sum()
    assert (found - wanted).abs().max() < 1.01 / 2000
    assert (found[wanted == 0] == 0).all()


def test_no_limits_change_nothing():
    logits, uniform = logits_of(20).expand(500, -1), torch.rand(500, generator=torch.Generator().manual_seed(1))
    plain = sample_logits(logits, uniform, TokenSamplingConfig())
    for limits in (TokenSamplingConfig(top_k=20), TokenSamplingConfig(top_k=10**9), TokenSamplingConfig(top_p=1.0)):
        assert torch.equal(sample_logits(logits, uniform, limits), plain)


def test_of_equal_logits_top_k_takes_the_first():
    uniform = torch.linspace(0, 1, 101)[:-1]
    assert set(sample_logits(torch.zeros(100, 9), uniform, TokenSamplingConfig(top_k=3)).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperature_zero_is_greedy_and_the_limit_of_small_ones(dtype):
    logits = torch.cat([logits_of(50, seed) for seed in range(200)]).to(dtype)
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(0))
    greedy = sample_logits(logits, uniform, TokenSamplingConfig(temperature=0.0))
    assert torch.equal(greedy, logits.argmax(1))
    for temperature in (1e-6, 1e-30, 1e-300):
        assert torch.equal(sample_logits(logits, uniform, TokenSamplingConfig(temperature=temperature)), greedy)
    assert torch.equal(sample_logits(logits, uniform, TokenSamplingConfig(top_k=1)), greedy)
    assert torch.equal(sample_logits(logits, uniform, TokenSamplingConfig(top_p=1e-9)), greedy)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24, 0.5])
def test_what_has_no_probability_is_never_sampled(uniform):
    logits = torch.full((1, 9), -1e4)
    logits[0, 3:6] = 0.0
    assert 3 <= sample_logits(logits, torch.tensor([uniform]), TokenSamplingConfig()).item() <= 5
    flat = torch.zeros(1, 70_000)
    assert 0 <= sample_logits(flat, torch.tensor([uniform]), TokenSamplingConfig()).item() < 70_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": math.nan},
        {"guidance": {"scale": math.nan}},
        {"guidance": {"scale": -1.0}},
        {"guidance": {"scale": 1e9}},
        {"guidance": {"scale": math.inf}},
        {"guidance": {"power": 0.0}},
        {"noise": math.nan},
        {"steps": 0},
        {"schedule": "cosign"},
    ],
)
def test_absurd_settings_are_one_line(wrong):
    with pytest.raises(ConfigError) as error:
        SamplingConfig.parse(wrong, where="sampling")
    assert str(error.value).startswith("sampling: ")
    assert next(iter(wrong)) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValidationError):
        SamplingConfig(**wrong)


def test_gumbel_noise_has_the_mean_and_variance_of_its_law():
    """Euler's constant and pi^2 / 6; and it is finite at 0 and just below 1."""
    noise = gumbel(torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    assert abs(noise.mean().item() - 0.577216) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.02
    assert torch.isfinite(gumbel(torch.tensor([0.0, 1 - 2.0**-24]))).all()


def test_noise_belongs_to_its_key_alone():
    together = uniform_noise(3, [4, 5, 6], 2, (2, 7), CPU)
    for row, sample in enumerate([4, 5, 6]):
        assert torch.equal(uniform_noise(3, [sample], 2, (2, 7), CPU)[0], together[row])
    others = [uniform_noise(3, [4], 1, (2, 7), CPU), uniform_noise(2, [4], 2, (2, 7), CPU), together[1:2]]
    assert all(not torch.equal(other[0], together[0]) for other in others)


def test_guidance_is_conditional_plus_scale_times_the_difference():
    conditional, free = logits_of(5, 1), logits_of(5, 2)
    for scale in (0.0, 1.0, 7.5):
        guided = guide(conditional, free, torch.tensor([[scale]], dtype=torch.float64))
        assert torch.allclose(guided, free + (1 + scale) * (conditional - free), rtol=1e-12)
    assert torch.equal(guide(conditional, free, torch.zeros(1, 1)), conditional)


def test_guiding_parts_guides_the_joint_distribution_of_independent_parts():
    """log p(x) of a token is the sum over parts, and so is its guided form, up to a constant."""
    c, u = [logits_of(4, s).log_softmax(1)[0] for s in (1, 2)], [logits_of(4, s).log_softmax(1)[0] for s in (3, 4)]
    joint = [(a[:, None] + b[None, :]).flatten() for a, b in (c, u)]
    scale = torch.tensor([[2.0]], dtype=torch.float64)
    whole = guide(joint[0][None], joint[1][None], scale).log_softmax(1)[0]
    parts = [guide(x[None], y[None], scale).log_softmax(1)[0] for x, y in zip(c, u, strict=True)]
    assert torch.allclose((parts[0][:, None] + parts[1][None, :]).flatten(), whole, rtol=1e-10, atol=1e-10)


def test_the_power_cosine_has_its_closed_form_and_nothing_where_it_is_negligible():
    config = GuidanceConfig(scale=25.0, schedule="power_cosine", power=3.0)
    assert config.at(0.0) == 0.0
    for progress in (0.5, 0.7, 0.99):
        wanted = 25 / 2 * (1 - math.cos(math.pi * progress**3))
        assert math.isclose(config.at(progress), wanted, rel_tol=1e-12)
    skipped = []
    for power in (1.0, 2.5, 3.0):
        config = GuidanceConfig(scale=7.0, schedule="power_cosine", power=power)
        skipped.append(sum(config.at(k / 640) == 0 for k in range(640)))
    assert [round(n / 640, 2) for n in skipped] == [0.06, 0.33, 0.4]
    assert GuidanceConfig(scale=3.0).at(0.0) == 3.0
    whole = GuidanceConfig(scale=7.0, schedule="power_cosine", negligible=0.0)
    assert sum(whole.at(k / 64) == 0 for k in range(64)) == 1


def test_the_guided_samples_come_once_more_without_their_class():
    guided = GuidedBatch.of([0.0, 2.0, 1.0], CPU)
    assert guided.samples.tolist() == [1, 2]
    assert guided.twice(torch.tensor([7, 8, 9])).tolist() == [7, 8, 9, 8, 9]
