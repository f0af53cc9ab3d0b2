"""The 2-D discriminators against numbers from MagicMaster (tests/goldens/README.md)."""

import re

import pytest
import torch

from smalti.discriminators import PatchConfig, StyleGAN2Config
from smalti.discriminators.frames import EqualisedConv, EqualisedLinear
from smalti.losses import (
    adaptive_weight,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    input_gradient_norms,
    l1,
)
from tests.goldens.rule import fill, grad_stats, key_hash, load


def patch_key(key):
    """layers.{0, 2, 3, 5, 6, 8} are conv, conv, norm, conv, norm, conv."""
    index, name = re.fullmatch(r"layers\.(\d)\.(.+)", key).groups()
    return f"model.{ {'0': '0.conv', '2': '1.conv', '3': '1.bn', '5': '2.conv', '6': '2.bn', '8': '3'}[index] }.{name}"


def stylegan2_key(key):
    """Their activation layers own the biases; their blocks count from 1 after the first convolution."""
    for pattern, theirs in (
        (r"first\.weight_orig", "convs.0.0.conv.weight_orig"),
        (r"first\.bias", "convs.0.1.bias"),
        (r"blocks\.(\d)\.inner\.weight_orig", "convs.{}.conv1.0.conv.weight_orig"),
        (r"blocks\.(\d)\.inner\.bias", "convs.{}.conv1.1.bias"),
        (r"blocks\.(\d)\.down\.weight_orig", "convs.{}.conv2.1.conv.weight_orig"),
        (r"blocks\.(\d)\.down\.bias", "convs.{}.conv2.2.bias"),
        (r"blocks\.(\d)\.skip\.weight_orig", "convs.{}.skip.1.conv.weight_orig"),
        (r"last\.weight_orig", "final_conv.0.conv.weight_orig"),
        (r"last\.bias", "final_conv.1.bias"),
        (r"hidden\.weight_orig", "final_linear.0.linear.weight_orig"),
        (r"hidden\.bias", "final_linear.0.bias"),
        (r"logit\.weight_orig", "final_linear.1.linear.weight_orig"),
        (r"logit\.bias", "final_linear.1.bias"),
    ):
        if match := re.fullmatch(pattern, key):
            return theirs.format(*(int(block) + 1 for block in match.groups()))
    raise KeyError(key)


def pixels(frames, dtype=torch.float64):
    """u8 frames `b 3 h w` as one-frame videos; the goldens' float64 runs took pixels scaled in float32."""
    return (frames.float() / 127.5 - 1).to(dtype).unsqueeze(2)


def patch():
    discriminator = PatchConfig(norm="batch").build()
    fill(discriminator, patch_key)
    return discriminator


def stylegan2(size):
    discriminator = StyleGAN2Config(size=size).build()
    fill(discriminator, stylegan2_key)
    return discriminator


def round_gains(discriminator):
    """MagicMaster computes 1 / sqrt(fan_in) in float32 even in a float64 run: 2e-8 in the logits."""
    for module in discriminator.modules():
        if isinstance(module, EqualisedConv | EqualisedLinear):
            module.gain = torch.tensor(1 / module.weight_orig[0].numel()).sqrt().item()


def assert_stats(discriminator, peer_key, expected):
    stats = grad_stats({peer_key(key): parameter.grad for key, parameter in discriminator.named_parameters()})
    assert torch.allclose(stats, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_patch_equals_magicmaster_in_float64(mode):
    golden, metadata = load(f"mmdisc_patch_{mode}_32px")
    discriminator = patch().double().train(mode == "train")
    entries = {patch_key(key): entry.shape for key, entry in discriminator.state_dict().items()}
    assert key_hash(entries) == metadata["key_hash"]
    video = pixels(golden["real_u8"]).requires_grad_()
    fake = discriminator(pixels(golden["fake_u8"]))  # fake first: the running averages remember the order
    real = discriminator(video)
    assert torch.allclose(real, golden["logits_real_f64"].view(2, 1, 6, 6), rtol=1e-9, atol=1e-9)
    assert torch.allclose(fake, golden["logits_fake_f64"].view(2, 1, 6, 6), rtol=1e-9, atol=1e-9)
    hinge = hinge_discriminator(real, fake)
    assert hinge.item() == pytest.approx(golden["hinge"].sum().item(), rel=1e-9)
    assert hinge_generator(fake).item() == pytest.approx(golden["gen_loss"].item(), rel=1e-9)
    norms = input_gradient_norms(real, video)
    assert torch.allclose(norms, golden["grad_norm_per_sample"], rtol=1e-9)
    (gradient,) = torch.autograd.grad(real.sum(), video, retain_graph=True)
    assert torch.allclose(gradient.squeeze(2).float(), golden["dlogits_dreal"], rtol=1e-5, atol=1e-7)
    total = hinge
    if mode == "train":
        penalty = gradient_penalty(norms)
        assert penalty.item() == pytest.approx(golden["gp"].item(), rel=1e-9)
        total = hinge + penalty
        for key, entry in discriminator.state_dict().items():
            if "running" in key:
                expected = golden[f"after.{patch_key(key)}"]
                assert torch.allclose(entry.float(), expected, rtol=1e-5, atol=1e-6)
    total.backward()
    assert_stats(discriminator, patch_key, golden["grad_stats"])


def test_patch_in_float32_is_as_close_to_magicmaster_as_float32_allows():
    golden, _ = load("mmdisc_patch_eval_32px")
    logits = patch().eval()(pixels(golden["real_u8"], torch.float32))
    assert torch.allclose(logits, golden["logits_real"].view(2, 1, 6, 6), rtol=1e-5, atol=1e-5)


def test_stylegan2_keys_and_logits_equal_magicmaster():
    golden, metadata = load("mmdisc_style2_64px")
    discriminator = stylegan2(64)
    entries = {stylegan2_key(key): entry.shape for key, entry in discriminator.state_dict().items()}
    assert sum(shape.numel() for shape in entries.values()) == metadata["params"]
    # Their blur kernels are persistent buffers, ours a function.
    assert key_hash(entries | dict.fromkeys(metadata["fixed_keys"], (4, 4))) == metadata["key_hash"]
    with torch.no_grad():
        real = discriminator(pixels(golden["real_u8"], torch.float32))
    assert torch.allclose(real, golden["logits_real"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_stylegan2_gradients_and_penalty_equal_magicmaster_in_float64():
    golden, _ = load("mmdisc_style2_64px")
    discriminator = stylegan2(64).double()
    round_gains(discriminator)
    video = pixels(golden["real_u8"]).requires_grad_()
    fake, real = discriminator(pixels(golden["fake_u8"])), discriminator(video)
    assert torch.allclose(real, golden["logits_real_f64"], rtol=1e-9, atol=1e-9)
    assert torch.allclose(fake, golden["logits_fake_f64"], rtol=1e-9, atol=1e-9)
    hinge = hinge_discriminator(real, fake)
    assert hinge.item() == pytest.approx(golden["hinge"].sum().item(), rel=1e-9)
    assert hinge_generator(fake).item() == pytest.approx(golden["gen_loss"].item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(real.sum(), video, retain_graph=True)
    assert torch.allclose(gradient[:1, :, 0].float(), golden["dlogits_dreal"], rtol=1e-5, atol=1e-8)
    norms = input_gradient_norms(real, video)
    assert torch.allclose(norms, golden["grad_norm_per_sample"], rtol=1e-8)
    penalty = gradient_penalty(norms)
    assert penalty.item() == pytest.approx(golden["gp"].item(), rel=1e-9)
    (hinge + penalty).backward()
    assert_stats(discriminator, stylegan2_key, golden["grad_stats"])


def test_adaptive_weight_equals_magicmaster():
    golden, _ = load("mm_adaptive_weight_32px")
    reconstruction, adversarial, norm_reconstruction, norm_adversarial, weight = golden["scalars"]
    assert torch.allclose(golden["grad_nll_w"].norm(), norm_reconstruction, rtol=1e-9)
    assert torch.allclose(golden["grad_gan_w"].norm(), norm_adversarial, rtol=1e-9)
    ours = adaptive_weight(golden["grad_nll_w"].norm(), golden["grad_gan_w"].norm())
    assert torch.allclose(ours, weight, rtol=1e-9)
    # The stored reconstruction is the float64 one rounded to float32.
    video = golden["input_u8"].double() / 127.5 - 1
    assert torch.allclose(l1(golden["recon"].double(), video), reconstruction, rtol=1e-6)
    with torch.no_grad():
        loss = hinge_generator(stylegan2(32)(golden["recon"]))
    assert torch.allclose(loss.double(), adversarial, rtol=1e-5)
