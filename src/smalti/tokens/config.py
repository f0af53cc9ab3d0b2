"""The choices that decide which tokens come out: how media are encoded, and which files they come from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from smalti.config import Config, PathField
from smalti.data.clips import clip_indices
from smalti.data.detect import Packing, packing_of
from smalti.data.images import SUFFIXES as IMAGE_SUFFIXES
from smalti.data.list_formats import Listing
from smalti.data.lists import FilesConfig, Listed
from smalti.data.parquet import ParquetConfig, ParquetRows
from smalti.data.source import MAX_PIXELS, Store
from smalti.data.tars import TarMembers, TarsConfig
from smalti.data.videos import SUFFIXES as VIDEO_SUFFIXES
from smalti.data.views import Cut, Filter, SizeField, ViewConfig
from smalti.errors import BadFile, InputError
from smalti.text import printable

_PLACES = {"path", "root", "limit"}
"""Fields that say where the inputs are; another machine may have them elsewhere."""


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
    """Filter that scales, as in `ViewConfig`."""
    cut: Cut = "together"
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
    def _consistent(self) -> "TokenizeOptions":
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"give fps or stride, not both (found fps {self.fps:g} and stride {self.stride})")
        if self.clip is None and self.overlap:
            raise ValueError(f"overlap {self.overlap} is between clips: set clip too")
        if self.clip is not None and self.overlap >= self.clip:
            raise ValueError(f"overlap must be below clip (found {self.overlap} and {self.clip})")
        return self

    @property
    def view(self) -> ViewConfig:
        """The view of an image or frame: the center crop, never mirrored."""
        return ViewConfig(
            size=self.size, crop="center", flip=False, resize=self.resize, cut=self.cut, max_pixels=self.max_pixels
        )

    def frames_of(self, times: Sequence[float]) -> list[int]:
        """Choose the frames of a video whose frames have these times (seconds from 0, rising).

        With `fps` they are those nearest to 0, 1/fps, 2/fps, ... up to the last frame; one may be chosen twice.
        """
        if self.fps is None:
            return list(range(0, len(times), self.stride))
        count = int(times[-1] * self.fps + 1e-6) + 1
        return clip_indices(times, count, fps=self.fps).indices

    def clips_of(self, count: int) -> list[Clip]:
        """Cut `count` chosen frames into clips. Each begins `clip - overlap` frames after the one before, and has a
        frame that no clip before it has; the last may be shorter."""
        if self.clip is None:
            return [Clip(0, count)]
        starts = range(0, max(1, count - self.overlap), self.clip - self.overlap)
        return [Clip(start, min(self.clip, count - start)) for start in starts]


class MediaInputs(Config):
    """The fields and methods that all kinds of inputs share."""

    kind: str
    path: PathField
    """Folder, list, tar, table or file, as each kind says."""
    media: Literal["images", "videos"] | None = None
    """Restriction to images or to videos; null takes both."""

    def list_inputs(self) -> Listing:
        """List the inputs. Raises InputError where there are none."""
        raise NotImplementedError

    def root_folder(self) -> Path:
        """Return the root of the listing without listing anything."""
        path = self.path
        while "{" in path.name:
            path = path.parent
        return path if path.is_dir() else path.parent

    def open(self, root: Path, name: str) -> Store:
        """Open the media of one input. Raises BadFile for a tar or table that cannot be read."""
        raise NotImplementedError

    def is_video(self, key: str) -> bool:
        """Return whether a medium of this key is a video."""
        suffix = os.path.splitext(key)[1].lower()  # noqa: PTH122 - a key, not a path
        return self.media == "videos" or (self.media is None and suffix in VIDEO_SUFFIXES)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the names of media."""
        own = {"images": IMAGE_SUFFIXES, "videos": VIDEO_SUFFIXES}
        return (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) if self.media is None else own[self.media]

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide which tokens come out: all but the places of the inputs."""
        return {name: value for name, value in self.plain().items() if name not in _PLACES}


class FileInputs(FilesConfig, MediaInputs):
    """A folder, a list or one file; each file is an input. A `.txt` of the same name beside it is its caption."""

    kind: Literal["files"] = "files"

    def list_inputs(self) -> Listing:
        """List the files as `smalti.data` does. Raises InputError as it does."""
        return self.listing(self.suffixes)

    def root_folder(self) -> Path:
        """Return the root of the listing without listing anything."""
        return self.root if self.root is not None and not self.path.is_dir() else super().root_folder()

    def open(self, root: Path, name: str) -> Listed:
        """Return the file as a store of one."""
        return Listed(Listing(root, (name,)))


class TarInputs(TarsConfig, MediaInputs):
    """WebDataset tars; each tar is an input, opened when its shard is made."""

    kind: Literal["tars"] = "tars"

    def list_inputs(self) -> Listing:
        """List the tars. Raises InputError where there are none."""
        return Listing(*self.tars())

    def open(self, root: Path, name: str) -> TarMembers:
        """Open the members of a tar. Raises BadFile where it cannot be read."""
        try:
            return TarMembers(root, [name], self.suffixes, self.member)
        except InputError as error:
            raise _bad_container(name, error, root) from None


class ParquetInputs(ParquetConfig, MediaInputs):
    """Parquet files of images or videos, local or on the hub; each file is an input."""

    kind: Literal["parquet"] = "parquet"
    column: str = "image"
    """Column of media: bytes, or {bytes, path}. It holds videos if it is called `video` or `media` is `videos`."""
    caption: str | None = None
    """Column of captions."""

    def list_inputs(self) -> Listing:
        """List the tables. Raises InputError where there are none."""
        return Listing(*self.files())

    def root_folder(self) -> Path:
        """Return the root of the listing; for a data set of the hub, the folder of its download."""
        return self.list_inputs().root if self.path.as_posix().startswith("hf:") else super().root_folder()

    def open(self, root: Path, name: str) -> ParquetRows:
        """Open the rows of a table. Raises BadFile where it cannot be read."""
        try:
            return ParquetRows(root, [name], self.column, self.label, self.caption)
        except InputError as error:
            raise _bad_container(name, error, root) from None

    def is_video(self, key: str) -> bool:
        """Return whether the column holds videos."""
        return self.media == "videos" or (self.media is None and self.column == "video")


AnyInputs = Annotated[FileInputs | TarInputs | ParquetInputs, Field(discriminator="kind")]


def inputs_at(
    path: str | Path, source: Literal["files", "tars", "parquet"] | None = None
) -> FileInputs | TarInputs | ParquetInputs:
    """Return the inputs at a path, of the kind `source`, or else of the kind that suffixes and folders show.

    Raises InputError where that is not clear.
    """
    kinds: dict[str, type[FileInputs | TarInputs | ParquetInputs]]
    kinds = {"files": FileInputs, "tars": TarInputs, "parquet": ParquetInputs}
    detected: dict[Packing, str] = {"media": "files", "tars": "tars", "Parquet files": "parquet"}
    return kinds[source or detected[packing_of(Path(path))[0]]](path=Path(path))


def _bad_container(name: str, error: InputError, root: Path) -> BadFile:
    """Return the fault of a tar or table as a whole, without the place of the data on this machine."""
    return BadFile(printable(name), "container", str(error).replace(f"{printable(root)}{os.sep}", ""))
