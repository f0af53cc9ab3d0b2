"""The choices that decide which tokens come out: how media are encoded, and which files they come from."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from smalti.config import Config
from smalti.data.clips import clip_indices
from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FileStore
from smalti.data.list_formats import Listing
from smalti.data.metadata import MetadataColumns
from smalti.data.packing import MediaConfig, Packing, packing_of
from smalti.data.parquet import ParquetStore
from smalti.data.source import MAX_PIXELS, Medium, suffix_of
from smalti.data.tars import TarStore
from smalti.data.views import CropOrder, Filter, SizeField, ViewConfig, check_filter
from smalti.devices import Precision
from smalti.errors import BadFile, InputError
from smalti.text import printable

_IDENTITY: dict[Packing, tuple[str, ...]] = {
    "files": ("class_folders", "format"),
    "tars": ("member",),
    "parquet": ("match", "revision", "label", "column", "caption"),
}
"""Fields beside `kind` and `media` that decide which tokens come out, in their order in `plan.json`."""


Encoding = Literal["plain", "split"]
MOST_CHOSEN = 10_000_000
"""Largest number of frames of a video; more are those of damaged time stamps, and would fill the memory."""


class Clip(NamedTuple):
    """Consecutive frames, of those chosen from a video, that are encoded as a video of their own."""

    start: int
    """First frame, counted in chosen frames."""
    frames: int
    """Number of frames."""


class TokenizeOptions(Config):
    """How media become tokens. All of it is part of the plan: another value is another token set."""

    size: SizeField = None
    """Height and width of the center crop, or one number for a square; null keeps the size of each file. `--size`"""
    resize: Filter = "lanczos"
    """Filter that scales, as in `ViewConfig`; `swscale-bicubic` is the fastest for videos, and needs `cut` after."""
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
    precision: Precision | None = None
    """Number format of the networks; null is that of the tokenizer's file. In `bfloat16`, the shipped tokenizers give 2
    to 5 % other ids, whose images are as near to their source, by 0.01 dB on average. `--precision`"""
    encoding: Encoding = "plain"
    """Storage of the columns: `plain`, which every reader of Parquet knows, or `split`, which puts the high bytes of
    ids apart from the low ones, takes a sixth less, and needs pyarrow 16, Polars 1.20 or DuckDB 2."""
    shard_files: int = Field(default=4096, ge=1)
    """Largest number of inputs in a shard."""
    shard_bytes: int = Field(default=1 << 30, ge=1)
    """Largest number of input bytes in a shard; one larger input gets a shard of its own."""

    @model_validator(mode="after")
    def _consistent(self) -> "TokenizeOptions":
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"give fps or stride, not both (found fps {self.fps:g} and stride {self.stride})")
        if self.clip is None and self.overlap:
            raise ValueError(f"overlap {self.overlap} is between clips: set clip too")
        if self.clip is not None and self.overlap >= self.clip:
            raise ValueError(f"overlap must be below clip (found {self.overlap} and {self.clip})")
        check_filter(self.resize, self.cut, "cut")
        return self

    def written(self) -> dict[str, Any]:
        """Return the options as plan.json and dataset.json hold them: `precision`, which came later, only where it is
        set, so that a plan without it is what it was."""
        return {name: value for name, value in self.plain().items() if name != "precision" or value is not None}

    @property
    def view(self) -> ViewConfig:
        """The view of an image or frame: the center crop, never mirrored."""
        return ViewConfig(
            size=self.size,
            crop="center",
            flip=False,
            resize=self.resize,
            crop_order=self.cut,
            max_pixels=self.max_pixels,
        )

    def frames_of(self, times: Sequence[float]) -> list[int]:
        """Choose the frames of a video whose frames have these times (seconds from 0, rising).

        With `fps` they are those nearest to 0, 1/fps, 2/fps, ... up to the last frame; one may be chosen twice.
        Raises BadFile where they are more than 10,000,000.
        """
        if self.fps is None:
            return list(range(0, len(times), self.stride))
        count = int(times[-1] * self.fps + 1e-6) + 1
        if count > MOST_CHOSEN:
            what = f"{self.fps:g} frames a second of {times[-1]:,.0f} s are {count:,} frames, at most {MOST_CHOSEN:,}"
            raise BadFile("video", "timestamps", f"{what}; its time stamps are damaged, or it takes a lower fps")
        return clip_indices(times, count, fps=self.fps).indices

    def clips_of(self, count: int) -> list[Clip]:
        """Cut `count` chosen frames into clips. Each begins `clip - overlap` frames after the one before, and has a
        frame that no clip before it has; the last may be shorter."""
        if self.clip is None:
            return [Clip(0, count)]
        starts = range(0, max(1, count - self.overlap), self.clip - self.overlap)
        return [Clip(start, min(self.clip, count - start)) for start in starts]


class MediaInputs(MediaConfig):
    """The inputs of a token set: media files, tars or Parquet files, each opened when its shard is made."""

    kind: Packing
    """Kind of the inputs: media files, tars or Parquet files. `--from`"""
    media: Medium | None = None
    """Restriction to images or to videos; null takes both."""
    caption: str | None = None
    """Column of captions. For Parquet files, where null reads none, and for metadata of loose files, where null is
    `text`, or else `caption`."""

    @model_validator(mode="before")
    @classmethod
    def _packing_is_kind(cls, data: Any) -> Any:
        return {"packing": data.get("kind"), **data} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _one_packing(self) -> "MediaInputs":
        if self.packing != self.kind:
            raise ValueError(f"kind {self.kind} and packing {self.packing} differ: set kind alone")
        return self

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the names of media."""
        own = {"images": IMAGE_SUFFIXES, "videos": VIDEO_SUFFIXES}
        return (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) if self.media is None else own[self.media]

    @property
    def metadata_columns(self) -> MetadataColumns:
        """Columns of metadata beside loose files."""
        return MetadataColumns(self.label, self.caption)

    def list_inputs(self) -> Listing:
        """List the inputs. Raises InputError where there are none."""
        return self.listing(self.suffixes)[1]

    def root_folder(self) -> Path:
        """Return the root of the listing without listing anything; for a data set of the hub, its download."""
        if self.path.as_posix().startswith("hf:"):
            return self.list_inputs().root
        if self.kind == "files" and self.root is not None and not self.path.is_dir():
            return self.root
        path = self.path
        while "{" in path.name:
            path = path.parent
        return path if path.is_dir() else path.parent

    def open(self, root: Path, name: str, caption: str | None = None) -> FileStore | TarStore | ParquetStore:
        """Open the media of one input; `caption` is that of a loose file in its metadata.

        Raises BadFile for a tar or table that cannot be read.
        """
        try:
            if self.kind == "tars":
                return TarStore(root, [name], self.suffixes, self.member)
            if self.kind == "parquet":
                return ParquetStore(root, [name], self.column or "image", self.label, self.caption)
        except InputError as error:  # without the place of the data on this machine
            what = str(error).replace(f"{printable(root)}{os.sep}", "")
            raise BadFile(printable(name), "container", what) from None
        return FileStore(Listing(root, (name,), captions=None if caption is None else (caption,)))

    def is_video(self, key: str) -> bool:
        """Return whether a medium of this key is a video: by its suffix, or by the name of its column."""
        if self.media is not None:
            return self.media == "videos"
        return self.column == "video" if self.kind == "parquet" else suffix_of(key) in VIDEO_SUFFIXES

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide which tokens come out: all but the places of the inputs."""
        plain = {**self.plain(), "column": self.column or "image"}
        return {name: plain[name] for name in ("kind", "media", *_IDENTITY[self.kind])}


def inputs_at(path: str | Path, kind: Packing | None = None) -> MediaInputs:
    """Return the inputs at a path, of the given kind, or else of the one that suffixes and folders show.

    Raises InputError where that is not clear.
    """
    return MediaInputs(kind=kind or packing_of(Path(path))[0], path=Path(path))
