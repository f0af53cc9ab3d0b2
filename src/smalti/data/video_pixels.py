"""Pixels of video: between the planes of a codec and 8-bit RGB, with swscale's exact arithmetic, and upright."""

from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

_BICUBIC, _FULL_CHROMA_OUT, _FULL_CHROMA_IN, _ACCURATE, _BIT_EXACT = 4, 1 << 13, 1 << 14, 1 << 18, 1 << 19
_TO_RGB = _BICUBIC | _FULL_CHROMA_OUT | _ACCURATE | _BIT_EXACT
"""Flags of swscale, as numbers, for PyAV 17 has no names for them. Without these it cuts fractions off in place of
rounding and repeats each chroma sample: 1 to 1.5 levels darker a generation, and 31 dB where 49 dB are possible."""
_TO_PLANES = _BICUBIC | _FULL_CHROMA_IN | _ACCURATE | _BIT_EXACT

SMPTE170M, LIMITED = 6, 1
"""Matrix and range of the planes that `planes_of` makes: BT.601, 16 to 235, which is what swscale takes by default."""


def rgb_of(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Return the pixels of a decoded frame as uint8 `h w 3`, by the matrix and range that the frame names.

    A frame that names none is taken as BT.601 in the limited range, as by FFmpeg. Chroma is interpolated (bicubic).
    """
    # One thread: a scaler with threads that is alive at a fork hangs the child when it frees it (measured).
    if frame.format.is_rgb or len(frame.format.components) < 3 or not frame.format.is_planar:
        return reformatter.reformat(frame, format="rgb24", threads=1, interpolation=_TO_RGB).to_ndarray()
    # To planes of RGB and together again is the same to the bit and 2 to 3 times as fast as packed RGB directly.
    planes = reformatter.reformat(frame, format="gbrp", threads=1, interpolation=_TO_RGB)
    pixels = np.empty((planes.height, planes.width, 3), np.uint8)
    for channel, plane in zip((1, 2, 0), planes.planes, strict=True):
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(plane.height, plane.line_size)
        pixels[..., channel] = rows[:, : plane.width]
    return pixels


def planes_of(pixels: np.ndarray, format: str, reformatter: VideoReformatter) -> VideoFrame:
    """Return uint8 `h w 3` as a frame of Y, U and V planes in BT.601 and the limited range, and marked as such."""
    image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    planes = reformatter.reformat(image, format=format, threads=1, interpolation=_TO_PLANES)
    planes.colorspace, planes.color_range = SMPTE170M, LIMITED
    return planes


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of the display transform x' = a x + c y, y' = b x + d y, as signs and zeros."""
    try:
        data: Any = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]  # its stub says str
    except ValueError:  # beside data that PyAV has no name for (EXIF) it gives none; a mirror cannot be seen then
        quarter = round(frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[quarter]
    if data is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    return (a, b, c, d)


def is_turned(matrix: tuple[int, int, int, int]) -> bool:
    """Return whether a display transform turns by a quarter, so that height and width change places."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def turn_upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Apply a display transform, which is a flip, a quarter turn or both; other angles go to the nearest of these."""
    a, b, c, d = matrix
    across, down = a, d
    if is_turned(matrix):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    if across < 0:
        pixels = pixels[:, ::-1]
    if down < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
