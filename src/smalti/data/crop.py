"""Which part of a picture a sample shows: one box and one flip, drawn once and used for all frames of a clip."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field, Strict

Filter = Literal["lanczos", "bicubic", "bilinear"]
Crop = Literal["random", "center"]
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
    """A box in a picture (left, top, right, bottom, in pixels), mirrored or not, at an output size."""

    box: tuple[float, float, float, float]
    flip: bool
    size: tuple[int, int]
    resize: Filter

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Cut `uint8 h w 3` and scale it to `size` (rows, columns). Scaling down is antialiased; a small picture is
        scaled up."""
        height, width = frame.shape[:2]
        rows, columns = self.size
        if self.box != (0, 0, width, height) or self.size != (height, width):
            picture = Image.fromarray(frame).resize((columns, rows), _FILTERS[self.resize], box=self.box)
            frame = np.array(picture)  # a copy that torch may write to
        return np.ascontiguousarray(frame[:, ::-1]) if self.flip else frame


def choose_view(
    have: tuple[int, int],
    size: tuple[int, int] | None,
    *,
    crop: Crop,
    scale: tuple[float, float],
    flip: bool,
    resize: Filter,
    rng: torch.Generator,
) -> View:
    """The view of a picture of `have` (rows, columns) that a sample of `size` shows.

    The largest box of the aspect of `size` is found; `center` takes it, in the middle (the same as scaling the short
    side to `size` and cutting the middle). `random` takes a box of s times its sides, s uniform in `scale`, at a
    uniform place. `flip` mirrors one sample in two. Without `size` the view is the whole picture as it is. Four
    numbers are always drawn, so that one option does not change what another one draws.
    """
    draw_scale, draw_x, draw_y, draw_flip = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
    mirrored = flip and draw_flip < 0.5
    height, width = have
    if size is None:
        return View((0, 0, width, height), mirrored, have, resize)
    rows, columns = size
    box_w, box_h = min(width, height * columns / rows), min(height, width * rows / columns)
    x, y = 0.5, 0.5
    if crop == "random":
        s = scale[0] + (scale[1] - scale[0]) * draw_scale
        box_w, box_h, x, y = box_w * s, box_h * s, draw_x, draw_y
    left, top = x * (width - box_w), y * (height - box_h)
    return View((left, top, min(width, left + box_w), min(height, top + box_h)), mirrored, size, resize)


def pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of a size field."""
    return (size, size) if isinstance(size, int) else size
