"""PSNR, SSIM and MS-SSIM against scikit-image, torchmetrics and direct definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from smalti.metrics.pixel import SMALLEST_MS_SSIM, ms_ssim, mse, psnr, smallest_side, ssim, to_pixels
from tests.goldens.rule import load

GOLDEN = load("metrics_psnr_ssim")


def golden_frames():
    """Original, floored and rounded reconstruction of the golden's seven frames, by its two shapes."""
    tensors = GOLDEN.tensors
    image = [to_pixels(tensors["image_recon"].float(), how) for how in ("floor", "round")]
    video = [to_pixels(tensors["video_recon"].float(), how)[0].transpose(0, 1) for how in ("floor", "round")]
    yield tensors["image_u8"].double(), *image, GOLDEN.tensors["table"][:2]
    yield tensors["video_u8"][0].transpose(0, 1).double(), *video, GOLDEN.tensors["table"][2:]


def two_frames(height, width, seed=0, channels=3):
    rng = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, (2, channels, height, width), generator=rng).double()
    b = (a + 30 * torch.randn(a.shape, generator=rng, dtype=torch.float64)).clamp(0, 255).round()
    return a, b


@pytest.mark.parametrize("frames", list(golden_frames()), ids=["image", "video"])
def test_rounding_and_scores_equal_the_golden(frames):
    original, floored, rounded, table = frames
    errors = mse(original, floored)
    found = [
        psnr(errors.mean(1), 255.0),
        psnr(errors, 255.0).mean(1),
        errors.mean(1),
        psnr(mse(original, rounded).mean(1), 255.0),
        ssim(original, floored, 255.0, "uniform-7"),
        ssim(original, floored, 255.0, "gaussian-11"),
        ssim(original, floored, 255.0, "gaussian-11-reflect"),
    ]
    torch.testing.assert_close(torch.stack(found[:4], 1), table[:, :4], rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.stack(found[4:], 1), table[:, 4:7], rtol=0, atol=1e-9)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    grey = [(frame * weights).sum(1, keepdim=True) for frame in (original, floored)]
    torch.testing.assert_close(ssim(*grey, 255.0, "gaussian-11"), table[:, 7], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["image", "video"])
def test_pixels_after_rounding_equal_the_golden_bytes(name):
    for how in ("floor", "round"):
        pixels = to_pixels(GOLDEN.tensors[f"{name}_recon"].float(), how)
        assert torch.equal(pixels, GOLDEN.tensors[f"{name}_{how}_u8"].double())


def test_rounding_returns_every_byte_and_flooring_loses_some_in_float32():
    levels = torch.arange(256).float()
    video = levels / 127.5 - 1
    assert torch.equal(to_pixels(video, "round"), levels.double())
    assert int((to_pixels(video, "floor") != levels).sum()) > 0


@settings(max_examples=20, deadline=None)
@given(height=st.integers(11, 40), width=st.integers(11, 40), seed=st.integers(0, 99), peak=st.sampled_from([1, 255]))
def test_ssim_equals_scikit_image(height, width, seed, peak):
    a, b = (frame * (peak / 255) for frame in two_frames(height, width, seed))
    options = {"data_range": float(peak), "channel_axis": 0}
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for i in range(2):
        pair = a[i].numpy(), b[i].numpy()
        uniform = ssim(a, b, float(peak), "uniform-7")[i].item()
        assert uniform == pytest.approx(structural_similarity(*pair, **options), abs=1e-12)
        weighted = ssim(a, b, float(peak), "gaussian-11")[i].item()
        assert weighted == pytest.approx(structural_similarity(*pair, **options, **gaussian), abs=1e-12)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (17, 40), (33, 24)])
def test_reflected_ssim_equals_torchmetrics(height, width):
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = two_frames(height, width)
    theirs = structural_similarity_index_measure(b, a, data_range=255.0, reduction="none")
    torch.testing.assert_close(ssim(a, b, 255.0, "gaussian-11-reflect"), theirs, rtol=0, atol=1e-9)


def direct_ms_ssim(a, b, data_range):
    """The definition, one channel at a time, with scipy's Gaussian filter and the border of 5 cut off."""
    weights, product = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 1.0
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    for scale, weight in enumerate(weights):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
        term = (2 * cov + c2) / (var_a + var_b + c2)
        if scale == 4:
            term = term * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        product *= max(0.0, term.mean()) ** weight
        even = [x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2] for x in (a, b)]
        a, b = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean((1, 3)) for x in even)
    return product


@pytest.mark.parametrize(("height", "width"), [(176, 176), (177, 191), (200, 250)])
def test_ms_ssim_equals_its_definition(height, width):
    a, b = two_frames(height, width)
    channels = [direct_ms_ssim(a[i, c].numpy(), b[i, c].numpy(), 255.0) for i in range(2) for c in range(3)]
    expected = np.reshape(channels, (2, 3)).mean(1)
    torch.testing.assert_close(ms_ssim(a, b, 255.0), torch.tensor(expected), rtol=0, atol=1e-12)


def test_equal_frames_score_one_and_infinite_decibels():
    a, _ = two_frames(176, 180)
    for window in ("gaussian-11", "gaussian-11-reflect", "uniform-7"):
        torch.testing.assert_close(ssim(a, a, 255.0, window), torch.ones(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ms_ssim(a, a, 255.0), torch.ones(2).double(), rtol=0, atol=1e-12)
    assert psnr(mse(a, a), 255.0).isinf().all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(0.01, 100))
def test_scores_do_not_change_when_pixels_and_range_are_scaled_together(seed, factor):
    a, b = two_frames(12, 15, seed)
    scaled = a * factor, b * factor
    torch.testing.assert_close(psnr(mse(*scaled), 255.0 * factor), psnr(mse(a, b), 255.0))
    for window in ("gaussian-11", "uniform-7"):
        torch.testing.assert_close(ssim(*scaled, 255.0 * factor, window), ssim(a, b, 255.0, window))


def test_the_mean_of_psnrs_is_never_below_the_psnr_of_the_mean():
    errors = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 100
    assert psnr(errors, 255.0).mean() > psnr(errors.mean(), 255.0)
    assert psnr(torch.tensor(255.0**2), 255.0).item() == 0


@pytest.mark.parametrize(("height", "width"), [(6, 20), (20, 10), (1, 1)])
def test_frames_below_the_window_are_refused_with_the_numbers(height, width):
    a, b = two_frames(height, width)
    for window in ("gaussian-11", "uniform-7"):
        if min(height, width) < smallest_side(window):
            with pytest.raises(ValueError, match=f"{smallest_side(window)} x {smallest_side(window)} pixels or more"):
                ssim(a, b, 255.0, window)
    with pytest.raises(ValueError, match=f"{SMALLEST_MS_SSIM} x {SMALLEST_MS_SSIM}.*{height} x {width}"):
        ms_ssim(a, b, 255.0)


def test_a_range_that_is_not_positive_is_refused():
    a, b = two_frames(12, 12)
    for call in (lambda: psnr(mse(a, b), 0.0), lambda: ssim(a, b, -1.0)):
        with pytest.raises(ValueError, match="data_range must be positive"):
            call()
    assert math.isfinite(ssim(a, b, 255.0).sum().item())


def test_a_negative_structure_term_counts_as_none():
    """max(0, s)^beta: a texture against its own negative has the MS-SSIM 0, where |s|^beta would not be."""
    rng = torch.Generator().manual_seed(0)
    texture = torch.randn(1, 1, 192, 192, generator=rng, dtype=torch.float64)
    assert ms_ssim(128 + 20 * texture, 128 - 20 * texture, 255.0).item() == 0


def test_half_a_level_goes_to_the_even_neighbour():
    halves = [k for k in range(0, 255, 2) if (((k + 0.5) / 127.5 - 1) + 1) * 127.5 == k + 0.5]
    assert len(halves) > 10
    video = torch.tensor([(k + 0.5) / 127.5 - 1 for k in halves], dtype=torch.float64)
    assert to_pixels(video, "round").tolist() == halves
