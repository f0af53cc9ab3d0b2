"""Named conventions. A figure means little without its own: they move SSIM of one picture from .64 to .81."""

from typing import Literal

from pydantic import Field, model_validator

from smalti.config import Config
from smalti.errors import ConfigError
from smalti.metrics.features import FeatureName
from smalti.metrics.pixel import Rounding, WindowName


class Protocol(Config):
    """Everything that a score depends on besides the images or videos and the tokenizer."""

    kind: Literal["protocol"] = "protocol"
    name: str
    """Name of the protocol."""
    media: Literal["any", "images", "videos"] = "any"
    """Media that the protocol is for; others are refused."""
    convention: Literal["magicmaster", "mindone"] | None = None
    """Project whose pipeline makes pixels of files in `smalti eval`; null is smalti's own, with `resize` and `crop`."""
    reader: str = "rgb24"
    """Decoder of the files. From here to `sampling`, fields are declarations if clips are passed as tensors."""
    resize: Literal["none", "bilinear", "bicubic", "lanczos", "cv2-bilinear", "cv2-bicubic"] = "none"
    """Filter that scales a frame to `size`: Pillow's (antialiased), or OpenCV's."""
    crop: Literal["none", "center"] = "none"
    """Crop of a frame: none, or the middle square."""
    size: int | None = None
    """Height and width after resize and crop; null keeps those of the files."""
    frames: int | None = Field(default=None, ge=1)
    """Frames of a clip; null for images, or for any number."""
    stride: int = Field(default=1, ge=1)
    """Distance between the frames of a clip."""
    sampling: Literal["center", "random"] = "center"
    """Position of the clip in its video; random positions are the same in every run."""
    samples: int | None = Field(default=None, ge=1)
    """Number of clips that are reconstructed, the first ones; fewer are refused. Null is any number. Distances are to
    all originals."""
    rounding: Rounding = "round"
    """Conversion of both videos from [-1, 1] to 0..255, before all scores, LPIPS and features too."""
    original_rounding: Rounding | None = None
    """Conversion of the originals, if another: `round` gives their pixels back as they were on disk."""
    peak: float = 255.0
    """Upper end of the pixel range that is scored."""
    data_range: float = 255.0
    """Range in the formulas of PSNR and SSIM; some projects pass another value than `peak`."""
    psnr_over: Literal["channel", "frame", "clip", "set"] = "frame"
    """Unit that the squared error is averaged over before the logarithm; the PSNRs are then averaged."""
    psnr_cap: float = 100.0
    """Upper bound of every PSNR in dB, so that identical frames, which are counted, leave a finite mean."""
    mean_over: Literal["clips", "frames"] = "clips"
    """Unit that has equal weight in the mean."""
    ssim: WindowName | None = "gaussian-11"
    """Window of SSIM, which is averaged over RGB channels; null leaves SSIM out."""
    ms_ssim: bool = True
    """Whether five-scale SSIM is taken too, for frames of 176 x 176 or more."""
    lpips: Literal["vgg", "alex"] | None = "vgg"
    """Network of LPIPS v0.1, per frame; null leaves LPIPS out."""
    lpips_digest: str | None = None
    """Sha256 of the LPIPS weights; null accepts any, and the report states it."""
    features: FeatureName | None = None
    """Network of the Fréchet distance; null takes no distance."""
    features_digest: str | None = None
    """Sha256 of the weight file of `features`; null accepts any, and the report states it."""

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
