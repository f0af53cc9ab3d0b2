"""Writing images as PNG and videos as H.264 in MP4 that plays everywhere, whole or absent."""

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from smalti.errors import ConfigError, InputError, MachineError
from smalti.files import new_file, write_bytes
from smalti.text import one_line, printable

WRITTEN_SUFFIXES = (".mp4", ".mkv", ".mov")
_SMPTE170M, _LIMITED = (
    6,
    1,
)  # the matrix and range that the RGB to YUV conversion uses; untagged video is shown in wrong colours

_MEDIA_CRF = 12
"""Finer than the usual 18: what is visible should be the tokenizer's loss, not the video codec's."""


def write_media(path: Path, frames: Iterable[UInt8[Tensor, "h w 3"]], fps: float | None) -> int:
    """Write an image (`fps` None) as PNG, or a video as `write_video` does, finely; return the number of frames."""
    if fps is not None:
        return write_video(path, frames, fps, crf=_MEDIA_CRF)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{printable(path)}: an image is written as .png")
    (image,) = frames
    write_png(path, image)
    return 1


def write_png(path: Path, image: UInt8[Tensor, "h w 3"]) -> None:
    """Write an image as PNG, whole or not at all."""
    data = io.BytesIO()
    Image.fromarray(image.numpy()).save(data, "PNG")
    write_bytes(path, data.getvalue())


def write_video(path: Path | str, frames: Iterable[Tensor | np.ndarray], fps: int | float, *, crf: int = 18) -> int:
    """Encode uint8 frames `h w 3`, taken one at a time, as H.264; return the number of frames.

    `crf` 0 is the finest (not lossless: 4:2:0 halves the colour planes), 18 is hard to tell from the source, 51 the
    coarsest. Even sizes are written as yuv420p; odd sizes as yuv444p, so that the size is kept. The file appears at
    `path` when the last frame is in; a failed or killed run leaves no file there. Raises InputError where there are
    no frames or their sizes differ, ConfigError where the suffix is none of .mp4, .mkv, .mov, MachineError where
    the disk refuses.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITTEN_SUFFIXES:
        raise ConfigError(f"{printable(path)}: video is written as one of {', '.join(WRITTEN_SUFFIXES)}")
    if not fps > 0:
        raise ConfigError(f"{printable(path)}: fps is {fps}, it must be above 0")
    with new_file(path) as file:  # FFmpeg opens it by its name: it reads what it wrote to put the index first
        return _encode(Path(file.name), path, frames, Fraction(fps).limit_denominator(100_000), crf)


def _encode(part: Path, path: Path, frames: Iterable[Tensor | np.ndarray], fps: Fraction, crf: int) -> int:
    muxer = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}[path.suffix.lower()]
    options = {} if muxer == "matroska" else {"movflags": "+faststart"}
    count, size = 0, (0, 0)
    try:
        with av.open(f"file:{part}", "w", format=muxer, options=options) as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.options = {"crf": str(crf), "threads": "1"}
            for frame in frames:
                pixels = frame.numpy() if isinstance(frame, torch.Tensor) else frame
                if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
                    raise ValueError(f"frame {count} is {pixels.dtype} {pixels.shape}, not uint8 (h, w, 3)")
                if count == 0:
                    size = (pixels.shape[0], pixels.shape[1])
                    stream.height, stream.width = size
                    stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
                    stream.codec_context.colorspace, stream.codec_context.color_range = _SMPTE170M, _LIMITED
                elif pixels.shape[:2] != size:
                    raise InputError(f"{printable(path)}: frame {count} is {pixels.shape[:2]}, the first {size}")
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                planes = image.reformat(format=stream.pix_fmt, threads=1)  # see video_reader: threads and forks
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
