"""Which part of a picture a sample shows: one box and one flip, drawn once and used for all frames of a clip."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field, Strict, model_validator

from smalti.config import Config
from smalti.data.cv2_resize import Cv2Filter, cv2_resize
from smalti.data.source import MAX_PIXELS
from smalti.errors import BadFile

Filter = Literal["lanczos", "bicubic", "bilinear"] | Cv2Filter
Crop = Literal["random", "center"]
Cut = Literal["together", "before", "after"]
Side = Annotated[int, Field(ge=1, le=16_384)]
SizeField = Side | Annotated[tuple[Side, Side], Strict(False)] | None
"""Rows and columns of a sample; one number for a square; None for each picture as it is."""


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError("two numbers a <= b above 0 and at most 1 are needed, as in [0.5, 1.0]")
    return scale


ScaleField = Annotated[tuple[float, float], Strict(False), AfterValidator(_ordered)]
"""The range of the sides of a random box, as a part of the largest box."""

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


class View(NamedTuple):
    """What is shown of a picture: a box (left, top, right, bottom), mirrored or not, at an output size."""

    box: tuple[float, float, float, float]
    """In pixels of the picture, or of the picture scaled to `scaled`."""
    flip: bool
    size: tuple[int, int]
    """Rows and columns of the result."""
    resize: Filter
    cut: Cut = "together"
    scaled: tuple[int, int] | None = None
    """With `cut` after: rows and columns that the whole picture is scaled to."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """The view of `uint8 h w 3`: an array of `size` that the caller may write to."""
        height, width = frame.shape[:2]
        if self.scaled is not None:
            left, top, right, bottom = map(int, self.box)
            frame = _scale_and_cut(frame, self.scaled, slice(left, right), self.resize)[top:bottom]
        elif self.cut == "before":
            left, top, right, bottom = map(int, self.box)
            frame = _scale_and_cut(frame[top:bottom, left:right], self.size, slice(None), self.resize)
        elif self.box != (0, 0, width, height) or self.size != (height, width):
            rows, columns = self.size
            frame = np.array(Image.fromarray(frame).resize((columns, rows), _FILTERS[self.resize], box=self.box))
        return np.array(frame[:, ::-1] if self.flip else frame, order="C")


def _scale_and_cut(frame: np.ndarray, size: tuple[int, int], columns: slice, resize: Filter) -> np.ndarray:
    if frame.shape[:2] == size:
        return frame[:, columns]
    if resize == "cv2-bilinear" or resize == "cv2-bicubic":
        return cv2_resize(frame, size, resize, columns)
    picture = Image.fromarray(np.ascontiguousarray(frame)).resize(size[::-1], _FILTERS[resize])
    return np.asarray(picture)[:, columns]


class ViewConfig(Config):
    """The view of an image, or of each frame of a clip: crop, size, flip."""

    size: SizeField = 256
    """Height and width of a sample, or one number for a square; null keeps the size of each image."""
    crop: Crop = "random"
    """Crop of the aspect of `size`: `random` has `scale` times the sides of the largest one and lies anywhere, `center`
    is the largest one in the middle."""
    cut: Cut = "together"
    """Order of cropping and scaling: `together` in one step, with fractions of a pixel; `before` crops whole pixels,
    then scales; `after` scales the whole image until the crop has `size`, then crops whole pixels."""
    scale: ScaleField = (0.5, 1.0)
    """Range of the sides of a random crop, relative to the largest crop."""
    flip: bool = True
    """Whether one sample in two is mirrored."""
    resize: Filter = "lanczos"
    """Filter that scales: Pillow's (antialiased), or OpenCV's `cv2-bilinear` and `cv2-bicubic`, which alias and need
    `cut` before or after."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest number of pixels of an image or frame, by its header; larger ones are bad files."""

    @model_validator(mode="after")
    def _whole_pixels(self) -> "ViewConfig":
        if self.resize.startswith("cv2-") and self.cut == "together":
            raise ValueError(f"resize {self.resize} knows no fractions of a pixel: set cut to before or after")
        return self

    def view(self, have: tuple[int, int], rng: torch.Generator, name: str = "picture") -> View:
        """The view of a picture of `have` (rows, columns).

        The largest box of the aspect of `size` is found; `center` takes it, in the middle (where it lies between two
        pixels and whole ones are cut: the one nearer to the top left). `random` takes a box of s times its sides, s
        uniform in `scale`, at a uniform place. `flip` mirrors one sample in two. Without `size` the view is the whole
        picture as it is. Four numbers are always drawn, so that one option does not change what another one draws.

        Raises BadFile, with `name`, where `cut` after would scale the picture to more than `max_pixels`.
        """
        draw_scale, draw_x, draw_y, draw_flip = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
        flip = self.flip and draw_flip < 0.5
        height, width = have
        if self.size is None:
            return View((0, 0, width, height), flip, have, self.resize)
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        share = self.scale[0] + (self.scale[1] - self.scale[0]) * draw_scale if self.crop == "random" else 1.0
        x, y = (draw_x, draw_y) if self.crop == "random" else (None, None)
        if self.cut == "after":
            return self._scaled_first(have, size, share, (x, y), flip, name)
        box_w, box_h = (side * share for side in _largest(have, size))
        if self.cut == "before":
            whole_w, whole_h = max(1, round(box_w)), max(1, round(box_h))
            start = _start(width - whole_w, x), _start(height - whole_h, y)
            return View((*start, start[0] + whole_w, start[1] + whole_h), flip, size, self.resize, "before")
        left, top = (0.5 if x is None else x) * (width - box_w), (0.5 if y is None else y) * (height - box_h)
        return View((left, top, min(width, left + box_w), min(height, top + box_h)), flip, size, self.resize)

    def _scaled_first(
        self,
        have: tuple[int, int],
        size: tuple[int, int],
        share: float,
        place: tuple[float | None, float | None],
        flip: bool,
        name: str,
    ) -> View:
        (height, width), (rows, columns) = have, size
        fit = max(rows / height, columns / width) / share
        scaled = max(rows, round(height * fit)), max(columns, round(width * fit))
        if scaled[0] * scaled[1] > self.max_pixels:
            what = f"would be scaled to {scaled[1]} x {scaled[0]} pixels before it is cut, at most {self.max_pixels:,}"
            raise BadFile(name, "bomb", what)
        left, top = _start(scaled[1] - columns, place[0]), _start(scaled[0] - rows, place[1])
        return View((left, top, left + columns, top + rows), flip, size, self.resize, "after", scaled)


def _largest(have: tuple[int, int], size: tuple[int, int]) -> tuple[int | float, int | float]:
    """Width and height of the largest box of the aspect of `size`."""
    (height, width), (rows, columns) = have, size
    return min(width, height * columns / rows), min(height, width * rows / columns)


def _start(room: int, place: float | None) -> int:
    """The first of room + 1 places: the middle one, rounded down, or one drawn from [0, 1)."""
    return room // 2 if place is None else min(room, int(place * (room + 1)))
