"""What a token set is made of: the files, tars or tables that a plan deals out, and the media inside them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from smalti.config import Config, PathField
from smalti.data.detect import Packing, packing_of
from smalti.data.images import SUFFIXES as PICTURES
from smalti.data.list_formats import Listing
from smalti.data.lists import FilesConfig, Listed
from smalti.data.parquet import ParquetConfig, ParquetRows
from smalti.data.source import Store
from smalti.data.tars import TarMembers, TarsConfig
from smalti.data.videos import SUFFIXES as VIDEOS
from smalti.errors import BadFile, InputError
from smalti.text import printable

Media = Literal["images", "videos"]

_PLACES = {"path", "root", "limit"}
"""Fields that say where the inputs are; another machine may have them elsewhere."""


class Found(NamedTuple):
    """The inputs of a plan or of a shard, in order."""

    root: Path
    names: Sequence[str]
    """Paths below the root, as the operating system gives them."""
    labels: Sequence[int] | None
    classes: tuple[str, ...]


class Inputs(Config):
    """What the three kinds of inputs have in common."""

    kind: str
    path: PathField
    """Folder, list, tar, table or file, as each kind says."""
    media: Media | None = None
    """Restriction to images or to videos; null takes both."""

    def find(self) -> Found:
        """List the inputs. Raises InputError where there are none."""
        raise NotImplementedError

    def place(self) -> Path:
        """The root that `find` gives, without listing anything."""
        path = self.path
        while "{" in path.name:
            path = path.parent
        return path if path.is_dir() else path.parent

    def open(self, root: Path, name: str) -> Store:
        """The media of one input. Raises BadFile for a tar or table that cannot be read."""
        raise NotImplementedError

    def is_video(self, key: str) -> bool:
        """Whether a medium of this key is film."""
        return self.media == "videos" or (self.media is None and _suffix(key) in VIDEOS)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of media end in."""
        return {None: (*PICTURES, *VIDEOS), "images": PICTURES, "videos": VIDEOS}[self.media]

    def identity(self) -> dict[str, Any]:
        """What decides which tokens come out: all fields but the places of the inputs."""
        return {name: value for name, value in self.plain().items() if name not in _PLACES}


class Files(FilesConfig, Inputs):
    """A folder, a list or one file; each file is an input. A `.txt` of the same name beside it is its caption."""

    kind: Literal["files"] = "files"

    def find(self) -> Found:
        """List the files as `smalti.data` does. Raises InputError as it does."""
        listing = self.listing(self.suffixes)
        return Found(listing.root, listing.files, listing.classes.labels, listing.classes.names)

    def place(self) -> Path:
        """The root that `find` gives, without listing anything."""
        return self.root if self.root is not None and not self.path.is_dir() else super().place()

    def open(self, root: Path, name: str) -> Listed:
        """The file."""
        return Listed(Listing(root, (name,)))


class Tars(TarsConfig, Inputs):
    """WebDataset tars; each tar is an input, opened when its shard is made."""

    kind: Literal["tars"] = "tars"

    def find(self) -> Found:
        """List the tars. Raises InputError where there are none."""
        root, tars = self.tars()
        return Found(root, tars, None, ())

    def open(self, root: Path, name: str) -> TarMembers:
        """The members of a tar."""
        try:
            return TarMembers(root, [name], self.suffixes, self.member)
        except InputError as error:
            raise _unreadable(name, error, root) from None


class Tables(ParquetConfig, Inputs):
    """Parquet files of pictures or videos, local or on the hub; each file is an input."""

    kind: Literal["parquet"] = "parquet"
    column: str = "image"
    """Column of media: bytes, or {bytes, path}. It holds videos if it is called `video` or `media` is `videos`."""
    caption: str | None = None
    """Column of captions."""

    def find(self) -> Found:
        """List the tables. Raises InputError where there are none."""
        root, tables = self.files()
        return Found(root, tables, None, ())

    def place(self) -> Path:
        """The root that `find` gives; of a data set of the hub, where it was downloaded to."""
        return self.find().root if self.path.as_posix().startswith("hf:") else super().place()

    def open(self, root: Path, name: str) -> ParquetRows:
        """The rows of a table."""
        try:
            return ParquetRows(root, [name], self.column, self.label, self.caption)
        except InputError as error:
            raise _unreadable(name, error, root) from None

    def is_video(self, key: str) -> bool:
        """Whether the column holds film."""
        return self.media == "videos" or (self.media is None and self.column == "video")


AnyInputs = Annotated[Files | Tars | Tables, Field(discriminator="kind")]


def choose(data: str) -> Files | Tars | Tables:
    """The kind of inputs that a path is: by its suffix, or by what the folder holds. Raises InputError."""
    path = Path(data)
    kinds: dict[Packing, type[Files | Tars | Tables]] = {"media": Files, "tars": Tars, "Parquet files": Tables}
    return kinds[packing_of(path)[0]](path=path)


def _suffix(key: str) -> str:
    return os.path.splitext(key)[1].lower()  # noqa: PTH122 - a key, not a path


def _unreadable(name: str, error: InputError, root: Path) -> BadFile:
    """The fault of a tar or table that is left out as a whole, without the place of the data on this machine."""
    return BadFile(printable(name), "container", str(error).replace(f"{printable(root)}{os.sep}", ""))
