"""Photographs: one robust reader for every common format, and a folder or list of them as a source."""

import warnings
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from smalti.config import Config, PathField
from smalti.data.crop import Crop, Filter, ScaleField, SizeField, choose_view, pair
from smalti.data.lists import Listed, Listing, list_files
from smalti.data.source import MAX_PIXELS, one_line, open_media, printable
from smalti.errors import BadFile

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
"""What is read, known by content and not by name. Everything else (EPS, PSD, FITS ...) is never parsed."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "h w 3"]:
    """Read a picture as 8-bit RGB, upright.

    The format is told by content: JPEG, PNG, WebP, AVIF, BMP, TIFF, GIF (first frame), PPM. Rules:

    - transparent pixels are laid on white, so that hidden colours do not show;
    - 16-bit samples v become round(v / 257); 32-bit and float samples are refused, for their white is not known;
    - CMYK and YCCK (as Adobe writes them) become (1 - c)(1 - k), (1 - m)(1 - k), (1 - y)(1 - k); colour profiles are
      not applied;
    - EXIF orientations 2 to 8 are applied, others ignored;
    - a cut file is refused, never filled with grey.

    Raises BadFile with one of the codes missing, not-a-file, empty, permission, unreadable, lfs-pointer, format,
    bomb (over `max_pixels` by its declared size), truncated, corrupt, sample-format.
    """
    path = Path(path)
    name = printable(path)
    with open_media(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is common and harmless; damage of the pixels raises
        try:
            return torch.from_numpy(_decode(name, file, max_pixels))
        except BadFile:
            raise
        except UnidentifiedImageError:
            raise BadFile(name, "format", f"not a whole file of any of {', '.join(FORMATS)}") from None
        except Image.DecompressionBombError as error:
            raise BadFile(name, "bomb", f"too many pixels: {one_line(error)}") from None
        except (
            Exception
        ) as error:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error, ...
            text = one_line(error)
            cut = any(word in text for word in ("truncated", "unrecognized data stream", "Truncated"))
            what = "ends before its last pixel" if cut else "cannot be decoded"
            raise BadFile(name, "truncated" if cut else "corrupt", f"{what} ({text}); copy it again") from None


def _decode(name: str, file: BinaryIO, max_pixels: int) -> np.ndarray:
    with Image.open(file, formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise BadFile(name, "bomb", f"declares {width} x {height} pixels, at most {max_pixels:,} are read")
        picture.load()
        try:
            turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
        except Exception:  # damaged EXIF does not touch the pixels
            turn = None
        rgb = _to_rgb(name, picture)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return np.array(rgb)


def _to_rgb(name: str, picture: Image.Image) -> Image.Image:
    mode, transparency = picture.mode, picture.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        samples = np.asarray(picture).astype(np.int64)
        levels = ((samples + 128) // 257).clip(0, 255).astype(np.uint8)  # round(v / 257) in integers
        if isinstance(transparency, int):
            levels[samples == transparency] = 255
        return Image.fromarray(levels).convert("RGB")
    if mode in ("RGB", "L", "1", "P") and transparency is None:
        return picture.convert("RGB")
    if mode in ("RGB", "L", "1", "P", "PA", "LA", "La", "RGBA", "RGBa"):
        layer = picture.convert("RGBA") if mode not in ("La",) else picture.convert("LA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if mode in ("CMYK", "YCbCr", "RGBX"):
        return picture.convert("RGB")
    raise BadFile(name, "sample-format", f"samples of kind {mode} have no known white; convert it to 8 or 16 bits")


class ImagesConfig(Config):
    """A folder or list of pictures, each a sample of one frame."""

    kind: Literal["images"] = "images"
    path: PathField
    """A folder (searched to the bottom), a list file (.txt, .csv, .tsv, .lst), or one picture."""
    root: PathField | None = None
    """Where the paths of a list start; its own folder if not given."""
    class_folders: bool = False
    """The first folder below `path` is the class."""
    size: SizeField = 256
    """Rows and columns of a sample, one number for a square. `null`: each picture as it is."""
    crop: Crop = "random"
    """`random`: a box of `scale` times the largest one, anywhere. `center`: the largest box, in the middle."""
    scale: ScaleField = (0.5, 1.0)
    """The range of the sides of a random box, as a part of the largest box."""
    flip: bool = True
    """Mirror one sample in two."""
    resize: Filter = "lanczos"
    """The filter that scales; all are antialiased."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Larger pictures are bad files."""
    limit: int = Field(default=20_000_000, ge=1)
    """At most this many files are listed."""
    in_memory: int = Field(default=0, ge=0)
    """Keep this many pictures decoded, those met first; for sets that are read many times and fit."""

    def build(self) -> "Images":
        """List the files. Raises InputError where there are none, or the list has faults."""
        listing = list_files(self.path, SUFFIXES, class_folders=self.class_folders, root=self.root, limit=self.limit)
        return Images(self, listing)


class Images(Listed):
    """Pictures as samples of one frame; a `Source`."""

    def __init__(self, config: ImagesConfig, listing: Listing) -> None:
        super().__init__(listing)
        self.config = config
        self._kept: dict[int, Tensor] = {}

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "1 h w 3"]:
        """One picture, cropped, scaled and mirrored as the config says. Raises BadFile."""
        config = self.config
        pixels = self._read(index).numpy()
        view = choose_view(
            (pixels.shape[0], pixels.shape[1]),
            pair(config.size),
            crop=config.crop,
            scale=config.scale,
            flip=config.flip,
            resize=config.resize,
            rng=rng,
        )
        return torch.from_numpy(np.array(view.apply(pixels)))[None]

    def _read(self, index: int) -> UInt8[Tensor, "h w 3"]:
        if index in self._kept:
            return self._kept[index]
        pixels = read_image(self.path(index), max_pixels=self.config.max_pixels)
        if len(self._kept) < self.config.in_memory:
            self._kept[index] = pixels
        return pixels
