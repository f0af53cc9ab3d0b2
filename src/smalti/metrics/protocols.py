"""Named conventions. A figure means little without its own: they move SSIM of one picture from .64 to .81."""

from typing import Literal

from smalti.config import Config
from smalti.errors import ConfigError
from smalti.metrics.pixel import Rounding, WindowName


class Protocol(Config):
    """Everything that a score depends on besides the pictures and the tokenizer."""

    kind: Literal["protocol"] = "protocol"
    name: str
    reader: str = "rgb24"
    """How files become pixels. Declared: whoever reads the clips keeps to it; scores are computed from tensors."""
    resize: Literal["none", "bilinear", "bicubic", "lanczos"] = "none"
    """Kernel that brought the shorter side to `size` before scoring, with antialiasing. Declared, as `reader`."""
    crop: Literal["none", "center"] = "none"
    """Crop to `size` x `size` after the resize. Declared, as `reader`."""
    size: int | None = None
    """Pixels per side after resize and crop; None keeps the files' own. Declared, as `reader`."""
    rounding: Rounding = "round"
    """How both videos go from [-1, 1] to 0..255; all scores, LPIPS too, see the pixels after it."""
    peak: float = 255.0
    """Pixels are scored on 0..peak."""
    data_range: float = 255.0
    """The range in the formulas of PSNR and SSIM; peers exist that pass another one than `peak`."""
    psnr_over: Literal["channel", "frame", "clip", "set"] = "frame"
    """What one squared error is averaged over before the logarithm; the PSNRs are then averaged."""
    psnr_cap: float = 100.0
    """No PSNR counts for more, so that identical frames (infinite, counted in the report) leave a mean to speak of."""
    mean_over: Literal["clips", "frames"] = "clips"
    """Each clip has the same weight, or each frame."""
    ssim: WindowName = "gaussian-11"
    """Per RGB channel, averaged; see `smalti.metrics.pixel.ssim`."""
    ms_ssim: bool = True
    """Also five-scale SSIM, where frames are 176 x 176 or more."""
    lpips: Literal["vgg", "alex"] | None = "vgg"
    """LPIPS v0.1 with this net, per frame; None leaves it out."""
    lpips_digest: str | None = None
    """sha256 of its weights; None takes what is given, and the report names it."""


SMALTI = Protocol(name="smalti")

MINDONE = Protocol(name="mindone", rounding="floor", mean_over="frames", ssim="uniform-7", ms_ssim=False, lpips=None)
"""mindone's magvit example on video: scikit-image on truncated uint8."""

MINDONE_IMAGE = MINDONE.model_copy(update={"name": "mindone-image", "psnr_over": "channel"})
"""The same on images, where that code takes each colour channel for a frame."""

OPEN_MAGVIT2 = Protocol(
    name="open-magvit2", rounding="floor", peak=1.0, data_range=1.0, ssim="uniform-7", ms_ssim=False, lpips="alex"
)
"""Open-MAGVIT2's image evaluation: scikit-image with data_range 1 on pixels scaled to [0, 1]."""

_NAMED = (SMALTI, MINDONE, MINDONE_IMAGE, OPEN_MAGVIT2)


def by_name(name: str) -> Protocol:
    """The protocol of that name. Raises ConfigError that lists the names."""
    for protocol in _NAMED:
        if protocol.name == name:
            return protocol
    raise ConfigError(f"no protocol is called {name!r}; there are: {', '.join(p.name for p in _NAMED)}")
