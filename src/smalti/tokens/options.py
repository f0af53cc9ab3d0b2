"""The choices that decide which tokens come out, and which inputs make a shard."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field, model_validator

from smalti.config import Config
from smalti.data.clips import clip_indices
from smalti.data.source import MAX_PIXELS
from smalti.data.views import Cut, Filter, SizeField, ViewConfig


class Clip(NamedTuple):
    """A run of the chosen frames of a video that is encoded as a video of its own."""

    start: int
    """Counted in chosen frames."""
    frames: int


class Options(Config):
    """How media become tokens. Whatever is here is part of the plan: another value is another token set."""

    size: SizeField = None
    """Rows and columns: the picture is scaled, and its middle cut. `null`: every medium at its own size."""
    resize: Filter = "lanczos"
    """The filter that scales."""
    cut: Cut = "together"
    """How the middle is cut, as in `ViewConfig`."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Larger pictures and frames are bad files."""
    min_side: int = Field(default=0, ge=0)
    """Skip media whose short side is smaller."""
    min_frames: int = Field(default=1, ge=1)
    """Skip videos that have fewer frames after `stride` or `fps`."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame of a video."""
    fps: float | None = Field(default=None, gt=0)
    """Take frames at this rate, by their time stamps, instead of a stride."""
    clip: int | None = Field(default=None, ge=1)
    """Cut videos into clips of this many frames, each a row of its own. `null`: a video is one row."""
    overlap: int = Field(default=0, ge=0)
    """Frames that a clip shares with the one before."""
    batch: int = Field(default=1, ge=1)
    """Pictures of one size that are encoded together, in the order of the plan; above 1 for a GPU's sake."""
    threads: int = Field(default=1, ge=1)
    """Threads of one worker: sums on another number of threads may differ in their last bit."""
    shard_files: int = Field(default=4096, ge=1)
    """At most this many inputs make a shard,"""
    shard_bytes: int = Field(default=1 << 30, ge=1)
    """and no more than this many bytes of them, unless it is one alone."""

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
            size=self.size, crop="center", flip=False, resize=self.resize, cut=self.cut, max_pixels=self.max_pixels
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
