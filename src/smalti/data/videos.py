"""Film: clips of a folder or list of video files as a source, each clip with one view for all its frames."""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import UInt8
from pydantic import Field, model_validator
from torch import Tensor

from smalti.config import Config, PathField
from smalti.data.crop import Crop, Filter, ScaleField, SizeField, choose_view, pair
from smalti.data.decode import VideoReader, open_video
from smalti.data.encode import write_video
from smalti.data.lists import Listed, Listing, list_files
from smalti.data.source import MAX_PIXELS, printable
from smalti.errors import BadFile

__all__ = ["VideoReader", "Videos", "VideosConfig", "clip_indices", "open_video", "read_clip", "write_video"]

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".mts", ".3gp", ".flv", ".wmv", ".ogv"),
)


class ClipIndices(NamedTuple):
    """Which frames make a clip, and whether the video was long enough for it."""

    indices: list[int]
    is_short: bool


def clip_indices(
    times: Sequence[float], frames: int, *, stride: int = 1, fps: int | float | None = None, place: int | float = 0.0
) -> ClipIndices:
    """The frame numbers of a clip of `frames` frames, `place` of the way (0 to 1) along the room that is left.

    Without `fps`: s, s + stride, s + 2 stride, ... With it: the frames nearest to t, t + 1/fps, ... by their `times`
    (seconds, rising), never by number, so that a variable frame rate does no harm. A video that is too short repeats
    its last frame.
    """
    last = len(times) - 1
    if fps is None:
        span = (frames - 1) * stride
        room = max(0, last - span)
        start = min(room, int(place * (room + 1)))
        return ClipIndices([min(start + i * stride, last) for i in range(frames)], span > last)
    length = (frames - 1) / fps
    start_time = times[0] + place * max(0.0, times[-1] - times[0] - length)
    half_frame = (times[-1] - times[0]) / max(1, last) / 2
    indices = [_nearest(times, start_time + i / fps) for i in range(frames)]
    return ClipIndices(indices, start_time + length > times[-1] + half_frame + 1e-9)


def read_clip(
    path: Path | str,
    frames: int | None = None,
    *,
    stride: int = 1,
    fps: int | float | None = None,
    place: int | float = 0.0,
) -> UInt8[Tensor, "t h w 3"]:
    """A clip of a video file at its own size, chosen as `clip_indices` says; all frames if `frames` is None.

    Raises BadFile as `open_video` does, and with the code `short` where the video has too few frames.
    """
    with open_video(path) as reader:
        if frames is None:
            return torch.stack(list(reader.frames(stride=stride)))
        clip = clip_indices(reader.times, frames, stride=stride, fps=fps, place=place)
        if clip.is_short:
            raise BadFile(printable(path), "short", f"has {len(reader)} frames at {reader.fps:.3g} fps, too few")
        return torch.stack(list(reader.at(clip.indices)))


class VideosConfig(Config):
    """A folder or list of video files; each file is a sample, which shows one clip."""

    kind: Literal["videos"] = "videos"
    path: PathField
    """A folder (searched to the bottom), a list file (.txt, .csv, .tsv, .lst), or one video."""
    root: PathField | None = None
    """Where the paths of a list start; its own folder if not given."""
    class_folders: bool = False
    """The first folder below `path` is the class."""
    frames: int | None = Field(default=17, ge=1)
    """Frames of a clip. `null`: all frames of the file, in memory."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame of the file."""
    fps: float | None = Field(default=None, gt=0)
    """Take frames at this rate, by time stamps, instead of a stride."""
    sampling: Literal["random", "center", "first"] = "random"
    """Where in the video the clip lies."""
    short: Literal["repeat", "skip"] = "repeat"
    """A video that is too short repeats its last frame, or is a bad file (code `short`)."""
    size: SizeField = 128
    """Rows and columns of a sample, one number for a square. `null`: each video as it is."""
    crop: Crop = "random"
    """`random`: a box of `scale` times the largest one, anywhere. `center`: the largest box, in the middle."""
    scale: ScaleField = (0.5, 1.0)
    """The range of the sides of a random box, as a part of the largest box."""
    flip: bool = True
    """Mirror one clip in two."""
    resize: Filter = "lanczos"
    """The filter that scales; all are antialiased."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Videos with larger frames are bad files."""
    limit: int = Field(default=20_000_000, ge=1)
    """At most this many files are listed."""

    @model_validator(mode="after")
    def _one_rate(self) -> "VideosConfig":
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"give fps or stride, not both (found fps {self.fps:g} and stride {self.stride})")
        return self

    def build(self) -> "Videos":
        """List the files. Raises InputError where there are none, or the list has faults."""
        listing = list_files(self.path, SUFFIXES, class_folders=self.class_folders, root=self.root, limit=self.limit)
        return Videos(self, listing)


class Videos(Listed):
    """Video files as samples of one clip each; a `Source`."""

    def __init__(self, config: VideosConfig, listing: Listing) -> None:
        super().__init__(listing)
        self.config = config

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """One clip; all its frames are cropped, scaled and mirrored alike. Raises BadFile."""
        config = self.config
        drawn = float(torch.rand((), generator=rng, dtype=torch.float64))
        place = {"random": drawn, "center": 0.5, "first": 0.0}[config.sampling]
        with open_video(self.path(index), max_pixels=config.max_pixels) as reader:
            view = choose_view(
                reader.size,
                pair(config.size),
                crop=config.crop,
                scale=config.scale,
                flip=config.flip,
                resize=config.resize,
                rng=rng,
            )
            clip = self._clip(reader, place)
            return torch.stack([torch.from_numpy(view.apply(frame.numpy())) for frame in reader.at(clip)])

    def _clip(self, reader: VideoReader, place: float) -> Sequence[int]:
        config = self.config
        if config.frames is None:
            return range(0, len(reader), config.stride)
        clip = clip_indices(reader.times, config.frames, stride=config.stride, fps=config.fps, place=place)
        if clip.is_short and config.short == "skip":
            what = f"has {len(reader)} frames at {reader.fps:.3g} fps, too few for {config.frames} frames"
            raise BadFile(printable(reader.path), "short", what)
        return clip.indices


def _nearest(times: Sequence[float], time: float) -> int:
    after = bisect_left(times, time)
    if after == 0:
        return 0
    if after == len(times):
        return len(times) - 1
    return after if times[after] - time < time - times[after - 1] else after - 1
