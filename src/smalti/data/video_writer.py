"""Writing images as PNG and videos as H.264 in MP4 that plays everywhere, whole or absent."""

import io
import math
import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from smalti.data.video_index import LEAST_FPS
from smalti.data.video_reader import LIMITED, SMPTE170M, planes_of
from smalti.errors import ConfigError, InputError, MachineError
from smalti.files import new_file
from smalti.text import one_line, printable

WRITTEN_SUFFIXES = (".mp4", ".mkv", ".mov")
_BAND = 1 << 22
"""Pixels of an image that are written at a time."""
_NARROW = 112
"""Pixels: of narrower frames, x264's choice of quality by macroblock reads memory that it has not written."""
_MEDIA_CRF = 12
"""Finer than the usual 18: what is visible should be the tokenizer's loss, not the video codec's."""


def write_media(
    path: Path,
    frames: Iterable[UInt8[Tensor, "h w 3"]],
    fps: float | None,
    pixel_aspect: Fraction | None = None,
) -> int:
    """Write an image (`fps` None) as PNG, or a video as `write_video` does, finely; return the number of frames."""
    if fps is not None:
        return write_video(path, frames, fps, crf=_MEDIA_CRF, pixel_aspect=pixel_aspect)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{printable(path)}: an image is written as .png")
    (image,) = frames
    write_png(path, image)
    return 1


def write_png(path: Path, image: UInt8[Tensor, "h w 3"]) -> None:
    """Write an image as PNG, whole or not at all.

    A large one is written in bands: Pillow copies what it writes to four bytes a pixel, of the two images of 64 million
    pixels beside each other 512 MB.
    """
    with new_file(path) as file:
        if image.shape[0] * image.shape[1] <= _BAND:
            Image.fromarray(image.numpy()).save(file, "PNG")
        else:
            _write_png_in_bands(file, image.numpy())


def _write_png_in_bands(file: BinaryIO, pixels: np.ndarray) -> None:
    """Write a PNG whose rows are filtered by Pillow, a band at a time, each with the row above it."""
    height, width, _ = pixels.shape
    pack = zlib.compressobj(-1, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)  # as Pillow does

    def chunk(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        first = max(0, top - 1)
        band = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels[first : top + rows])).save(band, "PNG", compress_level=0)
        lines = zlib.decompress(_image_data(band.getbuffer()))
        chunk(b"IDAT", pack.compress(memoryview(lines)[(top - first) * (3 * width + 1) :]))
    chunk(b"IDAT", pack.flush())
    chunk(b"IEND", b"")


def _image_data(png: memoryview) -> bytes:
    """Return what the IDAT chunks of a PNG hold."""
    at, parts = 8, []
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if bytes(png[at + 4 : at + 8]) == b"IDAT":
            parts.append(png[at + 8 : at + 8 + length])
        at += 12 + length
    return b"".join(parts)


def write_video(
    path: Path | str,
    frames: Iterable[Tensor | np.ndarray],
    fps: int | float,
    *,
    crf: int = 18,
    pixel_aspect: Fraction | None = None,
) -> int:
    """Encode uint8 frames `h w 3`, taken one at a time, as H.264; return the number of frames.

    `crf` 0 is the finest (not lossless: 4:2:0 halves the colour planes), 18 is hard to tell from the source, 51 the
    coarsest. Even sizes are written as yuv420p; odd sizes as yuv444p, so that the size is kept. Colours are BT.601 in
    the limited range, and marked so. `pixel_aspect` is the width of a pixel over its height, None for square pixels;
    programs that show the video stretch it by that. The file appears at `path` when the last frame is in; a failed or
    killed run leaves no file there. Raises InputError where there are no frames or their sizes differ, ConfigError
    where the suffix is none of .mp4, .mkv, .mov or `fps` is below 0.001, MachineError where the disk refuses.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITTEN_SUFFIXES:
        raise ConfigError(f"{printable(path)}: video is written as one of {', '.join(WRITTEN_SUFFIXES)}")
    if not LEAST_FPS <= fps < math.inf:
        raise ConfigError(f"{printable(path)}: fps is {fps}, it must be a number of at least {LEAST_FPS}")
    rate = Fraction(fps).limit_denominator(100_000)
    with new_file(path) as file:  # FFmpeg opens it by its name: it reads what it wrote to put the index first
        return _encode(Path(file.name), path, frames, rate, crf, pixel_aspect)


def _encode(
    part: Path,
    path: Path,
    frames: Iterable[Tensor | np.ndarray],
    fps: Fraction,
    crf: int,
    pixel_aspect: Fraction | None,
) -> int:
    muxer = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}[path.suffix.lower()]
    options = {} if muxer == "matroska" else {"movflags": "+faststart"}
    count, size, format, reformatter = 0, (0, 0), "yuv420p", VideoReformatter()
    try:
        with av.open(f"file:{part}", "w", format=muxer, options=options) as container:
            stream = container.add_stream("libx264", rate=fps)
            # swscale averages pixels to chroma that lies between them. MPEG's default is at the left ones: video that
            # is read back as such has its chroma moved by a quarter of a pixel in each generation.
            stream.options = {"crf": str(crf), "threads": "1", "chroma_sample_location": "center"}
            for frame in frames:
                pixels = frame.numpy() if isinstance(frame, torch.Tensor) else frame
                if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
                    raise ValueError(f"frame {count} is {pixels.dtype} {pixels.shape}, not uint8 (h, w, 3)")
                if count == 0:
                    size = (pixels.shape[0], pixels.shape[1])
                    stream.height, stream.width = size
                    if size[1] < _NARROW:  # the bytes of up to 128 x 80 and 96 x 96 pixels differed from call to call
                        stream.options = {**stream.options, "x264-params": "mbtree=0"}
                    format = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
                    stream.pix_fmt = format
                    # Untagged video is shown in wrong colours.
                    stream.codec_context.colorspace, stream.codec_context.color_range = SMPTE170M, LIMITED
                    if pixel_aspect is not None and pixel_aspect != 1:
                        stream.codec_context.sample_aspect_ratio = pixel_aspect
                elif pixels.shape[:2] != size:
                    raise InputError(f"{printable(path)}: frame {count} is {pixels.shape[:2]}, the first {size}")
                planes = planes_of(pixels, format, reformatter)
                planes.pts, planes.time_base = count, 1 / fps
                container.mux(stream.encode(planes))
                count += 1
            if count == 0:
                raise InputError(f"{printable(path)}: no frames to write")
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        if error.errno and error.errno < 200:  # the operating system's own: disk full, permission
            raise
        raise MachineError(f"{printable(path)}: cannot be encoded: {one_line(error.strerror)}") from None
    return count
