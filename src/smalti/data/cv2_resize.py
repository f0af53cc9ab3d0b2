"""OpenCV's resizing of 8-bit images, to the bit and without OpenCV, to reproduce scores of projects that use it.

Both filters read the same few pixels however far they scale down, so they alias; the other filters of `crop` do not.
The equations are those of `cv2.resize` in OpenCV 4.10 and 5.0 on x86-64 with `cv2.ipp.setUseIPP(False)`. Intel's closed
routine, which those builds take for INTER_CUBIC alone, differs by 1 in 3 of 100 values of noise.
"""

from typing import Literal, NamedTuple

import numpy as np

Cv2Filter = Literal["cv2-bilinear", "cv2-bicubic"]

_ONE = 2048  # weights are whole numbers of 1/2048
_LANES = 8  # values in a vector of the vertical bicubic pass; the rest of a row is summed in integers


class _Taps(NamedTuple):
    """The input pixels of each output pixel of a row or column, and their weights times 2048."""

    read: np.ndarray
    """int64 `n taps`."""
    weight: np.ndarray
    """int32 `n taps`."""


def cv2_resize(frame: np.ndarray, size: tuple[int, int], filter: Cv2Filter, window: slice = slice(None)) -> np.ndarray:
    """Scale `uint8 h w 3` to `size` (height, width) as `cv2.resize` does by INTER_LINEAR or INTER_CUBIC.

    Only the columns `window` of the result are computed and returned.
    """
    height, width = frame.shape[:2]
    new_height, new_width = size
    columns = np.arange(new_width)[window]
    across, down = _taps(width, new_width, filter, edge=True), _taps(height, new_height, filter, edge=False)
    used = np.unique(down.read)
    narrow = _sum_across(frame[used], _Taps(across.read[columns], across.weight[columns]))
    down = _Taps(np.searchsorted(used, down.read), down.weight)
    if filter == "cv2-bilinear":
        return _sum_down_linear(narrow, down)
    in_vectors = 3 * columns[:, None] + np.arange(3) < 3 * new_width // _LANES * _LANES
    return _sum_down_cubic(narrow, down, in_vectors)


def _taps(size: int, new_size: int, filter: Cv2Filter, edge: bool) -> _Taps:
    """Choose the taps along one axis. With `edge`, a linear tap beyond the edge has no weight, as in OpenCV across."""
    scale = 1.0 / (new_size / size)  # in this order, as there
    center = ((np.arange(new_size) + 0.5) * scale - 0.5).astype(np.float32)
    start = np.floor(center)
    part = center - start  # float32, as all that follows
    if filter == "cv2-bilinear":
        if edge:
            part[(start < 0) | (start >= size - 1)] = 0
            start = start.clip(0, size - 1)
        weights = np.stack([1 - part, part], 1)
    else:
        weights = _cubic(part)
    first = start.astype(np.int64) - (weights.shape[1] // 2 - 1)
    read = (first[:, None] + np.arange(weights.shape[1])).clip(0, size - 1)
    return _Taps(read, np.rint(weights * np.float32(_ONE)).astype(np.int32))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return the weights of Keys' kernel with a = -3/4, in float32 and in this order of operations."""
    a, one = np.float32(-0.75), np.float32(1)
    y = one - x
    far = ((a * (x + one) - 5 * a) * (x + one) + 8 * a) * (x + one) - 4 * a
    near = ((a + 2) * x - (a + 3)) * x * x + one
    after = ((a + 2) * y - (a + 3)) * y * y + one
    return np.stack([far, near, after, one - far - near - after], 1)


def _sum_across(frame: np.ndarray, taps: _Taps) -> np.ndarray:
    total = np.zeros((frame.shape[0], len(taps.read), frame.shape[2]), np.int32)
    for index, weight in zip(taps.read.T, taps.weight.T, strict=True):
        total += frame[:, index] * weight[:, None]
    return total


def _sum_down_linear(narrow: np.ndarray, taps: _Taps) -> np.ndarray:
    halves = [(narrow[i] >> 4) * w[:, None, None] >> 16 for i, w in zip(taps.read.T, taps.weight.T, strict=True)]
    return (halves[0] + halves[1] + 2 >> 2).astype(np.uint8)


def _sum_down_cubic(narrow: np.ndarray, taps: _Taps, in_vectors: np.ndarray) -> np.ndarray:
    """Sum down: vectors add in float32 from the last row up and round to even, the rest of a row rounds halves up."""
    rows = [narrow[i] for i in taps.read.T]
    whole = sum(row * w[:, None, None] for row, w in zip(rows, taps.weight.T, strict=True))
    total = np.zeros(narrow.shape[1:], np.float32)
    for row, w in zip(reversed(rows), reversed(taps.weight.T), strict=True):
        total = row.astype(np.float32) * (w[:, None, None].astype(np.float32) / np.float32(_ONE**2)) + total
    rounded = np.where(in_vectors, np.rint(total).astype(np.int32), whole + (1 << 21) >> 22)
    return rounded.clip(0, 255).astype(np.uint8)
