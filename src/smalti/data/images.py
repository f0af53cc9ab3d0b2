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

from smalti.data.containers import HEAD_BYTES, foreign_kind
from smalti.data.packing import MediaConfig
from smalti.data.source import MAX_PIXELS, Store, StoreSource, memory_as_bad_file, open_media
from smalti.data.views import ViewConfig
from smalti.errors import BadFile, BadTensor
from smalti.text import one_line, printable
from smalti.video import rgb_pixels

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
"""Formats that are read, known by content and not by name. Everything else (EPS, PSD, FITS ...) is never parsed."""


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
    with memory_as_bad_file(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is common and harmless; damage of the pixels raises
        try:
            return torch.from_numpy(_decode(name, file, max_pixels))
        except (BadFile, MemoryError):
            raise
        except UnidentifiedImageError:
            file.seek(0)
            kind = foreign_kind(file.read(HEAD_BYTES))
            formats = ", ".join(IMAGE_FORMATS)
            what = f"no whole image of any of {formats}" if kind is None else f"is {kind} and none of {formats}"
            raise BadFile(name, "format", f"{what}; convert it, or take it out") from None
        except Image.DecompressionBombError as error:
            raise BadFile(name, "bomb", f"too many pixels: {one_line(error)}") from None
        except (
            Exception
        ) as error:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error, ...
            text = one_line(error)
            cut = any(word in text for word in ("truncated", "unrecognized data stream", "Truncated"))
            if cut:
                raise BadFile(name, "truncated", f"ends before its last pixel ({text}); copy it again") from None
            what = f"cannot be decoded ({text}); copy it again if it is damaged, convert it if it is not"
            raise BadFile(name, "corrupt", what) from None


def _decode(name: str, file: BinaryIO | BytesIO, max_pixels: int) -> np.ndarray:
    with Image.open(file, formats=_known_formats(name, file)) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadFile(name, "bomb", f"declares {width} x {height} pixels, at most {max_pixels:,} are read")
        try:
            image.load()
        except OSError:
            old = int(PIL.__version__.split(".")[0]) < 13
            bare = image.info.get("compression") == "raw"
            if old and bare and image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC) == 6:
                what = f"is a TIFF of bare YCbCr samples, which Pillow {PIL.__version__} here does not read; install 13"
                raise BadFile(name, "format", what) from None
            raise
        try:
            return rgb_pixels(image)
        except BadTensor as error:
            raise BadFile(name, "sample-format", str(error)) from None


_PHOTOMETRIC = 262
"""Tag of a TIFF that says what its samples are; 6 is YCbCr."""


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

    def with_view(self, config: ViewConfig) -> "Images":
        """Return the same images in another view; those that are kept in memory are kept once."""
        shown = Images(config, self.store, in_memory=self.in_memory)
        shown._decoded = self._decoded
        return shown

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
