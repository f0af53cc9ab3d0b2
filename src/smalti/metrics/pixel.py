"""PSNR, SSIM and MS-SSIM of frames, each by the definition of its authors, in the float type of its input.

Frames are `n c h w` in any range; the data range is an argument, never guessed. There is one score a frame.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Rounding = Literal["round", "floor", "none"]
WindowName = Literal["gaussian-11", "gaussian-11-reflect", "uniform-7"]

_K1, _K2 = 0.01, 0.03  # the stabilisers of Wang et al. 2004, the same everywhere
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, table of exponents

SMALLEST_MS_SSIM = 11 * 2 ** (len(_SCALES) - 1)
"""176: pixels per side below which the fifth scale is smaller than the window."""


class _Window(NamedTuple):
    weights: tuple[float, ...]  # one axis of a separable window
    unbias: float  # factor on variances: n / (n - 1) for sample covariances
    reflect: bool  # pad by reflection and average over all pixels, or use whole windows only


def _gaussian(sigma: float, radius: int) -> tuple[float, ...]:
    values = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    return tuple(value / sum(values) for value in values)


_WINDOWS: dict[WindowName, _Window] = {
    "gaussian-11": _Window(_gaussian(1.5, 5), 1.0, reflect=False),
    "gaussian-11-reflect": _Window(_gaussian(1.5, 5), 1.0, reflect=True),
    "uniform-7": _Window((1 / 7,) * 7, 49 / 48, reflect=False),
}


def to_pixels(video: Float[Tensor, "..."], rounding: Rounding) -> Float[Tensor, "..."]:
    """Map [-1, 1] to 0..255 in float64: clip((v + 1) · 127.5, 0, 255), then rounded.

    `round` goes to the nearest (ties to even). `floor` cuts in float32, as `.astype(uint8)` in other projects does: it
    moves images by -1/2 level on average, and some originals by -1. `none` keeps the fraction.
    """
    if rounding == "floor":
        return ((video.float() + 1) * 127.5).clamp(0, 255).floor().double()
    pixels = ((video.double() + 1) * 127.5).clamp(0, 255)
    return pixels.round() if rounding == "round" else pixels


def to_uint8_pixels(video: Float[Tensor, "..."], rounding: Rounding) -> UInt8[Tensor, "..."]:
    """Map [-1, 1] to the uint8 pixels that every score sees."""
    video = video.cpu() if video.device.type == "mps" else video  # MPS has no float64
    return to_pixels(video, rounding).to(torch.uint8)


def mse(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    """Compute the mean squared difference per frame and channel."""
    return ((a - b) ** 2).mean((2, 3))


def psnr(error: Float[Tensor, "..."], data_range: float) -> Float[Tensor, "..."]:
    """Compute 10 log10(data_range² / error) in dB from mean squared errors; infinite where the error is 0.

    The protocol chooses what the error is averaged over (a channel, a frame, a clip, a set): the mean of PSNRs is
    never below the PSNR of the mean (Jensen).
    """
    if data_range <= 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    return 10 * torch.log10(data_range**2 / error)


def ssim(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], data_range: float, window: WindowName = "gaussian-11"
) -> Float[Tensor, "n"]:
    """Compute SSIM (Wang et al. 2004) per channel, averaged over windows and channels; 1 for equal frames.

    - `gaussian-11`: 11 x 11, sigma 1.5, population covariance, whole windows only (the authors'; scikit-image's
      `gaussian_weights=True, use_sample_covariance=False`).
    - `gaussian-11-reflect`: the same, but frames are padded by reflection and every pixel counts (torchmetrics).
    - `uniform-7`: 7 x 7 mean, sample covariance, whole windows only (scikit-image's default; mindone, Open-MAGVIT2).

    Raises ValueError for frames smaller than the window.
    """
    similarity, _ = _compare(a, b, data_range, _WINDOWS[window])
    return similarity.mean(1)


def smallest_side(window: WindowName) -> int:
    """Return the pixels per side that the window needs."""
    return len(_WINDOWS[window].weights)


def ms_ssim(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], data_range: float) -> Float[Tensor, "n"]:
    """Compute five-scale SSIM (Wang, Simoncelli, Bovik 2003), window `gaussian-11`, per channel, then averaged.

    prod over scales j of max(0, s_j)^beta_j: s_j is the mean contrast-structure term, at the last scale the full SSIM.
    Scales are 2 x 2 means apart; an odd last line of pixels is dropped. Raises ValueError below 176 x 176.
    """
    height, width = a.shape[-2:]
    if min(height, width) < SMALLEST_MS_SSIM:
        raise ValueError(
            f"MS-SSIM needs {SMALLEST_MS_SSIM} x {SMALLEST_MS_SSIM} pixels or more, got {height} x {width}"
        )
    product = a.new_ones(a.shape[:2])
    for scale, beta in enumerate(_SCALES):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        similarity, contrast = _compare(a, b, data_range, _WINDOWS["gaussian-11"])
        term = similarity if scale == len(_SCALES) - 1 else contrast
        product = product * term.clamp_min(0) ** beta
    return product.mean(1)


def _compare(a: Tensor, b: Tensor, data_range: float, window: _Window) -> tuple[Tensor, Tensor]:
    """Return the means over windows of SSIM and of its contrast-structure factor, each `n c`."""
    size = len(window.weights)
    if a.shape != b.shape or min(a.shape[-2:]) < size:
        raise ValueError(
            f"SSIM needs two frames of one shape, {size} x {size} pixels or more: {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if data_range <= 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    mean_a, mean_b, square_a, square_b, product = (_blur(x, window) for x in (a, b, a * a, b * b, a * b))
    variances = window.unbias * (square_a - mean_a**2 + square_b - mean_b**2)
    covariance = window.unbias * (product - mean_a * mean_b)
    contrast = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))


def _blur(x: Tensor, window: _Window) -> Tensor:
    """Return windowed means along both axes, by sums of shifted views: 10 to 20 times as fast as a float64 convolution
    on a CPU."""
    size = len(window.weights)
    if window.reflect:
        x = F.pad(x, (size // 2,) * 4, mode="reflect")
    for axis in (-2, -1):
        length = x.shape[axis] - size + 1
        total = x.narrow(axis, 0, length) * window.weights[0]
        for i, weight in enumerate(window.weights[1:], start=1):
            total = total.add_(x.narrow(axis, i, length), alpha=weight)
        x = total
    return x
