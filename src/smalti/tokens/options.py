"""The choices that decide which tokens come out, and which inputs make a shard."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field, model_validator

from smalti.config import Config
from smalti.data.clips import clip_indices
from smalti.data.source import MAX_PIXELS
from smalti.data.views import CropOrder, Filter, SizeField, ViewConfig


class Clip(NamedTuple):
    """A run of the chosen frames of a video that is encoded as a video of its own."""

    start: int
    """Counted in chosen frames."""
    frames: int


class Options(Config):
    """How media become tokens. Whatever is here is part of the plan: another value is another token set."""

    size: SizeField = None
    """Height and width of the center crop, or one number for a square; null keeps the size of each file. `--size`"""
    resize: Filter = "lanczos"
    """Filter that scales, as in `ViewConfig`."""
    cut: CropOrder = "together"
    """Order of cropping and scaling, as in `ViewConfig`."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest number of pixels of an image or frame; larger ones are bad files."""
    min_side: int = Field(default=0, ge=0)
    """Smallest short side in pixels; smaller media are skipped, and counted."""
    min_frames: int = Field(default=1, ge=1)
    """Smallest number of frames after `stride` or `fps`; shorter videos are skipped, and counted."""
    stride: int = Field(default=1, ge=1)
    """Distance between the frames of a video that are encoded."""
    fps: float | None = Field(default=None, gt=0)
    """Frame rate at which a video is encoded, by time stamps, instead of a stride. `--fps`"""
    clip: int | None = Field(default=None, ge=1)
    """Frames of a clip: videos are cut into clips, each a row encoded on its own, the last one maybe shorter. Null
    makes one row of a video. `--clip`"""
    overlap: int = Field(default=0, ge=0)
    """Frames that a clip shares with the one before. `--overlap`"""
    batch: int = Field(default=1, ge=1)
    """Images of one size that are encoded together, in the order of the plan; above 1 for GPUs. `--batch`"""
    threads: int = Field(default=1, ge=1)
    """Threads per worker; with another number, sums may differ in their last bit."""
    shard_files: int = Field(default=4096, ge=1)
    """Largest number of inputs in a shard."""
    shard_bytes: int = Field(default=1 << 30, ge=1)
    """Largest number of input bytes in a shard; one larger input gets a shard of its own."""

    @model_validator(mode="after")
    def _consistent(self) -> "Options":
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"give fps or stride, not both (found fps {self.fps:g} and stride {self.stride})")
        if self.clip is None and self.overlap:
            raise ValueError(f"overlap {self.overlap} is between clips: set clip too")
        if self.clip is not None and self.overlap >= self.clip:
            raise ValueError(f"overlap must be below clip (found {self.overlap} and {self.clip})")
        return self

    @property
    def view(self) -> ViewConfig:
        """What is shown of a picture or frame: the middle, never mirrored."""
        return ViewConfig(
            size=self.size,
            crop="center",
            flip=False,
            resize=self.resize,
            crop_order=self.cut,
            max_pixels=self.max_pixels,
        )

    def frames_of(self, times: Sequence[float]) -> list[int]:
        """The numbers of the frames that are taken of a video whose frames have these times (seconds from 0, rising).

        With `fps`: those nearest to 0, 1/fps, 2/fps, ... up to the last frame; one may be taken twice.
        """
        if self.fps is None:
            return list(range(0, len(times), self.stride))
        count = int(times[-1] * self.fps + 1e-6) + 1
        return clip_indices(times, count, fps=self.fps).indices

    def clips_of(self, count: int) -> list[Clip]:
        """How `count` chosen frames are cut: each clip begins `clip - overlap` frames after the one before, as long as
        it has a frame that none before has. The last may be shorter."""
        if self.clip is None:
            return [Clip(0, count)]
        starts = range(0, max(1, count - self.overlap), self.clip - self.overlap)
        return [Clip(start, min(self.clip, count - start)) for start in starts]


def cut_into_shards(sizes: Sequence[int], files: int, most: int) -> list[int]:
    """Where shards end: each takes inputs in order until it has `files` of them or `most` bytes; a larger one is a
    shard by itself. The last number is `len(sizes)`; there is at least one shard."""
    ends, first, total = list[int](), 0, 0
    for i, size in enumerate(sizes):
        if i > first and (i - first == files or total + size > most):
            ends.append(i)
            first, total = i, 0
        total += size
    return [*ends, len(sizes)]
