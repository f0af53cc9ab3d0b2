"""Film: clips of a folder or list of video files as a source, each clip with one view for all its frames."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.data.clips import ClipConfig, clip_indices
from smalti.data.lists import FilesConfig, Listed
from smalti.data.source import Store, Stored
from smalti.data.video_reader import VideoReader, open_video
from smalti.data.video_writer import write_video
from smalti.errors import BadFile
from smalti.text import printable

__all__ = ["VideoReader", "Videos", "VideosConfig", "open_video", "read_clip", "write_video"]

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".mts", ".3gp", ".flv", ".wmv", ".ogv"),
)


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


class VideosConfig(ClipConfig, FilesConfig):
    """A folder or list of video files; each file is a sample, which shows one clip."""

    kind: Literal["videos"] = "videos"

    def build(self) -> "Videos":
        """List the files. Raises InputError where there are none, or the list has faults."""
        return Videos(self, Listed(self.listing(SUFFIXES)))


class Videos(Stored):
    """Videos as samples of one clip each; a `Source`."""

    def __init__(self, config: ClipConfig, store: Store) -> None:
        super().__init__(store)
        self.config = config

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """One clip; all its frames are cropped, scaled and mirrored alike. Raises BadFile."""
        config = self.config
        drawn = float(torch.rand((), generator=rng, dtype=torch.float64))
        name = self.store.where(index)
        with VideoReader(self.store.media(index), config.max_pixels, name) as reader:
            view = config.view(reader.size, rng, name)
            clip = config.clip(reader.times, drawn)
            if clip.is_short and config.short == "skip":
                what = f"has {len(reader)} frames at {reader.fps:.3g} fps, too few for {config.frames} frames"
                raise BadFile(name, "short", what)
            order = sorted(set(clip.indices))  # a loop goes back, a reader does not
            shown = {i: torch.from_numpy(view.apply(f.numpy())) for i, f in zip(order, reader.at(order), strict=True)}
            return torch.stack([shown[i] for i in clip.indices])
