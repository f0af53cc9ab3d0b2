"""Settings of other projects' samplers and transformers: MAGVIT's schedules, Halton-MaskGIT's roll and temperatures,
attention dropout."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.errors import ConfigError
from smalti.generation import LossConfig, MaskedConfig, SamplingConfig, empty_prompt, sample_steps
from smalti.generation.blocks import Attention
from smalti.generation.masked import halton_order, masked_share, step_counts
from smalti.generation.sampling import sample_logits
from tests.generation.test_parallel_decoding import masked, prompt, rows


@given(r=st.floats(1e-6, 1), n=st.integers(2, 2000))
def test_the_logarithm_and_polynomials_are_magvits(r, n):
    """-log2(r) / log2(n) and the value of the polynomial, cut to [0, 1]."""
    assert masked_share("log", r, n) == pytest.approx(min(1.0, max(0.0, -math.log2(r) / math.log2(n))), abs=1e-12)
    assert masked_share("poly:-1,0,1", r, n) == pytest.approx(masked_share("square", r, n))
    assert masked_share("poly:-1,1", r, n) == pytest.approx(masked_share("linear", r, n))
    assert masked_share("poly:2,-3,0,1.5", r, n) == pytest.approx(min(1, max(0, 2 * r**3 - 3 * r**2 + 1.5)), abs=1e-12)
    assert masked_share("poly:7", r, n) == 1


@given(n=st.integers(1, 300), steps=st.integers(1, 40), schedule=st.sampled_from(["log", "poly:1,-2,1", "poly:3"]))
def test_every_step_fills_something_and_all_is_filled(n, steps, schedule):
    counts = step_counts(n, steps, schedule)
    assert sum(counts) == n
    assert min(counts) >= 1
    assert len(counts) == min(n, steps)


def test_a_schedule_is_a_field_of_training_and_sampling_and_a_wrong_one_is_refused():
    for config in (LossConfig, SamplingConfig):
        assert config.parse({"schedule": "poly:-1,0,1"}).schedule == "poly:-1,0,1"
        assert config.parse({"schedule": "log"}).schedule == "log"
        for wrong in ("poly:", "poly:a", "cubic", "poly:1,,2", "poly:1e"):
            with pytest.raises(ConfigError, match="schedule"):
                config.parse({"schedule": wrong})


def test_a_roll_begins_the_halton_order_elsewhere_in_each_sample_and_goes_round():
    model, order = masked(), halton_order((2, 3, 4)).tolist()
    config = SamplingConfig(steps=24, schedule="linear", order="halton", roll=True)
    p = empty_prompt(12, (2, 3, 4))
    p = p._replace(condition=prompt(12).condition)
    seen, before = [[] for _ in range(12)], torch.zeros(12, 24, dtype=torch.bool)
    for step in sample_steps(model, p, config, seed=5):
        now = step.filled[..., 0].flatten(1)
        for b in range(12):
            seen[b] += (now[b] & ~before[b]).nonzero().flatten().tolist()
        before = now
    places = []
    for cells in seen:
        place = order.index(cells[0])
        places.append(place)
        assert cells == order[place:] + order[:place]
    assert len(set(places)) > 4
    alone = [step.filled for step in sample_steps(model, rows(p, [7]), config, seed=5, samples=[7])]
    assert torch.equal(alone[0][0, ..., 0].flatten().nonzero(), torch.tensor([[seen[7][0]]]))


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_the_inverse_temperature_goes_in_a_line_to_that_of_the_last_step(steps):
    config = SamplingConfig(temperature=0.5, final_temperature=2.0, hot_steps=2)
    for step in range(steps):
        inverse = 1 / 0.5 + (1 / 2.0 - 1 / 0.5) * (step / (steps - 1) if steps > 1 else 0)
        inverse /= 2 if step < 2 else 1
        assert config.sharpness(step, steps) / config.temperature == pytest.approx(inverse)
    assert {SamplingConfig().sharpness(step, steps) for step in range(steps)} == {1.0}


def test_a_step_samples_at_its_temperature():
    """The same noise at the end of a schedule as at that temperature throughout, and another result before it."""
    model, p = masked(), prompt(6, share=0.0)
    logits, noise = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)), torch.rand(500)
    sharp = sample_logits(logits * SamplingConfig(final_temperature=0.2).sharpness(3, 4), noise, SamplingConfig())
    assert torch.equal(sharp, sample_logits(logits, noise, SamplingConfig(temperature=0.2)))
    runs = {
        name: next(sample_steps(model, p, SamplingConfig(steps=3, order="random", **fields))).subtokens
        for name, fields in {
            "plain": {}, "colder": {"temperature": 0.3}, "hot": {"temperature": 0.3, "hot_steps": 1},
            "as hot": {"temperature": 0.6}, "later": {"final_temperature": 0.1},
        }.items()
    }  # fmt: skip
    assert torch.equal(runs["later"], runs["plain"])  # the first step still has the first temperature
    assert torch.equal(runs["hot"], runs["as hot"])
    assert not torch.equal(runs["hot"], runs["colder"])
    last = [
        list(sample_steps(model, p, SamplingConfig(steps=3, order="random", **fields)))[-1].subtokens
        for fields in ({}, {"final_temperature": 0.05})
    ]
    assert not torch.equal(*last)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_dropout_drops_weights_by_its_own_generator(causal):
    config = MaskedConfig(levels=(4,), grid=(1, 1, 1), width=8, depth=1, heads=2, attention_dropout=0.5)
    attention = Attention(config).double()
    x = torch.randn(3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(seed=None):
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        before = torch.get_rng_state()
        with torch.no_grad():
            y = attention(x, None, causal, None, rng)
        assert torch.equal(torch.get_rng_state(), before)
        return y

    whole = run()
    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))
    # The output is linear in the weights, so the mean over many masks is that without dropout.
    mean = torch.stack([run(seed) for seed in range(3000)]).mean(0)
    assert (mean - whole).abs().max() < 0.15 * whole.abs().max()
    attention.dropout = 0.0
    assert torch.equal(run(1), whole)
    attention.dropout = 1e-12
    torch.testing.assert_close(run(1), whole, rtol=1e-9, atol=1e-9)
    if causal:
        attention.dropout = 0.5
        changed = x.clone()
        changed[:, 5:] += 1
        with torch.no_grad():
            ys = [attention(v, None, True, None, torch.Generator().manual_seed(4)) for v in (x, changed)]
        assert torch.equal(ys[0][:, :5], ys[1][:, :5])
