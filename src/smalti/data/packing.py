"""Where the media of a config are: loose files, tars or Parquet files, as its `path` shows, and the store of each.

The base of the sources here (`ImagesConfig`, `VideosConfig`) and of the inputs of token sets: `MediaConfig.listing`
lists the files, tars or Parquet files; `FileStore`, `TarStore` and `ParquetStore` read the media in them.
"""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from smalti.config import Config, PathField
from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FileStore, list_files
from smalti.data.list_formats import ListFormat, Listing
from smalti.data.metadata import DEFAULT_COLUMNS, MetadataColumns
from smalti.data.parquet import ParquetStore, download_from_hub
from smalti.data.source import Medium, Store, suffix_of
from smalti.data.tars import TarStore, expand_braces
from smalti.errors import ConfigError, InputError
from smalti.text import one_line, printable

Packing = Literal["files", "tars", "parquet"]

OPTIONS: dict[Packing, tuple[str, ...]] = {
    "files": ("class_folders", "label"),
    "tars": ("member",),
    "parquet": ("column", "label", "match", "revision"),
}
"""Fields of `MediaConfig` that not every packing has."""

_SUFFIXES: dict[Medium, tuple[str, ...]] = {"images": IMAGE_SUFFIXES, "videos": VIDEO_SUFFIXES}
_COLUMNS: dict[Medium, str] = {"images": "image", "videos": "video"}
_PACKED: dict[str, Packing] = {".tar": "tars", ".parquet": "parquet"}
_MOST_FILES, _MOST_TARS = 20_000_000, 1_000_000

_FORMER_KINDS: dict[str, tuple[Medium, Packing]] = {
    "tar-images": ("images", "tars"),
    "tar-videos": ("videos", "tars"),
    "parquet-images": ("images", "parquet"),
    "parquet-videos": ("videos", "parquet"),
}


def read_former_kind(data: Any) -> Any:
    """Turn a source as earlier versions wrote it into one of today: they had a kind for each medium and packing.

    They also wrote the defaults of `limit` and `column` out, which are null today.
    """
    if not isinstance(data, Mapping):
        return data
    kind = data.get("kind", "images")
    if not isinstance(kind, str) or kind not in (*_SUFFIXES, *_FORMER_KINDS):
        return data
    defaults: dict[str, object] = {"limit": _MOST_FILES}
    if kind in _FORMER_KINDS:
        medium, packing = _FORMER_KINDS[kind]
        data = {**data, "kind": medium}
        defaults = {"limit": _MOST_TARS, "column": _COLUMNS[medium]}
        if _PACKED.get(suffix_of(str(data.get("path")))) != packing:
            data.setdefault("packing", packing)
    return {name: value for name, value in data.items() if name not in defaults or value != defaults[name]}


class MediaConfig(Config):
    """The media of a source or of a token set; `path` shows whether they are loose, in tars or in Parquet files."""

    kind: str
    path: PathField
    """A media file, a tar or a .parquet file; a folder of one of these (searched to the bottom); a list file of them
    (.txt, .csv, .tsv, .lst, .json, .jsonl); a pattern of tars such as `train-{0000..0146}.tar`; or `hf:owner/name`, a
    data set of the hub in Parquet files."""
    packing: Packing | None = None
    """Packing of the media; null follows from the suffixes. Needed if a folder has media files, tars or Parquet files
    beside each other: the others are then left out."""
    root: PathField | None = None
    """Folder that the paths of a list are relative to; null is the folder of the list."""
    format: ListFormat = "auto"
    """Format of a list file; `auto` detects it by its content."""
    class_folders: bool = False
    """Whether the first folder below `path` is the class of a file, unless a list gives another. For loose files."""
    member: str | None = None
    """File of a sample that is read, by what follows the first dot of its name (`jpg`, `left.png`); needed if a sample
    has several. For tars."""
    column: str | None = None
    """Column of media: bytes, or {bytes, path}; null is `image` or `video`. For Parquet files."""
    label: str = "label"
    """Column of classes, whole numbers or names. For Parquet files, and for metadata (.csv, .jsonl) of loose files."""
    match: str = "*.parquet"
    """Pattern of the files of a folder, by their path below it, as `data/train-*.parquet`. For Parquet files."""
    revision: str | None = None
    """Branch, tag or commit of a data set of the hub. For Parquet files."""
    limit: int | None = Field(default=None, ge=1)
    """Largest number of files that are listed; null is 20,000,000, and 1,000,000 for a pattern of tars."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_kind(cls, data: Any) -> Any:
        return read_former_kind(data)

    @property
    def metadata_columns(self) -> MetadataColumns:
        """Columns of metadata beside loose files."""
        return MetadataColumns(self.label)

    def listing(self, suffixes: Sequence[str]) -> tuple[Packing, Listing]:
        """List the media files with one of `suffixes`, or the tars or Parquet files, and say which of them they are.

        A data set of the hub is downloaded. Raises InputError where there are none, or several packings, and
        ConfigError where an option is set that another packing has.
        """
        packing = self.packing or _packing_shown(self.path)
        if packing is not None:
            self._check_options(packing)
        if packing == "tars" and _is_pattern(self.path):
            return packing, Listing(*expand_braces(self.path, self.limit or _MOST_TARS))
        path, hub = self.path, self.path.as_posix()
        if hub.startswith("hf:"):
            path = download_from_hub(hub[3:], self.match, self.revision)
        own = {"files": tuple(suffixes), "tars": (".tar",), "parquet": (".parquet",)}
        listing = list_files(
            path,
            (*suffixes, *_PACKED) if packing is None else own[packing],
            class_folders=self.class_folders,
            root=self.root,
            format=self.format,
            limit=self.limit or _MOST_FILES,
            columns=self.metadata_columns,
        )
        if packing is None:
            packing = _packing_of_suffixes(set(map(suffix_of, listing.files)), self.path)
            self._check_options(packing)
        if packing == "files" and not listing.has_columns:
            self._check_columns()
        if packing == "parquet" and path.is_dir():
            files = tuple(file for file in listing.files if fnmatchcase(file.replace(os.sep, "/"), self.match))
            if not files:
                first = printable(listing.files[0])
                raise InputError(f"{printable(self.path)}: no file fits {self.match!r}, as {first}")
            fewer = len(listing.files) - len(files)
            left_out = {**listing.left_out, f"files that do not fit {self.match}": fewer}
            listing = listing._replace(files=files, left_out=left_out if fewer else listing.left_out)
        return packing, listing

    def open_store(self, medium: Medium) -> Store:
        """List the files, and read the headers of tars or the footers of Parquet files. Raises as `listing` does."""
        packing, listing = self.listing(_SUFFIXES[medium])
        if packing == "tars":
            store: Store = TarStore(listing.root, listing.files, _SUFFIXES[medium], self.member)
        elif packing == "parquet":
            store = ParquetStore(listing.root, listing.files, self.column or _COLUMNS[medium], self.label)
        else:
            return FileStore(listing)
        store.left_out = {**listing.left_out, **store.left_out}
        return store

    def _check_columns(self) -> None:
        """Raise ConfigError where a column is named and loose files have no metadata with columns."""
        columns = self.metadata_columns
        for name, value, default in zip(columns._fields, columns, DEFAULT_COLUMNS, strict=True):
            if value != default:
                what = (
                    f"{name} {value} names a column, and no metadata (.csv or .jsonl with file_name) describe the files"
                )
                raise ConfigError(f"{printable(self.path)}: {what}; leave it out")

    def _check_options(self, packing: Packing) -> None:
        fields = type(self).model_fields
        for other, names in OPTIONS.items():
            foreign = [name for name in names if name not in OPTIONS[packing]]
            wrong = [name for name in foreign if getattr(self, name) != fields[name].default]
            if wrong:
                what = f"{wrong[0]} is an option of {_NAMES[other]}, and these are {_NAMES[packing]}; leave it out"
                raise ConfigError(f"{printable(self.path)}: {what}")


_NAMES: dict[Packing, str] = {"files": "loose files", "tars": "tars", "parquet": "Parquet files"}


def packing_of(path: Path, root: Path | None = None) -> tuple[Packing, set[str]]:
    """Return how the media of `path` are packed, and the suffixes of its files if a folder, list or file had to tell.

    Raises InputError where there is nothing, or files of several packings.
    """
    if path.as_posix().startswith("hf:") or _is_pattern(path):
        return "tars" if _is_pattern(path) else "parquet", set()
    files = list_files(path, tuple(dict.fromkeys((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *_PACKED))), root=root).files
    suffixes = set(map(suffix_of, files))
    return _packing_of_suffixes(suffixes, path), suffixes


def _packing_shown(path: Path) -> Packing | None:
    """Return the packing that a path shows, and None for a folder or list, which must be read to tell."""
    if path.as_posix().startswith("hf:"):
        return "parquet"
    if _is_pattern(path):
        return "tars"
    is_folder = os.path.isdir(path)  # noqa: PTH112 - False where the system refuses the name
    return None if is_folder else _PACKED.get(suffix_of(path.name))


def _is_pattern(path: Path) -> bool:
    return "{" in str(path) and not os.path.lexists(path)


def _packing_of_suffixes(suffixes: set[str], path: Path) -> Packing:
    packed = suffixes & _PACKED.keys()
    if packed and len(suffixes) > 1:
        listed = one_line(" ".join(sorted(suffixes)))
        what = f"holds files of several kinds ({listed}); give those of one kind, or set `packing` in a config"
        raise InputError(f"{printable(path)}: {what}")
    return _PACKED[packed.pop()] if packed else "files"
