"""The token contract's first two lines: ids, digits and codes are one bijection, and codes are decode(encode(z))."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.config import Config
from smalti.errors import ConfigError
from smalti.quantize import CodebookConfig, DSQConfig, FSQConfig, LFQConfig, QuantizerConfig, ScalarQuantizer

CONFIGS: list[QuantizerConfig] = [
    LFQConfig(bits=1),
    LFQConfig(bits=18),
    LFQConfig(bits=62, losses=()),
    FSQConfig(levels=(8, 8, 8, 5, 5, 5)),
    FSQConfig(levels=(8, 8, 5, 4, 4, 3)),
    FSQConfig(levels=(2, 3, 16, 7)),
    FSQConfig(levels=(2, 8, 5, 16, 3), squash="paper"),
    DSQConfig(levels=(8, 8, 8, 5, 5, 5)),
    DSQConfig(levels=(8, 8, 5, 4, 4, 3)),
    DSQConfig(levels=(2, 3, 9)),
    CodebookConfig(size=300, dim=5),
    CodebookConfig(size=300, dim=5, by="cosine", gradient="indices"),
    CodebookConfig(size=20_000, dim=3, by="inner"),
]


def built(config: QuantizerConfig, dtype: torch.dtype = torch.float32) -> ScalarQuantizer:
    """A quantizer whose learned parts, if any, have moved away from their start."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a table of codes starts at random
        quantizer = config.build()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    return quantizer.to(dtype)


def latent(quantizer: ScalarQuantizer, scale: float = 1.0, seed: int = 0, t: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, quantizer.dim, t, 4, 5, generator=rng)


SCALAR = [config for config in CONFIGS if config.kind != "codebook"]
each_quantizer = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{c.digit_levels}"[:40])


@each_quantizer
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 30.0])
def test_codes_of_forward_are_the_decoded_ids(config, scale):
    quantizer = built(config)
    z = latent(quantizer, scale)
    codes, ids, _ = quantizer(z)
    assert torch.equal(ids, quantizer.encode(z))
    assert torch.equal(codes, quantizer.decode(ids))
    assert ids.dtype == torch.int64
    assert ids.shape == (2, 3, 4, 5)


@each_quantizer
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_ids_and_digits_are_a_bijection(config, data):
    quantizer = built(config)
    wanted = data.draw(st.lists(st.integers(0, quantizer.codebook_size - 1), min_size=1, max_size=8))
    wanted += [0, quantizer.codebook_size - 1]
    ids = torch.tensor(wanted).view(1, 1, 1, -1)
    digits = quantizer.digits(ids)
    assert torch.equal(quantizer.ids(digits), ids)
    for column, number in enumerate(wanted):  # against Python's integers, which cannot overflow
        for j, level in enumerate(quantizer.levels):
            assert int(digits[0, j, 0, 0, column]) == number // math.prod(quantizer.levels[:j]) % level


@each_quantizer
def test_ids_that_nobody_looks_at_have_the_same_codes(config):
    quantizer = built(config)
    ids = quantizer.encode(latent(quantizer))
    assert torch.equal(quantizer.decode(ids, check=False), quantizer.decode(ids))
    assert quantizer.to("meta").digits(ids.to("meta"), check=False).is_meta


@pytest.mark.parametrize("config", [FSQConfig(levels=(5, 4, 3)), DSQConfig(levels=(5, 4, 3)), LFQConfig(bits=6)])
def test_every_id_decodes_to_its_own_code(config):
    quantizer = built(config)
    ids = torch.arange(quantizer.codebook_size).view(1, 1, 1, -1)
    codes = quantizer.decode(ids)[0, :, 0, 0].T
    assert len({tuple(code.tolist()) for code in codes}) == quantizer.codebook_size


@each_quantizer
def test_a_fresh_quantizer_finds_its_own_codes_again(config):
    quantizer = config.build()
    if config.kind == "codebook" and config.by == "inner":
        pytest.skip("a row need not have the largest inner product with itself")
    ids = torch.randint(quantizer.codebook_size, (1, 2, 4, 4), generator=torch.Generator().manual_seed(1))
    codes = quantizer.decode(ids)
    z = torch.atanh(codes.clamp(-0.999, 0.999)) if config.kind == "fsq" else codes
    if config.kind == "fsq":  # invert the squash channel by channel: b = value * floor(L/2)
        half, offset, shift, step = quantizer._squash.double().T.view(4, 1, -1, 1, 1, 1)
        z = (torch.atanh(((codes.double() * step + offset) / half).clamp(-0.9999, 0.9999)) - shift).float()
    assert torch.equal(quantizer.encode(z), ids)


@each_quantizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_modules_change_nothing(config, dtype):
    quantizer = built(config)
    z = latent(quantizer)
    codes, ids, losses = quantizer(z)
    with torch.autocast("cpu", dtype=dtype):
        inside = quantizer(z)
        assert torch.equal(quantizer.decode(ids), codes)
    halved = built(config).to(dtype)(z)
    for other in (inside, halved):
        assert torch.equal(other.ids, ids)
        assert torch.equal(other.codes, codes)
        assert other.codes.dtype == torch.float32
        assert all(torch.equal(other.losses[name], losses[name]) for name in losses)


@each_quantizer
def test_float64_in_gives_float64_out_and_the_same_ids(config):
    z = latent(built(config))
    single, double = built(config)(z), built(config, torch.float64)(z.double())
    assert double.codes.dtype == torch.float64
    assert torch.equal(single.ids, double.ids)


def test_the_straight_through_gradient_is_that_of_the_surrogate():
    for config in SCALAR:
        quantizer = built(config, torch.float64)
        z = latent(quantizer).double().requires_grad_()
        probe = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(3))
        (through,) = torch.autograd.grad((quantizer(z).codes * probe).sum(), z)
        rows = quantizer.scale_codes(quantizer.surrogate(z.movedim(1, -1).reshape(-1, quantizer.dim)))
        (direct,) = torch.autograd.grad((rows * probe.movedim(1, -1).reshape(rows.shape)).sum(), z)
        assert torch.allclose(through, direct, rtol=1e-12, atol=0)


@pytest.mark.parametrize("config", SCALAR, ids=lambda c: f"{c.kind}-{c.digit_levels}"[:40])
def test_the_surrogate_is_monotone_and_digits_follow_it(config):
    quantizer = built(config, torch.float64)
    z = torch.linspace(-3, 3, 1001, dtype=torch.float64).view(-1, 1).expand(-1, quantizer.dim)
    if config.kind == "dsq":  # a learned scale may be of either sign; the order follows it
        z = z * quantizer.scale_in.sign()
    assert (quantizer.surrogate(z).diff(dim=0) >= 0).all()
    assert (quantizer.quantize(z).diff(dim=0) >= 0).all()


@each_quantizer
@pytest.mark.parametrize("wrong", [-1, "size", "size+7"])
def test_ids_out_of_range_are_refused(config, wrong):
    quantizer = config.build()
    number = -1 if wrong == -1 else quantizer.codebook_size + (7 if wrong == "size+7" else 0)
    with pytest.raises(ValueError, match=r"outside \[0"):
        quantizer.decode(torch.tensor(number).view(1, 1, 1, 1))


def test_digits_out_of_range_and_latents_that_are_not_finite_are_refused():
    quantizer = FSQConfig(levels=(5, 3)).build()
    with pytest.raises(ValueError, match=r"digit 1: 3 is outside"):
        quantizer.ids(torch.tensor([4, 3]).view(1, 2, 1, 1, 1))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            quantizer.encode(torch.full((1, 2, 1, 1, 1), value))


def test_sign_of_zero_is_the_lower_digit():
    assert LFQConfig(bits=3).build().encode(torch.zeros(1, 3, 1, 1, 1)).item() == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "fsq", "levels": [8, 1]}, "at least 2 levels"),
        ({"kind": "fsq", "levels": []}, "at least 2 levels"),
        ({"kind": "lfq", "bits": 0}, "greater than or equal to 1"),
        ({"kind": "lfq", "bits": 40}, "at most 2^24"),
        ({"kind": "dsq", "levels": [2**31, 2**31, 2]}, "more than 2^62"),
        ({"kind": "fsq", "levels": "8,8"}, "q.levels"),
        ({"kind": "fsq", "levels": [8.5, 8]}, "q.levels.0"),
        ({"kind": "vq"}, "dsq, fsq, lfq"),
        ({"kind": "lfq", "bitz": 3}, "did you mean 'bits'"),
        ({"kind": "lfq", "losses": ["commitmant"]}, "commitment"),
        ({"kind": "lfq", "temperature": 0.0}, "greater than 0"),
    ],
)
def test_a_wrong_config_is_one_line_with_the_path(data, said):
    class Holder(Config):
        q: QuantizerConfig

    with pytest.raises(ConfigError) as error:
        Holder.parse({"q": data}, where="c.yaml")
    assert said in str(error.value)
    assert str(error.value).startswith("c.yaml: q")
    assert "\n" not in str(error.value)


def test_levels_are_those_of_the_config():
    for config, levels in itertools.product([FSQConfig, DSQConfig], [(8, 8, 8, 5, 5, 5), (8, 8, 5, 4, 4, 3)]):
        quantizer = config(levels=levels).build()
        assert quantizer.codebook_size in (64_000, 15_360)
        assert quantizer.dim == 6


@pytest.mark.parametrize("levels", [(2, 3, 4, 5), (8, 8, 8, 5, 5, 5), (16, 7, 9)])
def test_the_code_of_fsq_is_its_surrogate_rounded(levels):
    """code = round(b) / floor(L / 2) with b = surrogate * floor(L / 2), where b is not within 1e-6 of a half."""
    quantizer = FSQConfig(levels=levels).build().double()
    z = latent(quantizer, 2.0).double().movedim(1, -1).flatten(0, -2)
    steps = torch.tensor([level // 2 for level in levels])
    b = quantizer.surrogate(z) * steps
    clear = (b - b.floor() - 0.5).abs() > 1e-6
    assert torch.equal((quantizer(z).codes * steps).round()[clear], b.round()[clear])
    assert b.amin() > -0.51 - max(steps)


@pytest.mark.parametrize("level", range(2, 33))
def test_the_papers_squash_is_that_of_its_code(level):
    """h tanh(z + tan(o / h)) - o with h narrowed by 1e-3, rounded and divided by floor(L / 2), and its gradient."""
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64, requires_grad=True)
    half, offset = (level - 1) * (1 - 1e-3) / 2, 0.0 if level % 2 else 0.5
    bounded = half * torch.tanh(z + math.tan(offset / half)) - offset
    quantizer = FSQConfig(levels=(level,), squash="paper").build().double()
    codes, ids, _ = quantizer(z.view(1, 1, 1, 1, -1))
    clear = (bounded - bounded.floor() - 0.5).abs() > 1e-5  # h and s are float32 there, as in its JAX
    assert torch.equal(ids.flatten()[clear], (bounded.round() + level // 2).long()[clear])
    assert ids.unique().tolist() == list(range(level))
    assert torch.allclose(codes.flatten()[clear], bounded.round()[clear] / (level // 2), rtol=0, atol=1e-12)
    (ours,) = torch.autograd.grad(codes.sum(), z)
    (theirs,) = torch.autograd.grad(bounded.sum() / (level // 2), z)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_two_squashes_differ_for_even_levels_and_the_default_is_no_field_of_old_fingerprints():
    z = torch.linspace(-3, 3, 20_001).view(1, 1, 1, 1, -1)
    share = {}
    for level in (2, 4, 5, 8):
        ids = [FSQConfig(levels=(level,), squash=squash).build().encode(z) for squash in ("wide", "paper")]
        share[level] = (ids[0] != ids[1]).float().mean().item()
    assert share[2] > 0.2  # atanh(1 / 1.001) = 3.8, tan(1 / 0.999) = 1.56
    assert all(0 < share[level] < 0.01 for level in (4, 5, 8))
    assert "squash" not in FSQConfig(levels=(8, 5)).essence()
    assert FSQConfig(levels=(8, 5), squash="paper").essence()["squash"] == "paper"


@pytest.mark.parametrize("start", [-1.0, -0.9, -1.3])
def test_equation_2_of_magicmaster_holds_only_where_b0_is_minus_1(start):
    """Both equations of its README as printed, s_0 read as b_0, beside our surrogate and our values."""
    level, rng = 5, torch.Generator().manual_seed(0)
    n = 2 / (level - 1)
    quantizer = DSQConfig(levels=(level,)).build().double()
    with torch.no_grad():
        quantizer.start.fill_(start)
        quantizer.widths.add_(0.5 * torch.rand(1, level - 1, generator=rng, dtype=torch.float64))
    _, widths = quantizer.bins()
    lengths = widths[0].tolist()
    assert sum(lengths) == pytest.approx(2)
    edges = [start + sum(lengths[:i]) for i in range(level)]
    x = torch.linspace(start - 0.5, start + 2.5, 3001, dtype=torch.float64)
    y, f = torch.full_like(x, -1), torch.full_like(x, -1)
    for i in range(level - 1):
        y[x >= edges[i] + lengths[i] / 2] = -1 + (i + 1) * n
        inside = x >= edges[i]
        f[inside] = n / lengths[i] * (x[inside] - edges[i]) + (start + (i + 1) * n) - n
    z = x.view(1, 1, 1, 1, -1)
    assert torch.equal(quantizer(z).codes.flatten().detach(), y)
    ours, within = quantizer.surrogate(x[:, None]).flatten().detach(), (x >= start) & (x <= start + 2)
    # As printed, f is too high by b_0 + 1 inside, and runs on beyond the last bin.
    assert torch.allclose(f[within] - ours[within], torch.full_like(f[within], start + 1), atol=1e-12)
    assert torch.allclose(f[x < start], ours[x < start])
    assert (f[x > start + 2] - (start + 1) > 1).all()
    assert ours.max() == 1
    middles = torch.tensor([edge + length / 2 for edge, length in zip(edges, lengths, strict=False)])
    crossing = quantizer.surrogate(middles.double()[:, None]).flatten().detach()
    assert torch.allclose(crossing, -1 + n * (torch.arange(level - 1) + 0.5).double(), atol=1e-6)


def test_widths_of_dsq_below_a_thousandth_are_a_thousandth():
    """The logits of the bins are max(a, 1e-3), so those below get no gradient and no bin vanishes."""
    quantizer = DSQConfig(levels=(5, 3)).build().double()
    with torch.no_grad():
        quantizer.widths.copy_(torch.tensor([[0.7, -3.0, 1e-3, 0.2], [-1.0, 0.5, 9.0, 9.0]], dtype=torch.float64))
    knots, widths = quantizer.bins()
    first = [math.exp(a) for a in (0.7, 1e-3, 1e-3, 0.2)]
    second = [math.exp(a) for a in (1e-3, 0.5)]
    wanted = [[2 * e / sum(first) for e in first], [*(2 * e / sum(second) for e in second), 0.0, 0.0]]
    assert torch.allclose(widths, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(knots[0], torch.tensor([-1 + sum(wanted[0][:i]) for i in range(4)], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(widths[0, 0], quantizer.widths)
    assert (gradient[0, [0, 1, 3]] != 0).tolist() == [True, False, True]  # at the edge itself, torch 2.15 has another
