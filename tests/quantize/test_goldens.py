"""The quantizers against numbers of vector-quantize-pytorch, MagicMaster and Open-MAGVIT2 (see tests/goldens)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smalti.quantize import DSQ, DSQConfig, FSQConfig, LFQConfig
from tests.goldens.rule import randn, rule

GOLDENS = Path(__file__).parents[1] / "goldens"


def golden(name):
    return load_file(GOLDENS / f"{name}.safetensors")


def rows_to_latent(rows):
    """`n d` rows as a latent `1 d 1 1 n`."""
    return rows.reshape(-1, rows.shape[-1]).T[None, :, None, None]


@pytest.mark.parametrize("levels", [(7, 5, 5, 5, 5), (8, 5, 5, 5), (8, 8, 5, 4, 4, 3), (8, 8, 8, 5, 5, 5)])
def test_fsq_equals_vector_quantize_pytorch(levels):
    tensors, name = golden("q_fsq_lucidrains"), "L" + "_".join(map(str, levels))
    quantizer = FSQConfig(levels=levels).build().double()
    z = rows_to_latent(tensors[f"{name}.z"]).requires_grad_()
    codes, ids, _ = quantizer(z)
    assert torch.equal(ids.flatten().int(), tensors[f"{name}.ids"].flatten())
    expected = rows_to_latent(tensors[f"{name}.codes"])
    assert torch.allclose(codes, expected, rtol=0, atol=1e-12)
    probe = randn(f"probe.{name}", tensors[f"{name}.codes"].shape, "gold-v1/").double()
    (gradient,) = torch.autograd.grad((codes * rows_to_latent(probe)).sum(), z)
    assert torch.allclose(gradient, rows_to_latent(tensors[f"{name}.grad_z"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("level", range(3, 17))
def test_fsq_decision_points_are_those_of_magicmaster(level):
    tensors = golden("q_fsq_thresholds_magicmaster")
    quantizer = FSQConfig(levels=(level,)).build().double()
    points = tensors[f"L{level}"]
    assert torch.allclose(quantizer._thresholds[0], points, rtol=0, atol=1e-9)
    below, above = (quantizer.quantize((points + e).view(-1, 1)).flatten() for e in (-1e-6, 1e-6))
    assert torch.equal(below, torch.arange(level - 1))
    assert torch.equal(above, torch.arange(1, level))
    low, high = tensors[f"krange{level}"].tolist()
    assert torch.allclose(quantizer.values()[0], torch.arange(low, high + 1).double() / (level // 2))


@pytest.mark.parametrize("bits", [10, 14])
@pytest.mark.parametrize(("inverse", "scale"), [(100, "0.02"), (100, "1.0"), (10, "0.1"), (1, "1.0")])
def test_lfq_equals_the_exact_form_of_vector_quantize_pytorch(bits, inverse, scale):
    tensors, name = golden("q_lfq_lucidrains"), f"K{bits}_inv{inverse}_s{scale}"
    # Their logits are 2 * inverse * z * code, ours (2 z code - code^2) / temperature: temperature = 1 / inverse.
    quantizer = LFQConfig(bits=bits, temperature=1 / inverse).build().double()
    z = tensors[f"{name}.z"][:, :, None].requires_grad_()
    codes, _, losses = quantizer(z)
    msb_first = (codes[:, :, 0] > 0).long().mul(2 ** torch.arange(bits - 1, -1, -1).view(-1, 1, 1)).sum(1)
    assert torch.equal(msb_first.int(), tensors[f"{name}.ids"])
    exact = tensors[f"{name}.exact"]
    for loss, value, gradient in zip(("token_entropy", "batch_entropy"), exact, ("hs", "hc"), strict=True):
        assert torch.allclose(losses[loss], value, rtol=1e-9, atol=1e-14), loss
        (ours,) = torch.autograd.grad(losses[loss], z, retain_graph=True)
        theirs = tensors[f"{name}.exact_grad_{gradient}"][:, :, None]
        assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max() + 1e-16, loss
    assert torch.allclose(losses["commitment"], tensors[f"{name}.peer"][2], rtol=1e-12)
    (ours,) = torch.autograd.grad(losses["commitment"], z)
    assert torch.allclose(ours, tensors[f"{name}.grad_cm"][:, :, None], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["K10_s0.01", "K10_s0.05", "K10_s1.0", "K14_s0.01", "K14_s0.05", "K14_s1.0"])
def test_lfq_equals_open_magvit2(name):
    tensors = golden("q_lfq_openmagvit2")
    z = tensors[f"{name}.z"][:, :, None].requires_grad_()
    _, ids, losses = LFQConfig(bits=z.shape[1], temperature=0.01).build().double()(z)
    assert torch.equal(ids.flatten().int(), tensors[f"{name}.ids"])
    token, _, commitment, _ = tensors[f"{name}.peer"]
    assert torch.allclose(losses["token_entropy"], token, rtol=1e-9, atol=1e-14)
    assert torch.allclose(losses["commitment"], commitment, rtol=1e-12)
    (ours,) = torch.autograd.grad(losses["token_entropy"], z)
    theirs = tensors[f"{name}.grad_hs"][:, :, None]
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max() + 1e-16


def test_factorised_ids_of_open_magvit2_are_groups_of_digits():
    tensors = golden("q_lfq_openmagvit2")
    quantizer = LFQConfig(bits=18).build()
    ids = quantizer.encode(tensors["K18.z"][:, :, None])
    assert torch.equal(ids.flatten().int(), tensors["K18.ids"])
    assert torch.equal((ids % 64).flatten().int(), tensors["K18.ids_pre6"])
    assert torch.equal((ids // 64).flatten().int(), tensors["K18.ids_post12"])


def dsq_of(case):
    """Our DSQ with the golden's parameters: their modules hold several channels of one level count."""
    levels, modules = {
        "mm3d_dsq64000_w32_t5_32px": ((8, 8, 8, 5, 5, 5), [("lqt_8", 3), ("lqt_5", 3)]),
        "mm3d_dsq15360_w32_t5_32px": ((8, 8, 5, 4, 4, 5), [("lqt_8", 2), ("lqt_5", 1), ("lqt_4", 2), ("lqt_5", 1)]),
    }[case]
    quantizer = DSQConfig(levels=levels).build().double()
    rows = []
    with torch.no_grad():
        for module, count in modules:
            rows += [(module, channel, int(module[-1]) - 1) for channel in range(count)]
        for channel, (module, row, bins) in enumerate(rows):
            count = dict(modules)[module]
            weights = {
                name: rule(f"quantizer.{module}.{name}", shape, "gold-v1/")
                for name, shape in [
                    ("start", (1, count)), ("a", (count, bins)), ("scale1", (1, count)), ("scale2", (1, count)),
                    ("bias", (1, 1, 1, count)),
                ]
            }  # fmt: skip
            quantizer.start[channel] = weights["start"].flatten()[row]
            quantizer.widths[channel, :bins] = weights["a"][row]
            quantizer.scale_in[channel] = weights["scale1"].flatten()[row]
            quantizer.scale_out[channel] = weights["scale2"].flatten()[row]
            quantizer.bias[channel] = weights["bias"].flatten()[row]
    return quantizer, rows


@pytest.mark.parametrize("case", ["mm3d_dsq64000_w32_t5_32px", "mm3d_dsq15360_w32_t5_32px"])
def test_dsq_equals_magicmaster_in_its_consistent_form(case):
    tensors = golden(case)
    quantizer, rows = dsq_of(case)
    assert isinstance(quantizer, DSQ)
    z = rows_to_latent(tensors["z6"].double())
    codes, ids, _ = quantizer(z)
    digits = quantizer.digits(ids)
    assert torch.equal(digits[0, :, 0, 0].T.to(torch.uint8), tensors["digits_correct"])
    assert torch.equal(ids.flatten(), tensors["ids_correct"].flatten())
    assert torch.allclose(codes, rows_to_latent(tensors["y6"].double()), rtol=0, atol=1e-6)
    knots, widths = quantizer.bins()
    for channel, (module, row, bins) in enumerate(rows):
        assert torch.allclose(knots[channel, :bins], tensors[f"knots.{module}"][row, :bins], rtol=0, atol=1e-7)
        middles = knots[channel, :bins] + widths[channel, :bins] / 2
        assert torch.allclose(middles, tensors[f"thresholds.{module}"][row], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", ["mm3d_dsq64000_w32_t5_32px", "mm3d_dsq15360_w32_t5_32px"])
def test_dsq_gradients_equal_those_of_magicmaster(case):
    tensors = golden(case)
    quantizer, rows = dsq_of(case)
    shapes = {"in.weight": (6, 128), "in.bias": (6,), "out.weight": (128, 6), "out.bias": (128,)}
    weights = {
        f"project_{name}": rule(f"quantizer.project_{name}", shape, "gold-v1/").double().requires_grad_()
        for name, shape in shapes.items()
    }
    inner = torch.einsum("dc,bcthw->bdthw", weights["project_in.weight"], tensors["z"].double())
    inner = inner + weights["project_in.bias"].view(-1, 1, 1, 1)
    codes = torch.einsum("cd,bdthw->bcthw", weights["project_out.weight"], quantizer(inner).codes)
    codes = codes + weights["project_out.bias"].view(-1, 1, 1, 1)
    loss = (codes * randn("probe.codes", codes.shape, "gold-v1/").double()).sum() / codes.numel() ** 0.5
    loss.backward()
    for name, weight in weights.items():
        expected = tensors[f"qgrad.{name}"].double()
        assert (weight.grad - expected).abs().max() <= 1e-6 * expected.abs().max(), name
    # A module that serves two channels of ours has the sum of their gradients.
    for ours, theirs in [("start", "start"), ("scale_in", "scale1"), ("scale_out", "scale2"), ("bias", "bias")]:
        gradients = getattr(quantizer, ours).grad
        for module in {row[0] for row in rows}:
            expected = tensors[f"qgrad.{module}.{theirs}"].flatten()
            for row in range(len(expected)):
                total = sum(gradients[c] for c, (m, r, _) in enumerate(rows) if (m, r) == (module, row))
                assert abs(total - expected[row]) <= 1e-6 * expected.abs().max(), (module, theirs)
    for module in {row[0] for row in rows}:
        expected = tensors[f"qgrad.{module}.a"]
        for row in range(len(expected)):
            total = sum(quantizer.widths.grad[c, :b] for c, (m, r, b) in enumerate(rows) if (m, r) == (module, row))
            assert (total - expected[row]).abs().max() <= 1e-6 * expected.abs().max(), module
