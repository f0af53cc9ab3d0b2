"""What a token set is made of: the files, tars or tables that a plan deals out, and the media inside them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FileStore
from smalti.data.list_formats import Listing
from smalti.data.packing import MediaConfig, Packing, packing_of
from smalti.data.parquet import ParquetStore
from smalti.data.source import Medium, suffix_of
from smalti.data.tars import TarStore
from smalti.errors import BadFile, InputError
from smalti.text import printable

_IDENTITY: dict[str, tuple[str, ...]] = {
    "files": ("class_folders", "format"),
    "tars": ("member",),
    "parquet": ("match", "revision", "label", "column", "caption"),
}
"""Fields beside `kind` and `media` that decide which tokens come out, in their order in `plan.json`."""


class Found(NamedTuple):
    """The inputs of a plan or of a shard, in order."""

    root: Path
    names: Sequence[str]
    """Paths below the root, as the operating system gives them."""
    labels: Sequence[int] | None
    classes: tuple[str, ...]


class Inputs(MediaConfig):
    """The fields and methods that all kinds of inputs share: each file, tar or table is an input."""

    media: Medium | None = None
    """Restriction to images or to videos; null takes both."""
    caption: str | None = None
    """Column of captions. For Parquet files."""

    def find(self) -> Found:
        """List the inputs. Raises InputError where there are none."""
        listing = self.listing(self.suffixes)[1]
        classes = listing.classes
        return Found(listing.root, listing.files, classes.labels, classes.names)

    def place(self) -> Path:
        """The root that `find` gives, without listing anything; for a data set of the hub, its download."""
        if self.path.as_posix().startswith("hf:"):
            return self.find().root
        if self.kind == "files" and self.root is not None and not self.path.is_dir():
            return self.root
        path = self.path
        while "{" in path.name:
            path = path.parent
        return path if path.is_dir() else path.parent

    def open(self, root: Path, name: str) -> FileStore | TarStore | ParquetStore:
        """The media of one input. Raises BadFile for a tar or table that cannot be read."""
        try:
            if self.kind == "tars":
                return TarStore(root, [name], self.suffixes, self.member)
            if self.kind == "parquet":
                return ParquetStore(root, [name], self.column or "image", self.label, self.caption)
        except InputError as error:
            raise _unreadable(name, error, root) from None
        return FileStore(Listing(root, (name,)))

    def is_video(self, key: str) -> bool:
        """Whether a medium of this key is a video: by its suffix, or by the name of its column."""
        if self.media is not None:
            return self.media == "videos"
        return self.column == "video" if self.kind == "parquet" else suffix_of(key) in VIDEO_SUFFIXES

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of media end in."""
        own = {"images": IMAGE_SUFFIXES, "videos": VIDEO_SUFFIXES}
        return (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) if self.media is None else own[self.media]

    def identity(self) -> dict[str, Any]:
        """What decides which tokens come out: all fields but the places of the inputs."""
        plain = {**self.plain(), "column": self.column or "image"}
        return {name: plain[name] for name in ("kind", "media", *_IDENTITY[self.kind])}


class Files(Inputs):
    """A folder, a list or one file; each file is an input. A `.txt` of the same name beside it is its caption."""

    kind: Literal["files"] = "files"
    packing: Literal["files"] = "files"


class Tars(Inputs):
    """WebDataset tars; each tar is an input, opened when its shard is made."""

    kind: Literal["tars"] = "tars"
    packing: Literal["tars"] = "tars"


class Tables(Inputs):
    """Parquet files of images or videos, local or on the hub; each file is an input."""

    kind: Literal["parquet"] = "parquet"
    packing: Literal["parquet"] = "parquet"


AnyInputs = Annotated[Files | Tars | Tables, Field(discriminator="kind")]


def choose(data: str) -> Files | Tars | Tables:
    """The kind of inputs that a path is: by its suffix, or by what the folder holds. Raises InputError."""
    path = Path(data)
    kinds: dict[Packing, type[Files | Tars | Tables]] = {"files": Files, "tars": Tars, "parquet": Tables}
    return kinds[packing_of(path)[0]](path=path)


def _unreadable(name: str, error: InputError, root: Path) -> BadFile:
    """The fault of a tar or table that is left out as a whole, without the place of the data on this machine."""
    return BadFile(printable(name), "container", str(error).replace(f"{printable(root)}{os.sep}", ""))
