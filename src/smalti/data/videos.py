"""Videos: the videos of a path as a source of clips, each with one crop and one flip for all its frames."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.data.clips import ClipConfig, clip_indices
from smalti.data.packing import MediaConfig
from smalti.data.source import Store, StoreSource
from smalti.data.video_reader import VideoReader, open_video
from smalti.data.video_writer import write_video
from smalti.data.views import viewed
from smalti.errors import BadFile
from smalti.text import printable

__all__ = ["VideoReader", "Videos", "VideosConfig", "open_video", "read_clip", "write_video"]


def read_clip(
    path: Path | str,
    frames: int | None = None,
    *,
    stride: int = 1,
    fps: int | float | None = None,
    place: int | float = 0.0,
) -> UInt8[Tensor, "t h w 3"]:
    """Read a clip of a video file at its own size, chosen as by `clip_indices`; all frames if `frames` is None.

    Raises BadFile as `open_video` does, and with the code `short` where the video has too few frames.
    """
    with open_video(path) as reader:
        if frames is None:
            return torch.stack(list(reader.frames(stride=stride)))
        clip = clip_indices(reader.times, frames, stride=stride, fps=fps, place=place)
        if clip.is_short:
            raise BadFile(printable(path), "short", f"has {len(reader)} frames at {reader.fps:.3g} fps, too few")
        return torch.stack(list(reader.at(clip.indices)))


class VideosConfig(ClipConfig, MediaConfig):
    """Videos, each a sample of one clip: loose files, or those in tars or Parquet files."""

    kind: Literal["videos"] = "videos"

    def build(self) -> "Videos":
        """List the videos. Raises InputError where there are none, or the list, a tar or a table has faults."""
        return Videos(self, self.open_store("videos"))


class Videos(StoreSource):
    """Videos as samples of one clip each; a `Source`."""

    def __init__(self, config: ClipConfig, store: Store) -> None:
        super().__init__(store)
        self.config = config

    def with_view(self, config: ClipConfig) -> "Videos":
        """Return the same videos in another view."""
        return Videos(config, self.store)

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """Load one clip; all its frames are cropped, scaled and mirrored alike. Raises BadFile."""
        config = self.config
        place = float(torch.rand((), generator=rng, dtype=torch.float64))
        name = self.store.where(index)
        with VideoReader(self.store.media(index), config.max_pixels, name) as reader:
            crop = config.view(reader.size, rng, name)
            clip = config.clip(reader.times, place)
            if clip.is_short and config.short == "skip":
                what = f"has {len(reader)} frames at {reader.fps:.3g} fps, too few for {config.frames} frames"
                raise BadFile(name, "short", what)
            order = sorted(set(clip.indices))  # a loop goes back, a reader does not
            pixels = dict(zip(order, viewed(reader, order, crop), strict=True))
            return torch.stack([pixels[i] for i in clip.indices])
