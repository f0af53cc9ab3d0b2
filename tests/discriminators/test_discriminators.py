"""Laws of the discriminators: one call, any size, blurs that mix no channels, penalties that can be differentiated."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.config import Config
from smalti.discriminators import DiscriminatorConfig, Magvit2DConfig, Magvit3DConfig, PatchConfig, StyleGAN2Config
from smalti.discriminators.frames import (
    TAPS,
    EqualisedConv,
    EqualisedLinear,
    grid_mean,
    halve,
    low_pass,
    minibatch_deviation,
    norm_groups,
)
from smalti.errors import ConfigError, InputError
from smalti.losses import gradient_penalty, input_gradient_norms, r1_penalty

SMALL = [
    PatchConfig(width=8),
    PatchConfig(width=8, norm="batch", stages=1),
    PatchConfig(width=8, norm="none", stages=3, frames="all"),
    StyleGAN2Config(size=32, width=8),
    StyleGAN2Config(size=8, width=16, group=2, frames="all"),
    Magvit3DConfig(width=4, multipliers=(1, 2, 2), grid=2),
    Magvit3DConfig(width=4, multipliers=(2,), grid=1),
    Magvit2DConfig(width=4, multipliers=(1, 2, 2), grid=2),
    Magvit2DConfig(width=4, multipliers=(2,), grid=1, frames="all"),
]


def built(config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (PatchConfig(norm="batch"), 663_361),
        (StyleGAN2Config(), 28_389_121),
        (StyleGAN2Config(size=256), 28_864_129),
        # 3x3 stem; a block of a -> b channels has 9a² + a + 9ab + b + ab; 3x3; 16 cells to 512; one logit.
        (Magvit2DConfig(), 3584 + 475_520 + 1_901_312 + 3 * 4_981_760 + 2_359_808 + 4_194_816 + 513),
        (Magvit3DConfig(), 67_977_473),  # its linear layer takes 1x4x4 positions, as the paper's flattening does
    ],
)
def test_parameter_counts_are_the_published_ones(config, count):
    with torch.device("meta"):
        assert parameters(config.build()) == count


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_a_config_survives_plain_data_by_its_kind(config):
    class Holder(Config):
        discriminator: DiscriminatorConfig

    plain = Holder(discriminator=config).plain()
    assert Holder.parse(plain).discriminator == config


@pytest.mark.parametrize("fields", [{"size": 48}, {"width": 0}, {"group": 0}, {"frames": "some"}])
def test_a_wrong_field_is_a_config_error(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        StyleGAN2Config.parse(fields)


@pytest.mark.parametrize("config", SMALL, ids=str)
@settings(max_examples=12, deadline=None)
@given(b=st.integers(1, 5), t=st.integers(1, 6), h=st.integers(24, 50), w=st.integers(24, 50))
def test_any_batch_length_and_size_gives_finite_logits_per_sample(config, b, t, h, w):
    discriminator = built(config)
    video = noise(b, 3, t, h, w).float()
    with torch.no_grad():
        logits = discriminator(video)
    assert logits.shape[0] == b
    assert logits.isfinite().all()
    if config.kind == "patch":
        side = 2**config.stages
        assert logits.shape == (b, t, h // side - 2, w // side - 2)
    elif config.kind in ("stylegan2", "magvit2d"):
        assert logits.shape == (b, t)
    else:
        assert logits.shape == (b, 1)


@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 9), h=st.integers(1, 20), w=st.integers(1, 20))
def test_the_3d_one_takes_an_image_and_any_clip_down_to_one_pixel(t, h, w):
    discriminator = built(SMALL[5])
    with torch.no_grad():
        assert discriminator(noise(2, 3, t, h, w).float()).isfinite().all()


@pytest.mark.parametrize(("config", "least"), [(SMALL[0], 12), (SMALL[1], 6), (SMALL[2], 24), (SMALL[3], 8)])
def test_frames_below_the_least_size_are_named(config, least):
    discriminator = built(config)
    discriminator(torch.zeros(2, 3, 1, least, least))
    with pytest.raises(InputError, match=f"use {least}x{least} or more"):
        discriminator(torch.zeros(2, 3, 1, least, least - 1))


@pytest.mark.parametrize("config", [SMALL[0], SMALL[2], SMALL[3].model_copy(update={"group": 1}), *SMALL[7:]], ids=str)
def test_a_2d_one_judges_each_frame_of_a_clip_alone(config):
    discriminator, video = built(config).double(), noise(2, 3, 3, 32, 32)
    logits = discriminator(video)
    for i in range(2):
        for t in range(3):
            alone = discriminator(video[i : i + 1, :, t : t + 1])
            assert torch.allclose(alone[0, 0], logits[i, t], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 1), (8, 2), (18, 2), (64, 16), (128, 32), (256, 32)])
def test_a_group_norm_has_at_most_32_groups_of_four_channels_or_more(channels, groups):
    norms = [m for m in built(PatchConfig(width=channels, stages=1)).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert (norms[0].num_channels, norms[0].num_groups) == (2 * channels, norm_groups(2 * channels))
    assert norm_groups(channels) == groups


def test_samples_are_a_chosen_frame_or_all_frames_or_the_clip():
    video, index = noise(2, 3, 5, 32, 32), torch.tensor([4, 1])
    chosen = built(PatchConfig(width=8)).samples(video, index)
    assert torch.equal(chosen, torch.stack([video[0, :, 4:5], video[1, :, 1:2]]))
    frames = built(PatchConfig(width=8, frames="all")).samples(video, index)
    assert frames.shape == (10, 3, 1, 32, 32)
    assert torch.equal(frames[7], video[1, :, 2:3])
    assert built(SMALL[5]).samples(video) is video
    with pytest.raises(ValueError, match="frame index"):
        built(PatchConfig(width=8)).samples(video)


@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 9), h=st.integers(2, 12), w=st.integers(2, 12))
def test_halving_is_the_depthwise_convolution_with_the_outer_product_of_the_taps(t, h, w):
    features, taps = noise(2, 3, t, h, w), torch.tensor(TAPS, dtype=torch.float64)
    halved = halve(features, (2, 3, 4))
    time = taps if t > 1 else torch.ones(1, dtype=torch.float64)
    kernel = torch.einsum("i,j,k->ijk", time, taps, taps).expand(3, 1, -1, -1, -1)
    padding = [1, 1 + w % 2, 1, 1 + h % 2] + ([1, 1 + t % 2] if t > 1 else [0, 0])
    expected = F.conv3d(F.pad(features, padding), kernel, stride=(2 if t > 1 else 1, 2, 2), groups=3)
    assert halved.shape[2:] == (math.ceil(t / 2), math.ceil(h / 2), math.ceil(w / 2))
    assert torch.allclose(halved, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axis", [2, 3, 4, -1])
def test_a_blur_mixes_no_channels_and_keeps_constants_away_from_borders(stride, axis):
    features = noise(1, 4, 9, 9, 9)
    blurred = low_pass(features, axis, stride, (2, 2))
    changed = features.clone()
    changed[:, 2] += noise(9, 9, 9, seed=1)
    difference = (low_pass(changed, axis, stride, (2, 2)) - blurred).abs().amax((0, 2, 3, 4))
    assert difference[2] > 0.1
    assert torch.equal(difference[[0, 1, 3]], torch.zeros(3, dtype=torch.float64))
    constant = low_pass(torch.full_like(features, 7), axis, stride, (2, 2)).movedim(axis, -1)
    assert torch.equal(constant[..., 2:-2], torch.full_like(constant[..., 2:-2], 7))
    assert sum(TAPS) == 1


def test_an_axis_of_length_one_is_not_pooled():
    features = noise(1, 2, 1, 1, 1)
    assert torch.equal(halve(features, (2, 3, 4)), features)


@settings(max_examples=20, deadline=None)
@given(h=st.integers(1, 13), w=st.integers(1, 13), side=st.integers(1, 4))
def test_the_grid_mean_is_the_mean_of_its_cells_and_the_identity_at_its_own_size(h, w, side):
    features = noise(2, 3, h, w)
    cells = grid_mean(features, side)
    for i in range(side):
        rows = slice(i * h // side, -(-(i + 1) * h // side))
        for j in range(side):
            columns = slice(j * w // side, -(-(j + 1) * w // side))
            assert torch.allclose(cells[:, :, i, j], features[:, :, rows, columns].mean((2, 3)))
    own = noise(2, 3, side, side)
    assert grid_mean(own, side) is own


@pytest.mark.parametrize(("channels", "out", "kernel"), [(3, 16, 1), (64, 128, 3), (200, 64, 3)])
def test_equalised_layers_have_unit_parameters_and_keep_the_variance(channels, out, kernel):
    layer = EqualisedConv(channels, out, kernel)
    layer.weight_orig.data.copy_(noise(*layer.weight_orig.shape))
    plain = F.conv2d(
        noise(2, channels, 6, 6, seed=1).float(),
        layer.weight_orig / (channels * kernel**2) ** 0.5,
        layer.bias,
        padding=kernel // 2,
    )
    features = layer(noise(2, channels, 6, 6, seed=1).float())
    assert torch.allclose(features, plain, atol=1e-5)
    inner = features[..., 1:-1, 1:-1]
    assert 0.5 < inner.var() < 2
    linear = EqualisedLinear(100, 50)
    assert torch.allclose(linear(torch.eye(100)), linear.weight_orig.T / 10, atol=1e-7)


def test_equalised_parameters_start_as_unit_normals_and_zero_biases():
    discriminator = built(StyleGAN2Config(size=32, width=128))
    weights = {key: value for key, value in discriminator.named_parameters() if key.endswith("weight_orig")}
    assert len(weights) == len([key for key, _ in discriminator.named_parameters() if "bias" not in key])
    assert torch.cat([weight.detach().flatten() for weight in weights.values()]).std() == pytest.approx(1, rel=0.02)
    assert all((p == 0).all() for key, p in discriminator.named_parameters() if key.endswith("bias"))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("n", range(1, 13))
def test_minibatch_deviation_takes_the_largest_group_that_divides_the_batch(n, group):
    features = noise(n, 2, 3, 4)
    size = next(g for g in range(min(group, n), 0, -1) if n % g == 0)
    deviation = minibatch_deviation(features, group)
    assert deviation.shape == (n, 1, 3, 4)
    for i in range(n):
        members = features[i % (n // size) :: n // size]
        assert len(members) == size
        expected = (members.var(0, correction=0) + 1e-8).sqrt().mean()
        assert torch.allclose(deviation[i], expected.expand(1, 3, 4), rtol=1e-12)


@pytest.mark.parametrize("config", SMALL, ids=str)
@pytest.mark.parametrize("penalty", [r1_penalty, gradient_penalty])
def test_penalties_have_the_gradients_that_finite_differences_give(config, penalty):
    """The directional derivative of the penalty along a random change of all parameters, in float64."""
    discriminator, video = built(config).double(), noise(2, 3, 2, 24, 24).requires_grad_()

    def value():
        return penalty(input_gradient_norms(discriminator(video), video))

    step = 1e-8  # so small that no activation crosses the kink of its leaky ReLU, where the penalty jumps
    gradients = torch.autograd.grad(
        value(), list(discriminator.parameters()), allow_unused=True, materialize_grads=True
    )
    directions = [noise(*p.shape, seed=i) for i, p in enumerate(discriminator.parameters())]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    moved = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(discriminator.parameters(), directions, strict=True):
                p.add_(d, alpha=sign * step)
        moved.append(value().item())
        with torch.no_grad():
            for p, d in zip(discriminator.parameters(), directions, strict=True):
                p.sub_(d, alpha=sign * step)
    assert slope.item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("config", [StyleGAN2Config(size=64, width=64), Magvit3DConfig(width=16)], ids=str)
def test_logits_of_a_fresh_network_are_of_order_one(config):
    logits = torch.stack([built(config, seed)(noise(2, 3, 4, 64, 64).float()).flatten() for seed in range(5)])
    assert 0.02 < logits.detach().std() < 5


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_autocast_changes_logits_only_by_rounding(config):
    discriminator, video = built(config), noise(2, 3, 2, 32, 32).float()
    with torch.no_grad():
        full = discriminator(video)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = discriminator(video)
    assert torch.allclose(half.float(), full, atol=0.05 * (1 + full.abs().max().item()))


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_nothing_but_parameters_and_running_averages_is_saved(config):
    discriminator = built(config)
    buffers = set(discriminator.state_dict()) - {key for key, _ in discriminator.named_parameters()}
    expected = ("running_mean", "running_var", "num_batches_tracked")
    assert all(key.endswith(expected) for key in buffers)
    assert bool(buffers) == (config.kind == "patch" and config.norm == "batch")


def test_magvits_2d_one_is_the_released_network():
    """Written out again with torch's own layers: stem, depthwise blurs, blocks, flattening, two linear layers."""
    discriminator = built(Magvit2DConfig(width=3, multipliers=(2, 4), grid=4)).double()
    x, taps = noise(2, 3, 1, 16, 16), torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8

    def blur(y):
        kernel = (taps[:, None] * taps).expand(y.shape[1], 1, 4, 4)
        return F.conv2d(F.pad(y, (1, 1, 1, 1)), kernel, stride=2, groups=y.shape[1])

    def rectified(layer, y):
        return F.leaky_relu(F.conv2d(y, layer.weight, layer.bias, padding=1), 0.2)

    y = rectified(discriminator.first, x[:, :, 0])
    for block, (inner, out) in zip(discriminator.blocks, ((3, 6), (6, 12)), strict=True):
        assert (block.inner.weight.shape, block.outer.weight.shape) == ((inner, inner, 3, 3), (out, inner, 3, 3))
        skip = F.conv2d(blur(y), block.skip.weight)
        y = (rectified(block.outer, blur(rectified(block.inner, y))) + skip) / 2**0.5
    hidden = F.leaky_relu(discriminator.hidden(rectified(discriminator.last, y).flatten(1)), 0.2)
    torch.testing.assert_close(discriminator(x), discriminator.logit(hidden), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("frames", "size", "grid"), [(5, 16, 4), (4, 12, 3), (1, 16, 4)])
def test_the_3d_one_is_the_papers_network(frames, size, grid):
    """Written out again with torch's own layers; the blur of an axis of length 1 is left out, and a mean over time."""
    discriminator = built(Magvit3DConfig(width=3, multipliers=(2, 4), grid=grid)).double()
    x, taps = noise(2, 3, frames, size, size), torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8

    def blur(y):
        for axis in (2, 3, 4):
            n, shape = y.shape[axis], [1, 1, 1, 1, 1]
            if n > 1:
                shape[axis], stride, padding = 4, [1, 1, 1], [0] * 6
                stride[axis - 2], padding[2 * (4 - axis)], padding[2 * (4 - axis) + 1] = 2, 1, 1 + n % 2
                kernel = taps.view(shape).expand(y.shape[1], *[-1] * 4)
                y = F.conv3d(F.pad(y, padding), kernel, stride=stride, groups=y.shape[1])
        return y

    def rectified(layer, y):
        y = F.conv3d(y, layer.weight, layer.bias, padding=1)
        return torch.where(y > 0, y, 0.2 * y)

    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(0.1 * noise(*parameter.shape, seed=2))  # biases too
    y = rectified(discriminator.first, x)
    for block in discriminator.blocks:
        skip = F.conv3d(blur(y), block.skip.weight)
        y = (rectified(block.outer, blur(rectified(block.inner, y))) + skip) / 2**0.5
    cells = F.adaptive_avg_pool2d(rectified(discriminator.last, y).mean(2), grid).flatten(1)
    hidden = discriminator.hidden(cells)
    logits = discriminator.logit(torch.where(hidden > 0, hidden, 0.2 * hidden))
    torch.testing.assert_close(discriminator(x), logits, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("config", [Magvit2DConfig(width=32), Magvit3DConfig(width=16, initialisation="xavier")])
def test_xavier_weights_fill_their_interval_and_biases_are_zero(config):
    for name, parameter in built(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
            continue
        receptive = math.prod(parameter.shape[2:])
        limit = math.sqrt(6 / (receptive * (parameter.shape[0] + parameter.shape[1])))
        assert parameter.abs().max() <= limit
        if parameter.numel() > 2000:
            assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05), name


def test_kaiming_weights_have_their_deviation_and_biases_are_zero():
    for name, parameter in built(Magvit3DConfig(width=16)).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 2000:  # sqrt(2 / (1 + 0.2^2) / fan in)
            deviation = math.sqrt(2 / 1.04 / math.prod(parameter.shape[1:]))
            assert parameter.std().item() == pytest.approx(deviation, rel=0.05), name
