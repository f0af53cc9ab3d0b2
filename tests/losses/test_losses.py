"""Laws of the losses: limits, closed forms, and the chain rule behind the adaptive weight."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smalti.errors import ConfigError
from smalti.losses import (
    Anchors,
    adaptive_weight,
    flat,
    flat_share,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    input_gradient_norms,
    l1,
    l2,
    last_layer_norms,
    lazy_factor,
    lecam,
    non_saturating_discriminator,
    non_saturating_generator,
    r1_penalty,
    random_frames,
    select_frames,
    update_lecam_ema,
    weigh,
    weigh_frames,
)

shapes = st.tuples(*(st.integers(1, n) for n in (3, 5, 6, 6)))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clip(b, t, h, w, seed=0):
    return noise(b, 3, t, h, w, seed=seed)


@settings(max_examples=20, deadline=None)
@given(shape=shapes)
def test_pixel_losses_are_means_and_scale_with_the_difference(shape):
    video, error = clip(*shape), clip(*shape, seed=1)
    assert l1(video, video) == l2(video, video) == 0
    assert torch.allclose(l1(video + error, video), error.abs().sum() / error.numel())
    assert torch.allclose(l2(video + error, video), (error**2).sum() / error.numel())
    assert torch.allclose(l1(video + 2 * error, video), 2 * l1(video + error, video))
    assert torch.allclose(l2(video + 2 * error, video), 4 * l2(video + error, video))


@settings(max_examples=20, deadline=None)
@given(shape=shapes, part=st.sampled_from([(slice(1), slice(1)), (slice(1), slice(None)), (slice(None), slice(1))]))
def test_errors_count_as_often_as_their_weights_say(shape, part):
    video, made = clip(*shape), clip(*shape, seed=1)
    weights = clip(*shape, seed=2).square()[:, :1, part[0], part[1], part[1]]
    weighed = (made - video) * weights.expand_as(video)
    assert torch.allclose(l1(made, video, weights), weighed.abs().sum() / video.numel())
    assert torch.allclose(l2(made, video, weights), (weighed * (made - video)).sum() / video.numel())


@settings(max_examples=10, deadline=None)
@given(shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 24, 24))), size=st.floats(0.001, 1), seed=st.integers(0, 99))
def test_the_flat_share_follows_the_variance_of_grey_in_the_window_around_a_pixel(shape, size, seed):
    video = size * clip(*shape, seed=seed)
    grey, share, s = video.mean(1), flat_share(video), 3 / 127.5
    assert share.shape == (shape[0], 1, *shape[1:])
    rng = torch.Generator().manual_seed(seed)
    b, t, y, x = (int(torch.randint(n, (), generator=rng)) for n in shape)
    window = grey[b, t, max(0, y - 7) : y + 8, max(0, x - 7) : x + 8]
    wanted = s**2 / (window.var(correction=0) + s**2)
    assert share[b, 0, t, y, x].item() == pytest.approx(wanted.item(), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(shape=shapes, each=st.booleans())
def test_errors_weigh_fully_in_flat_frames_and_a_half_at_three_grey_levels(shape, each):
    error, video = clip(*shape, seed=1), torch.full((shape[0], 3, *shape[1:]), 0.3, dtype=torch.float64)
    weights = clip(*shape, seed=2).square()[:, :1] if each else None
    assert torch.allclose(flat_share(video), torch.ones(()).double())
    assert torch.allclose(flat(video + error, video, weights), l2(video + error, video, weights))
    columns = (torch.arange(45) % 2 * 2 - 1).double() * 3 / 127.5
    striped = columns.expand(1, 3, 1, 45, 45)
    inner = flat_share(striped)[..., 7:-7, 7:-7]
    assert torch.allclose(inner, torch.tensor(0.5).double(), atol=3e-3)  # 15 columns have one more of one kind


def test_the_flat_loss_has_no_gradient_at_the_original():
    video = clip(1, 2, 20, 20).requires_grad_()
    made = clip(1, 2, 20, 20, seed=1).requires_grad_()
    (by_error,) = torch.autograd.grad(flat(made, video), video, retain_graph=True)
    (by_made,) = torch.autograd.grad(flat(made, video), made)
    assert torch.allclose(by_error, -by_made)


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 30), stride=st.integers(1, 8), last=st.floats(0.1, 10))
def test_the_last_frame_of_each_token_weighs_more_and_the_mean_weight_is_one(frames, stride, last):
    weights = weigh_frames(clip(2, frames, 3, 4), stride, last).flatten().double()
    assert weights.shape == (frames,)
    assert weights.mean().item() == pytest.approx(1)
    wanted = torch.tensor([last if frame % stride == 0 else 1.0 for frame in range(frames)], dtype=torch.float64)
    assert torch.allclose(weights / weights[0], wanted / last)  # frame 0 ends the first token


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_tensors_are_computed_in_float32(dtype):
    a, b = clip(2, 2, 64, 64).to(dtype), clip(2, 2, 64, 64, seed=1).to(dtype)
    for loss in (l1, l2, flat):
        assert loss(a, b).dtype == torch.float32
        assert loss(a, b).item() == pytest.approx(loss(a.double(), b.double()).item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for players in (hinge_discriminator, non_saturating_discriminator):
            assert players(a, b).item() == pytest.approx(players(a.double(), b.double()).item(), rel=1e-5)
        for player in (hinge_generator, non_saturating_generator):
            assert player(a).item() == pytest.approx(player(a.double()).item(), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(margin=st.floats(1, 50), n=st.integers(1, 9))
def test_hinge_is_zero_beyond_the_margin_and_linear_before_it(margin, n):
    real, fake = noise(n).abs() + margin, -noise(n, seed=1).abs() - margin
    assert hinge_discriminator(real, fake) == 0
    assert torch.allclose(hinge_discriminator(fake, real), 1 + 0.5 * (real.mean() - fake.mean()))
    assert hinge_discriminator(torch.zeros(n), torch.zeros(n)) == 1
    assert torch.equal(hinge_generator(fake), -fake.mean())
    assert torch.equal(hinge_generator(real), -real.mean())


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 9))
def test_non_saturating_is_the_cross_entropy(n):
    real, fake = 3 * noise(n), 3 * noise(n, seed=1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    entropy = F.binary_cross_entropy_with_logits
    assert torch.allclose(non_saturating_discriminator(real, fake), entropy(real, ones) + entropy(fake, zeros))
    assert torch.allclose(non_saturating_generator(fake), entropy(fake, ones))


def test_non_saturating_has_its_limits():
    zero, large = torch.zeros(3), torch.full((3,), 100.0)
    assert non_saturating_discriminator(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert non_saturating_discriminator(large, -large).item() == pytest.approx(0, abs=1e-40)
    assert non_saturating_generator(-large).item() == pytest.approx(
        100
    )  # a gradient of 1 where D is sure: it does not saturate
    logits = (-large).requires_grad_()
    (gradient,) = torch.autograd.grad(non_saturating_generator(logits), logits)
    assert torch.allclose(gradient, torch.full((3,), -1 / 3))


@settings(max_examples=20, deadline=None)
@given(shape=shapes, gain=st.floats(0, 3))
def test_penalties_of_a_linear_discriminator_have_their_closed_form(shape, gain):
    weight = (gain * clip(*shape)[:1]).requires_grad_()
    video = clip(*shape, seed=1).requires_grad_()
    norms = input_gradient_norms((video * weight).flatten(1).sum(1), video)
    length = weight.detach().norm()
    assert torch.allclose(norms, length.expand(shape[0]))
    assert torch.allclose(r1_penalty(norms), length**2)
    assert torch.allclose(gradient_penalty(norms), (length - 1) ** 2)
    (slope,) = torch.autograd.grad(r1_penalty(norms), weight, retain_graph=True)
    assert torch.allclose(slope, 2 * weight)
    (slope,) = torch.autograd.grad(gradient_penalty(norms), weight)
    assert slope.isfinite().all()  # also where the norm is 0
    if length > 1e-6:
        assert torch.allclose(slope, 2 * (length - 1) * weight / length)


def test_the_logits_of_a_sample_are_summed_in_its_gradient_norm():
    video = clip(2, 1, 4, 4).requires_grad_()
    logits = torch.stack([video.flatten(1).sum(1), 2 * video.flatten(1).sum(1)], dim=1)
    assert torch.allclose(input_gradient_norms(logits, video), torch.full((2,), 3 * math.sqrt(48)).double())


@pytest.mark.parametrize("every", [1, 2, 7, 16])
def test_a_lazy_factor_has_mean_one(every):
    assert sum(lazy_factor(step, every) for step in range(5 * every)) == 5 * every
    assert {lazy_factor(step, every) for step in range(5 * every)} <= {0, every}
    assert lazy_factor(0, every) == every
    with pytest.raises(ValueError, match="at least 1"):
        lazy_factor(0, 1 - every)


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 30), decay=st.sampled_from([0.0, 0.5, 0.9, 0.999]))
def test_anchors_are_the_exponential_average_of_mean_logits(steps, decay):
    real, fake = noise(steps, 4).float(), noise(steps, 2, 3, seed=1).float()
    anchors = None
    for i in range(steps):
        anchors = update_lecam_ema(anchors, real[i], fake[i], decay)
    # Step 0 starts the average; step i > 0 adds (1 - decay) of its mean, and each later step keeps `decay` of it.
    shares = torch.tensor([(1 if i == 0 else 1 - decay) * decay ** (steps - 1 - i) for i in range(steps)])
    assert shares.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(anchors.real, (shares * real.mean(1)).sum(), atol=1e-5)
    assert torch.allclose(anchors.fake, (shares * fake.mean((1, 2))).sum(), atol=1e-5)


def test_anchors_keep_no_graph_and_take_means_over_ranks():
    real = noise(6).float().requires_grad_()
    anchors = update_lecam_ema(None, real, real)
    assert not anchors.real.requires_grad
    parts = torch.stack([real[:3].mean(), real[3:].mean()])
    assert torch.allclose(
        update_lecam_ema(anchors, parts.mean(), parts.mean()).real, update_lecam_ema(anchors, real, real).real
    )


def test_lecam_is_zero_below_the_anchors_and_pulls_towards_them():
    anchors = Anchors(torch.tensor(0.5), torch.tensor(-0.25))
    assert lecam(torch.full((4,), -0.25), torch.full((4,), 0.5), anchors) == 0
    assert lecam(torch.full((4,), -0.6), torch.full((4,), 0.9), anchors) == 0
    real, fake = (3 + noise(4).abs()).requires_grad_(), (-3 - noise(4, seed=1).abs()).requires_grad_()
    loss = lecam(real, fake, anchors)
    assert torch.allclose(loss, ((real + 0.25) ** 2).mean() + ((0.5 - fake) ** 2).mean())
    real_slope, fake_slope = torch.autograd.grad(loss, (real, fake))
    assert (real_slope > 0).all()
    assert (fake_slope < 0).all()


@settings(max_examples=20, deadline=None)
@given(a=st.floats(0, 1e3), b=st.floats(0, 1e3), scale=st.floats(0.1, 2))
def test_the_adaptive_weight_balances_the_two_gradients(a, b, scale):
    rec, adv = torch.tensor(a, dtype=torch.float64, requires_grad=True), torch.tensor(b, dtype=torch.float64)
    weight = adaptive_weight(rec, adv, scale=scale)
    assert not weight.requires_grad
    assert weight.item() == pytest.approx(scale * min(a / (b + 1e-4), 1e4))


def test_the_adaptive_weight_is_limited():
    assert adaptive_weight(torch.tensor(1e9), torch.tensor(0.0), limit=20.0).item() == pytest.approx(0.75 * 20)


class LittleDecoder(nn.Module):
    """Two convolutions, so that the last layer's weight has features in front of it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv3d(4, 8, 3, padding=1)
        self.last = nn.Conv3d(8, 3, 3, padding=1)

    def forward(self, codes):
        return self.last(torch.tanh(self.inner(codes)))


@pytest.mark.parametrize("seed", range(3))
def test_last_layer_norms_equal_those_of_differentiating_the_losses(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder, judge = LittleDecoder().double(), nn.Conv3d(3, 1, 3).double()
    video, recon = clip(2, 3, 8, 8, seed=seed), decoder(noise(2, 4, 3, 8, 8, seed=seed))

    def reconstruction(pixels):
        return l1(pixels, video) + 0.3 * l2(torch.tanh(pixels), video)

    def adversarial(pixels):
        return hinge_generator(judge(select_frames(pixels, None).transpose(0, 2)).transpose(0, 2))

    naive = [
        torch.autograd.grad(f(recon), decoder.last.weight, retain_graph=True)[0] for f in (reconstruction, adversarial)
    ]
    leaf = recon.detach().requires_grad_()
    at_pixels = [torch.autograd.grad(f(leaf), leaf)[0] for f in (reconstruction, adversarial)]
    norms = last_layer_norms(recon, decoder.last.weight, *at_pixels)
    assert norms.reconstruction.item() == pytest.approx(naive[0].norm().item(), rel=1e-10)
    assert norms.adversarial.item() == pytest.approx(naive[1].norm().item(), rel=1e-10)
    # The graph is still alive, and one backward of the weighted sum at the pixels is the backward of the sum of losses.
    weight = adaptive_weight(*norms)
    expected = torch.autograd.grad(
        reconstruction(recon) + weight * adversarial(recon), list(decoder.parameters()), retain_graph=True
    )
    ours = torch.autograd.grad(recon, list(decoder.parameters()), grad_outputs=at_pixels[0] + weight * at_pixels[1])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(ours, expected, strict=True))


@settings(max_examples=20, deadline=None)
@given(values=st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(-9, 9), st.floats(0, 9)), min_size=1))
def test_weigh_is_the_weighted_sum_and_linear_in_each_loss(values):
    losses = {name: torch.tensor(loss, requires_grad=True) for name, (loss, _) in values.items()}
    weights = {name: weight for name, (_, weight) in values.items()}
    total = weigh(losses, dict(reversed(weights.items())))
    assert total.item() == pytest.approx(sum(loss * weight for loss, weight in values.values()), rel=1e-5, abs=1e-5)
    total.backward()
    assert all(losses[name].grad.item() == pytest.approx(weights[name]) for name in losses)


def test_weigh_names_the_missing_the_extra_and_the_nearest():
    one = torch.tensor(1.0)
    with pytest.raises(ConfigError) as error:
        weigh({"l2": one, "lpips": one}, {"l2": 1.0, "lpisp": 0.1})
    message = str(error.value)
    assert "no weight for the loss 'lpips', did you mean 'lpisp'?" in message
    assert "no loss for the weight 'lpisp', did you mean 'lpips'?" in message
    assert "\n" not in message
    with pytest.raises(ConfigError, match="no weight for the loss 'gan'"):
        weigh({"l2": one, "gan": one}, {"l2": 1.0})
    with pytest.raises(ConfigError, match="no loss for the weight 'gan'"):
        weigh({"l2": one}, {"l2": 1.0, "gan": 0.1})
    with pytest.raises(ConfigError, match="no losses to weigh"):
        weigh({}, {})


@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
def test_selected_frames_are_the_frames(shape, seed):
    video = clip(*shape)
    index = random_frames(shape[0], shape[1], torch.Generator().manual_seed(seed))
    assert torch.equal(index, random_frames(shape[0], shape[1], torch.Generator().manual_seed(seed)))
    chosen, every = select_frames(video, index), select_frames(video, None)
    for i, t in enumerate(index.tolist()):
        assert torch.equal(chosen[i, :, 0], video[i, :, t])
        assert torch.equal(every[i * shape[1] + t, :, 0], video[i, :, t])
    if shape[1] == 1:
        assert torch.equal(chosen, every)


def test_random_frames_reach_every_frame_evenly():
    counts = random_frames(17_000, 17, torch.Generator().manual_seed(0)).bincount(minlength=17)
    assert counts.shape == (17,)
    assert (counts - 1000).abs().max() < 150  # five standard deviations
