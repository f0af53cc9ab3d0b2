"""Images: one robust reader for every common format, and the images of a path as a source."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import PIL
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from smalti.data.packing import MediaConfig
from smalti.data.source import MAX_PIXELS, Store, StoreSource, open_media
from smalti.data.views import ViewConfig
from smalti.errors import BadFile
from smalti.text import one_line, printable

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
"""Formats that are read, known by content and not by name. Everything else (EPS, PSD, FITS ...) is never parsed."""

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
    """Read an image as 8-bit RGB, upright.

    The format is detected by content: JPEG, PNG, WebP, AVIF, BMP, TIFF, GIF (first frame), PPM. Rules:

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
    with open_media(path) as file:
        return decode_image(file, printable(path), max_pixels)


def decode_image(file: BinaryIO | BytesIO, name: str, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "h w 3"]:
    """Decode the image in an open file, as `read_image` does; faults name it by `name`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is common and harmless; damage of the pixels raises
        try:
            return torch.from_numpy(_decode(name, file, max_pixels))
        except BadFile:
            raise
        except UnidentifiedImageError:
            raise BadFile(name, "format", f"not a whole file of any of {', '.join(IMAGE_FORMATS)}") from None
        except Image.DecompressionBombError as error:
            raise BadFile(name, "bomb", f"too many pixels: {one_line(error)}") from None
        except (
            Exception
        ) as error:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error, ...
            text = one_line(error)
            cut = any(word in text for word in ("truncated", "unrecognized data stream", "Truncated"))
            what = "ends before its last pixel" if cut else "cannot be decoded"
            raise BadFile(name, "truncated" if cut else "corrupt", f"{what} ({text}); copy it again") from None


def _decode(name: str, file: BinaryIO | BytesIO, max_pixels: int) -> np.ndarray:
    with Image.open(file, formats=_known_formats(name, file)) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadFile(name, "bomb", f"declares {width} x {height} pixels, at most {max_pixels:,} are read")
        image.load()
        try:
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # damaged EXIF does not touch the pixels
            turn = None
        rgb = _to_rgb(name, image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return np.array(rgb)


def _known_formats(name: str, file: BinaryIO | BytesIO) -> list[str]:
    """Return the formats of `IMAGE_FORMATS` that this Pillow reads. Raises BadFile for an AVIF that it does not read.

    Pillow before 11.3, or built without libavif, does not know AVIF.
    """
    Image.init()
    known = [kind for kind in IMAGE_FORMATS if kind in Image.OPEN]
    if "AVIF" not in known:
        head = file.read(12)
        file.seek(0)
        if head[4:] in (b"ftypavif", b"ftypavis"):
            raise BadFile(name, "format", f"is AVIF, which Pillow {PIL.__version__} here does not read; install 11.3")
    return known


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    mode, transparency = image.mode, image.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        samples = np.asarray(image).astype(np.int64)
        levels = ((samples + 128) // 257).clip(0, 255).astype(np.uint8)  # round(v / 257) in integers
        if isinstance(transparency, int):
            levels[samples == transparency] = 255
        return Image.fromarray(levels).convert("RGB")
    if mode in ("RGB", "L", "1", "P") and transparency is None:
        return image.convert("RGB")
    if mode in ("RGB", "L", "1", "P", "PA", "LA", "La", "RGBA", "RGBa"):
        layer = image.convert("RGBA") if mode not in ("La",) else image.convert("LA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if mode in ("CMYK", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise BadFile(name, "sample-format", f"samples of kind {mode} have no known white; convert it to 8 or 16 bits")


class ImagesConfig(ViewConfig, MediaConfig):
    """Images, each a sample of one frame: loose files, or those in tars or Parquet files."""

    kind: Literal["images"] = "images"
    in_memory: int = Field(default=0, ge=0)
    """Number of decoded images that are kept in memory, for small sets that are read many times."""

    def build(self) -> "Images":
        """List the images. Raises InputError where there are none, or the list, a tar or a table has faults."""
        return Images(self, self.open_store("images"), in_memory=self.in_memory)


class Images(StoreSource):
    """Images as samples of one frame; a `Source`."""

    def __init__(self, config: ViewConfig, store: Store, *, in_memory: int = 0) -> None:
        super().__init__(store)
        self.config = config
        self.in_memory = in_memory
        self._decoded: dict[int, Tensor] = {}

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "1 h w 3"]:
        """Load one image, cropped, scaled and mirrored as the config says. Raises BadFile."""
        pixels = self._read(index).numpy()
        crop = self.config.view((pixels.shape[0], pixels.shape[1]), rng, self.store.where(index))
        return torch.from_numpy(crop.apply(pixels))[None]

    def _read(self, index: int) -> UInt8[Tensor, "h w 3"]:
        if index in self._decoded:
            return self._decoded[index]
        media, limit = self.store.media(index), self.config.max_pixels
        if isinstance(media, Path):
            pixels = read_image(media, max_pixels=limit)
        else:
            pixels = decode_image(BytesIO(media), self.store.where(index), limit)
        if len(self._decoded) < self.in_memory:
            self._decoded[index] = pixels
        return pixels
