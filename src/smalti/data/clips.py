"""The frames of a video that make a clip."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from smalti.data.views import SizeField, ViewConfig

Short = Literal["repeat", "loop", "spread", "skip"]


class ClipIndices(NamedTuple):
    """The frames of a clip, and whether the video was too short for it."""

    indices: list[int]
    is_short: bool


def clip_indices(
    times: Sequence[float], frames: int, *, stride: int = 1, fps: int | float | None = None, place: int | float = 0.0
) -> ClipIndices:
    """Choose the frame numbers of a clip of `frames` frames, `place` of the way (0 to 1) along the room that is left.

    Without `fps`: s, s + stride, s + 2 stride, ... With it: the frames nearest to t, t + 1/fps, ... by their `times`
    (seconds, rising), never by number, so that a variable frame rate does no harm. A video that is too short repeats
    its last frame.
    """
    last = len(times) - 1
    if fps is None:
        return _strided(len(times), frames, stride, _pick(len(times) - (frames - 1) * stride, place), "repeat")
    length = (frames - 1) / fps
    start_time = times[0] + place * max(0.0, times[-1] - times[0] - length)
    half_frame = (times[-1] - times[0]) / max(1, last) / 2
    indices = [_nearest(times, start_time + i / fps) for i in range(frames)]
    return ClipIndices(indices, start_time + length > times[-1] + half_frame + 1e-9)


def _pick(places: int, place: float) -> int:
    """Return one of `places` places, 0 where there are none, for a number in [0, 1]."""
    return max(0, min(places - 1, int(place * places)))


def _strided(count: int, frames: int, stride: int, start: int, short: Short) -> ClipIndices:
    """Return frames start, start + stride, ... of `count`; beyond the last one as `short` says."""
    indices = [start + i * stride for i in range(frames)]
    if indices[-1] < count:
        return ClipIndices(indices, False)
    if short == "spread":
        return ClipIndices(np.linspace(0, count - 1, frames).astype(int).tolist(), True)
    return ClipIndices([i % count if short == "loop" else min(i, count - 1) for i in indices], True)


class ClipConfig(ViewConfig):
    """The clip that a sample shows of a video, with one crop and one flip for all its frames."""

    size: SizeField = 128
    """Height and width of a sample, or one number for a square; null keeps the size of each video."""
    frames: int | None = Field(default=17, ge=1, le=1 << 16)
    """Frames of a clip; null takes all frames of the file, in memory."""
    stride: int = Field(default=1, ge=1)
    """Distance between the frames of a clip, in frames of the file."""
    fps: float | None = Field(default=None, gt=0)
    """Frame rate of a clip, by time stamps, instead of a stride."""
    sampling: Literal["random", "center", "first"] = "random"
    """Position of the clip in the video; `center` has as many frames before it as after it, or one fewer."""
    tail: int = Field(default=0, ge=0)
    """Frames at the end of the video that a random clip avoids, if the video is long enough."""
    short: Short = "repeat"
    """Treatment of a video that is too short: its last frame is repeated, it starts again (`loop`), it is spread over
    the clip evenly (`spread`), or it is a bad file with the code `short` (`skip`)."""

    @model_validator(mode="after")
    def _one_rate(self) -> "ClipConfig":
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"give fps or stride, not both (found fps {self.fps:g} and stride {self.stride})")
        if self.fps is not None and (self.tail or self.short in ("loop", "spread")):
            raise ValueError("tail, and short loop or spread, count frames: they go with stride, not with fps")
        return self

    def clip(self, times: Sequence[float], random_place: float) -> ClipIndices:
        """Choose the frames of a video with these frame times; `random_place`, in [0, 1), places a random clip."""
        if self.frames is None:
            return ClipIndices(list(range(0, len(times), self.stride)), False)
        if self.fps is not None:
            place = {"random": random_place, "center": 0.5, "first": 0.0}[self.sampling]
            return clip_indices(times, self.frames, fps=self.fps, place=place)
        places = len(times) - (self.frames - 1) * self.stride  # where a clip may start; less than 1: too short
        start = {"random": _pick(places - self.tail, random_place), "center": max(0, places - 1) // 2, "first": 0}
        return _strided(len(times), self.frames, self.stride, start[self.sampling], self.short)


def _nearest(times: Sequence[float], time: float) -> int:
    after = bisect_left(times, time)
    if after == 0:
        return 0
    if after == len(times):
        return len(times) - 1
    return after if times[after] - time < time - times[after - 1] else after - 1
