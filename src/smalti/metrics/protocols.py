"""Named conventions. A figure means little without its own: they move SSIM of one picture from .64 to .81."""

from typing import Literal

from pydantic import Field, model_validator

from smalti.config import Config
from smalti.errors import ConfigError
from smalti.metrics.features import FeatureName
from smalti.metrics.pixel import Rounding, WindowName


class Protocol(Config):
    """Everything that a score depends on besides the pictures and the tokenizer."""

    kind: Literal["protocol"] = "protocol"
    name: str
    media: Literal["any", "images", "videos"] = "any"
    """What it is for; other files are refused."""
    convention: Literal["magicmaster", "mindone"] | None = None
    """Whose pipeline makes pixels of files (`smalti.data.conventions`); None: smalti's own, as `resize` and `crop` say.
    Kept by `smalti eval`; whoever hands in clips keeps to it, for scores are computed from tensors."""
    reader: str = "rgb24"
    """What decodes files. Declared, as all up to `sampling` where no convention is named."""
    resize: Literal["none", "bilinear", "bicubic", "lanczos", "cv2-bilinear", "cv2-bicubic"] = "none"
    """Kernel that brings a frame to `size`; Pillow's, antialiased, or OpenCV's."""
    crop: Literal["none", "center"] = "none"
    """The middle square is taken."""
    size: int | None = None
    """Pixels per side after resize and crop; None keeps the files' own."""
    frames: int | None = Field(default=None, ge=1)
    """Frames of a clip of video; None where there are pictures alone, or any number goes."""
    stride: int = Field(default=1, ge=1)
    """One frame in so many is taken."""
    sampling: Literal["center", "random"] = "center"
    """Where in its video a clip lies; random places are the same at every run."""
    samples: int | None = Field(default=None, ge=1)
    """As many clips are reconstructed, the first ones; fewer are refused. Distances are to all originals. None: any."""
    rounding: Rounding = "round"
    """How both videos go from [-1, 1] to 0..255; all scores, LPIPS and features too, see the pixels after it."""
    original_rounding: Rounding | None = None
    """Another one for the originals: `round` gives them back as they were on disk."""
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
    ssim: WindowName | None = "gaussian-11"
    """Per RGB channel, averaged; see `smalti.metrics.pixel.ssim`. None leaves it out."""
    ms_ssim: bool = True
    """Also five-scale SSIM, where frames are 176 x 176 or more."""
    lpips: Literal["vgg", "alex"] | None = "vgg"
    """LPIPS v0.1 with this net, per frame; None leaves it out."""
    lpips_digest: str | None = None
    """sha256 of its weights; None takes what is given, and the report names it."""
    features: FeatureName | None = None
    """The network of the Fréchet distance; None takes none."""
    features_digest: str | None = None
    """sha256 of the file of its weights; None takes what is given, and the report names it."""

    @model_validator(mode="after")
    def _whole_levels(self) -> "Protocol":
        if self.features is not None and "none" in (self.rounding, self.original_rounding):
            raise ValueError("features are taken of uint8 pixels: set rounding to round or floor")
        return self


SMALTI = Protocol(name="smalti")

SMALTI_FRECHET = Protocol(name="smalti-frechet", features="efficientnet-lite0")
"""With a Fréchet distance whose network a package installs. No FID."""

SMALTI_FID = Protocol(name="smalti-fid", features="inception")
"""With rFID of any number of frames, pixels rounded."""

SMALTI_FVD = Protocol(name="smalti-fvd", media="videos", frames=16, features="i3d")
"""With rFVD of any number of clips, pixels rounded; 16 frames as StyleGAN-V takes, another number may be asked for."""

_TRUNCATED = Protocol(name="", rounding="floor", crop="center", size=128, ssim=None, ms_ssim=False, lpips=None)

MAGICMASTER_PSNR = _TRUNCATED.replace({"name": "magicmaster-psnr", "convention": "magicmaster", "media": "images",
                                       "resize": "bilinear", "original_rounding": "round"})  # fmt: skip
"""MagicMaster's pictures, truncated to uint8, one error over a picture (it has a class for this and no config)."""

MAGICMASTER_FID = MAGICMASTER_PSNR.replace({"name": "magicmaster-fid", "samples": 50_000, "features": "inception"})
"""MagicMaster's FID-50k: ImageNet's validation list through its pipeline, EMA weights, pytorch-fid's Inception."""

MAGICMASTER_FVD = MAGICMASTER_PSNR.replace(
    {"name": "magicmaster-fvd", "media": "videos", "resize": "cv2-bilinear", "frames": 17, "stride": 2,
     "samples": 29_739, "features": "i3d"}
)  # fmt: skip
"""MagicMaster's FVD: its K600 validation list, the middle 17 frames at stride 2."""

MINDONE_PSNR = _TRUNCATED.replace(
    {"name": "mindone-psnr", "convention": "mindone", "media": "videos", "resize": "cv2-bicubic", "frames": 17,
     "sampling": "random", "mean_over": "frames", "ssim": "uniform-7"}
)  # fmt: skip
"""mindone's magvit example on video: PSNR and SSIM of scikit-image on truncated uint8, clips from anywhere."""

MINDONE_PSNR_IMAGES = MINDONE_PSNR.replace(
    {"name": "mindone-psnr-images", "media": "images", "frames": None, "sampling": "center", "psnr_over": "channel"}
)
"""The same on pictures, where that code takes each colour channel for a frame."""

OPEN_MAGVIT2 = Protocol(
    name="open-magvit2", rounding="floor", peak=1.0, data_range=1.0, ssim="uniform-7", ms_ssim=False, lpips="alex"
)
"""Open-MAGVIT2's image evaluation: scikit-image with data_range 1 on pixels scaled to [0, 1]."""

NAMED = (
    *(SMALTI, SMALTI_FRECHET, SMALTI_FID, SMALTI_FVD),
    *(MAGICMASTER_PSNR, MAGICMASTER_FID, MAGICMASTER_FVD),
    *(MINDONE_PSNR, MINDONE_PSNR_IMAGES, OPEN_MAGVIT2),
)
"""All that have a name on the command line."""


def by_name(name: str) -> Protocol:
    """The protocol of that name. Raises ConfigError that lists the names."""
    for protocol in NAMED:
        if protocol.name == name:
            return protocol
    raise ConfigError(f"no protocol is called {name!r}; there are: {', '.join(p.name for p in NAMED)}")
