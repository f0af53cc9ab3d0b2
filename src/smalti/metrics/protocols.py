"""Named conventions. A figure means little without its own: they move the SSIM of one image from .64 to .81."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from smalti.config import Config, Tuple
from smalti.errors import ConfigError
from smalti.metrics.features import FeatureName
from smalti.metrics.pixel import Rounding, WindowName


class MediaProtocol(Config):
    """How files become pixels, and pixels features: the fields that all protocols have."""

    kind: str
    name: str
    """Name of the protocol."""
    media: Literal["any", "images", "videos"] = "any"
    """Media that the protocol is for; others are refused."""
    reader: str = "rgb24"
    """Decoder of the files. From here to `sampling`, fields are declarations if clips are passed as tensors."""
    resize: Literal["none", "bilinear", "bicubic", "lanczos", "torch-bicubic", "cv2-bilinear", "cv2-bicubic"] = "none"
    """Filter that scales a frame to `size`: Pillow's (antialiased), torch's, or OpenCV's."""
    crop: Literal["none", "center"] = "none"
    """Crop of a frame: none, or the middle in the aspect of `size`."""
    size: int | Tuple[int] | None = None
    """Height and width after resize and crop, or one number for a square; null keeps those of the files."""
    frames: int | None = Field(default=None, ge=1)
    """Frames of a clip; null for images, or for any number."""
    stride: int = Field(default=1, ge=1)
    """Distance between the frames of a clip."""
    sampling: Literal["start", "center", "random"] = "center"
    """Position of the clip in its video; random positions are the same in every run."""
    samples: int | None = Field(default=None, ge=1)
    """Number of clips that are reconstructed or generated and scored, the first ones; fewer are refused. Null is any
    number. Distances are to all originals."""
    rounding: Rounding = "round"
    """Conversion of videos from [-1, 1] to 0..255, before all scores, LPIPS and features too."""
    features: FeatureName | None = None
    """Network of the Fréchet distance; null takes no distance."""
    features_digest: str | None = None
    """Sha256 of the weight file of `features`; null accepts any, and the report states it."""

    @model_validator(mode="after")
    def _rounded_for_features(self) -> "MediaProtocol":
        if self.features is not None and "none" in self._roundings():
            raise ValueError("features are taken of uint8 pixels: set rounding to round or floor")
        return self

    def _roundings(self) -> tuple[Rounding | None, ...]:
        return (self.rounding,)


class Protocol(MediaProtocol):
    """Everything that a score of reconstructions depends on besides the files and the tokenizer."""

    kind: Literal["protocol"] = "protocol"
    convention: Literal["magicmaster", "mindone"] | None = None
    """Project whose pipeline makes pixels of files in `smalti eval`; null is smalti's own, with `resize` and `crop`."""
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
    lpips_rounding: Rounding | None = None
    """Conversion of videos before LPIPS, if another: `none` takes the tokenizer's own numbers, cut to [-1, 1]."""
    lpips_digest: str | None = None
    """Sha256 of the LPIPS weights; null accepts any, and the report states it."""

    def _roundings(self) -> tuple[Rounding | None, ...]:
        return (self.rounding, self.original_rounding)


class GenerationProtocol(MediaProtocol):
    """Everything that a score of a generated set depends on besides the two sets."""

    kind: Literal["generation-protocol"] = "generation-protocol"
    media: Literal["images", "videos"]
    """Media of both sets."""
    resize: Literal["none", "lanczos"] = "none"
    """Filter that scales a frame to `size`: Pillow's, antialiased. Frames of that size are not scaled."""
    size: Tuple[int] | None = None
    """Height and width of every frame of both sets."""
    sampling: Literal["center"] = "center"
    """Position of the clip in its video."""
    features: FeatureName
    """Network whose features are compared."""
    inception_splits: int | None = Field(default=None, ge=1)
    """Parts of the inception score, consecutive by key; logits have no bias, as in the authors' code. Null: none."""
    precision_recall: int | None = Field(default=3, ge=1)
    """Nearest neighbour k of precision and recall; neighbourhoods include their edge. Null takes neither."""
    density_coverage: int | None = Field(default=5, ge=1)
    """Nearest neighbour k of density and coverage; neighbourhoods exclude their edge. Null takes neither."""

    @model_validator(mode="after")
    def _inception_for_its_score(self) -> "GenerationProtocol":
        if self.inception_splits is not None and self.features != "inception":
            raise ValueError("the inception score is of the features of inception: set inception_splits to null")
        return self


SMALTI = Protocol(name="smalti")
"""PSNR, SSIM, MS-SSIM and LPIPS, each as its authors define it."""

SMALTI_FRECHET = Protocol(name="smalti-frechet", features="efficientnet-lite0")
"""The same and a Fréchet distance with a network that pip installs; no FID."""

SMALTI_FID = Protocol(name="smalti-fid", features="inception")
"""The same and rFID of any number of frames, pixels rounded."""

SMALTI_FVD = Protocol(name="smalti-fvd", media="videos", frames=16, features="i3d")
"""The same and rFVD of any number of clips, pixels rounded; 16 frames as in StyleGAN-V, or any other number."""

_TRUNCATED = Protocol(name="", rounding="floor", crop="center", size=128, ssim=None, ms_ssim=False, lpips=None)

MAGICMASTER_PSNR = _TRUNCATED.replace({"name": "magicmaster-psnr", "convention": "magicmaster", "media": "images",
                                       "resize": "bilinear", "original_rounding": "round"})  # fmt: skip
"""MagicMaster's PSNR of images, truncated to uint8, one error per image (it has a class for this and no config)."""

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
"""mindone's magvit example on video: PSNR and SSIM of scikit-image on truncated uint8, clips from random places."""

MINDONE_PSNR_IMAGES = MINDONE_PSNR.replace(
    {"name": "mindone-psnr-images", "media": "images", "frames": None, "sampling": "center", "psnr_over": "channel"}
)
"""The same on images, where that code treats each colour channel as a frame."""

OPEN_MAGVIT2 = Protocol(
    name="open-magvit2", rounding="floor", peak=1.0, data_range=1.0, ssim="uniform-7", ms_ssim=False, lpips="alex",
    lpips_rounding="none",
)  # fmt: skip
"""Open-MAGVIT2's image evaluation: scikit-image with data_range 1 on pixels cut to whole levels and scaled to [0, 1];
LPIPS on the numbers before that."""

PROTOCOLS = (
    *(SMALTI, SMALTI_FRECHET, SMALTI_FID, SMALTI_FVD),
    *(MAGICMASTER_PSNR, MAGICMASTER_FID, MAGICMASTER_FVD),
    *(MINDONE_PSNR, MINDONE_PSNR_IMAGES, OPEN_MAGVIT2),
)
"""Protocols of reconstructions that have a name on the command line."""

SMALTI_GFID = GenerationProtocol(name="smalti-gfid", media="images", features="inception", inception_splits=10)
"""gFID and the inception score of any number of images; precision and the others of the same 2,048 features."""

SMALTI_GFVD = GenerationProtocol(name="smalti-gfvd", media="videos", frames=16, features="i3d")
"""gFVD of any number of clips; 16 frames as in StyleGAN-V, or any other number."""

SMALTI_GENERATION = GenerationProtocol(name="smalti-generation", media="images", features="efficientnet-lite0")
"""Scores of images with a network that pip installs; no FID."""

SMALTI_GENERATION_VIDEO = GenerationProtocol(
    name="smalti-generation-video", media="videos", frames=16, features="efficientnet-lite0-video"
)
"""Scores of clips with such a network, half of what they show and half of how they move; no FVD."""

GENERATION_PROTOCOLS = (SMALTI_GFID, SMALTI_GFVD, SMALTI_GENERATION, SMALTI_GENERATION_VIDEO)
"""Protocols of generated sets that have a name on the command line."""

_P = TypeVar("_P", bound=MediaProtocol)


def find_protocol(name: str, protocols: Sequence[_P]) -> _P:
    """Return the protocol of that name. Raises ConfigError that lists the names."""
    for protocol in protocols:
        if protocol.name == name:
            return protocol
    listed = ", ".join(protocol.name for protocol in protocols)
    raise ConfigError(f"no protocol is called {name!r} here; there are: {listed}")
