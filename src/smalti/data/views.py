"""Cropping, scaling and mirroring: one crop and one flip for a sample, the same for all frames of a clip."""

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from smalti.config import Config, Two
from smalti.data.cv2_resize import Cv2Filter, cv2_resize
from smalti.data.source import MAX_PIXELS
from smalti.data.video_reader import VideoReader, scaled_by_swscale
from smalti.errors import BadFile

Filter = Literal["lanczos", "bicubic", "bilinear", "torch-bicubic", "swscale-bicubic"] | Cv2Filter
Crop = Literal["random", "center"]
CropOrder = Literal["together", "before", "after"]
Side = Annotated[int, Field(ge=1, le=16_384)]
SizeField = Side | Two[Side] | None
"""Height and width of a sample; one number for a square; None keeps the size of each image."""


SWSCALE = "swscale-bicubic"


def check_filter(resize: Filter, order: CropOrder, name: str) -> None:
    """Raise ValueError, with the `name` of the order's field, for a filter that scales whole images alone."""
    if resize == SWSCALE and order != "after":
        raise ValueError(f"resize {resize} scales whole frames, as their colours are made: set {name} to after")
    if resize not in _FILTERS and order == "together":
        raise ValueError(f"resize {resize} knows no fractions of a pixel: set {name} to before or after")


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError("two numbers a <= b above 0 and at most 1 are needed, as in [0.5, 1.0]")
    return scale


ScaleField = Annotated[Two[float], AfterValidator(_ordered)]
"""Range of the sides of a random crop, relative to the largest crop."""

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


class CropResize(NamedTuple):
    """The crop of one image: a box (left, top, right, bottom), mirrored or not, and the size that it is scaled to."""

    box: tuple[float, float, float, float]
    """Box in pixels of the image, or of the image scaled to `scaled`."""
    flip: bool
    size: tuple[int, int]
    """Height and width of the result."""
    resize: Filter
    order: CropOrder = "together"
    scaled: tuple[int, int] | None = None
    """Height and width that the whole image is scaled to, if it is cropped after scaling."""

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Crop and scale `uint8 h w 3`; the result is an array of `size` that the caller may write to."""
        height, width = frame.shape[:2]
        if self.scaled is not None:
            left, top, right, bottom = map(int, self.box)
            frame = _scale_and_crop(frame, self.scaled, slice(left, right), self.resize)[top:bottom]
        elif self.order == "before":
            left, top, right, bottom = map(int, self.box)
            frame = _scale_and_crop(frame[top:bottom, left:right], self.size, slice(None), self.resize)
        elif self.box != (0, 0, width, height) or self.size != (height, width):
            frame = np.array(Image.fromarray(frame).resize(self.size[::-1], _FILTERS[self.resize], box=self.box))
        return np.array(frame[:, ::-1] if self.flip else frame, order="C")


def viewed(reader: VideoReader, numbers: Iterable[int], view: CropResize) -> Iterator[Tensor]:
    """Yield the frames of these numbers, cropped, scaled and mirrored; each is uint8 `h w 3`. Raises as `reader.at`."""
    scaled = view.scaled if view.resize == SWSCALE else None
    return (torch.from_numpy(view.apply(frame.numpy())) for frame in reader.at(numbers, scaled))


def _scale_and_crop(frame: np.ndarray, size: tuple[int, int], columns: slice, resize: Filter) -> np.ndarray:
    if frame.shape[:2] == size:
        return frame[:, columns]
    if resize == "cv2-bilinear" or resize == "cv2-bicubic":
        return cv2_resize(frame, size, resize, columns)
    if resize == SWSCALE:
        return scaled_by_swscale(frame, size)[:, columns]
    if resize == "torch-bicubic":
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        scaled = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
        return np.asarray(scaled[:, columns])
    image = Image.fromarray(np.ascontiguousarray(frame)).resize(size[::-1], _FILTERS[resize])
    return np.asarray(image)[:, columns]


class ViewConfig(Config):
    """The view of an image, or of each frame of a clip: crop, size, flip."""

    former_names: ClassVar = {"cut": "crop_order"}

    size: SizeField = 256
    """Height and width of a sample, or one number for a square; null keeps the size of each image."""
    crop: Crop = "random"
    """Crop of the aspect of `size`: `random` has `scale` times the sides of the largest one and lies anywhere, `center`
    is the largest one in the middle."""
    crop_order: CropOrder = "together"
    """Order of cropping and scaling: `together` in one step, with fractions of a pixel; `before` crops whole pixels,
    then scales; `after` scales the whole image until the crop has `size`, then crops whole pixels."""
    scale: ScaleField = (0.5, 1.0)
    """Range of the sides of a random crop, relative to the largest crop."""
    flip: bool = True
    """Whether one sample in two is mirrored."""
    resize: Filter = "lanczos"
    """Filter that scales: Pillow's (antialiased); `torch-bicubic`, Pillow's bicubic within two levels, by torch in a
    fifth of the time; `swscale-bicubic`, which scales the planes of a video in the pass that makes its colours, 54 dB
    from Pillow's bicubic and the fastest; or OpenCV's `cv2-bilinear` and `cv2-bicubic`, which alias. All but Pillow's
    need `crop_order` after, or before (not `swscale-bicubic`)."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest number of pixels of an image or frame, by its header; larger ones are bad files."""

    @model_validator(mode="after")
    def _whole_pixels(self) -> "ViewConfig":
        check_filter(self.resize, self.crop_order, "crop_order")
        return self

    def view(self, image_size: tuple[int, int], rng: torch.Generator, name: str = "image") -> CropResize:
        """Choose the crop of an image of `image_size` (height, width).

        `center` takes the largest box of the aspect of `size`, in the middle (if the middle lies between two pixels and
        whole ones are cropped: the one nearer to the top left). `random` takes a box of s times its sides, s uniform in
        `scale`, at a uniform place. `flip` mirrors one sample in two. Without `size` the whole image is taken as it is.
        Four random numbers are always used, so that one option does not change the numbers of another.

        Raises BadFile, with `name`, where `crop_order` after would scale the image to more than `max_pixels`.
        """
        random_scale, random_x, random_y, random_flip = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
        flip = self.flip and random_flip < 0.5
        height, width = image_size
        if self.size is None:
            return CropResize((0, 0, width, height), flip, image_size, self.resize)
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        share = self.scale[0] + (self.scale[1] - self.scale[0]) * random_scale if self.crop == "random" else 1.0
        x, y = (random_x, random_y) if self.crop == "random" else (None, None)
        if self.crop_order == "after":
            return self._scaled_first(image_size, size, share, (x, y), flip, name)
        box_w, box_h = (side * share for side in _largest(image_size, size))
        if self.crop_order == "before":
            whole_w, whole_h = max(1, round(box_w)), max(1, round(box_h))
            start = _start(width - whole_w, x), _start(height - whole_h, y)
            return CropResize((*start, start[0] + whole_w, start[1] + whole_h), flip, size, self.resize, "before")
        left, top = (0.5 if x is None else x) * (width - box_w), (0.5 if y is None else y) * (height - box_h)
        return CropResize((left, top, min(width, left + box_w), min(height, top + box_h)), flip, size, self.resize)

    def _scaled_first(
        self,
        image_size: tuple[int, int],
        size: tuple[int, int],
        share: float,
        place: tuple[float | None, float | None],
        flip: bool,
        name: str,
    ) -> CropResize:
        (height, width), (new_height, new_width) = image_size, size
        fit = max(new_height / height, new_width / width) / share
        scaled = max(new_height, round(height * fit)), max(new_width, round(width * fit))
        if scaled[0] * scaled[1] > self.max_pixels:
            what = (
                f"would be scaled to {scaled[1]} x {scaled[0]} pixels before it is cropped, at most {self.max_pixels:,}"
            )
            raise BadFile(name, "bomb", what)
        left, top = _start(scaled[1] - new_width, place[0]), _start(scaled[0] - new_height, place[1])
        return CropResize((left, top, left + new_width, top + new_height), flip, size, self.resize, "after", scaled)


def _largest(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int | float, int | float]:
    """Return width and height of the largest box of the aspect of `size`."""
    (height, width), (new_height, new_width) = image_size, size
    return min(width, height * new_width / new_height), min(height, width * new_height / new_width)


def _start(room: int, place: float | None) -> int:
    """Return one of room + 1 places: the middle one, rounded down, or the one that `place` in [0, 1) stands for."""
    return room // 2 if place is None else min(room, int(place * (room + 1)))
