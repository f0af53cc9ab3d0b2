"""Parquet tables of pictures or videos, as `datasets` writes them: local files, or a data set of the hub."""

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from smalti.config import Config, PathField
from smalti.data.annotations import number_classes
from smalti.data.clips import ClipConfig
from smalti.data.crop import ViewConfig
from smalti.data.images import Images
from smalti.data.lists import list_files
from smalti.data.source import one_line, printable, refuse
from smalti.data.videos import Videos
from smalti.errors import BadFile, EnvironmentFault, InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class ParquetRows:
    """The cells of one column of Parquet files; a `Store`. The row group read last is kept."""

    def __init__(self, root: Path, files: Sequence[str], column: str, label: str, caption: str | None = None) -> None:
        self.root, self.files, self.column, self.text = root, tuple(files), column, caption
        groups, labels, faults = list[tuple[int, int, int]](), list[Any](), list[str]()
        names: tuple[str, ...] = ()
        for number, file in enumerate(self.files):
            try:
                with _open(root / file) as table:
                    _check(table.schema_arrow, column)
                    if caption is not None and caption not in table.schema_arrow.names:
                        raise InputError(f"{printable(root / file)}: no column {caption!r}; set `caption`")
                    sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
                    found = _labels(table, label)
                    names = names or _class_names(table.schema_arrow, label)
            except InputError as error:
                faults.append(str(error))
                continue
            groups += [(number, group, size) for group, size in enumerate(sizes)]
            labels += found
        where = printable(root / self.files[0] if len(self.files) == 1 else root)
        unlabelled = sum(one is None for one in labels)
        if 0 < unlabelled < len(labels) and not faults:
            faults.append(f"{unlabelled} of {len(labels)} rows have no class, the first is row {labels.index(None)}")
        refuse(where, "files", faults)
        if not labels:
            raise InputError(f"{where}: the table has no rows")
        self._groups = np.array(groups, np.int64)
        self._starts = np.cumsum(self._groups[:, 2]) - self._groups[:, 2]
        self.numbered = all(isinstance(one, int) for one in labels)
        """Whether classes are whole numbers, which mean the same in every file."""
        self._labels: tuple[int, ...] | None = None
        self._classes: tuple[str, ...] = ()
        if not unlabelled:
            self._labels, self._classes = number_classes([str(one) for one in labels], where=where)
            self._classes = names if len(names) >= len(self._classes) else self._classes
        self._kept: dict[str, tuple[int, pa.ChunkedArray]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1] + self._groups[-1, 2])

    def key(self, index: int) -> str:
        """`file/row`, on one line; rows of a file count from 0."""
        file, _, row = self._find(index)
        return f"{printable(self.files[file])}/{row}"

    def where(self, index: int) -> str:
        """The path of the file, and the row in it."""
        file, _, row = self._find(index)
        return f"{printable(self.root / self.files[file])} row {row}"

    def label(self, index: int) -> int | None:
        """The class of a sample, an index into `classes`."""
        return None if self._labels is None else self._labels[index]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self._classes

    def caption(self, index: int) -> str | None:
        """The text in the column of captions, None where there is none. Raises BadFile."""
        cell = None if self.text is None else self._cell(index, self.text)
        return cell if cell is None or isinstance(cell, str) else str(cell)

    def media(self, index: int) -> bytes:
        """The bytes of a cell; its row group is read. Raises BadFile."""
        cell = self._cell(index, self.column)
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not data:
            path = cell.get("path") if isinstance(cell, dict) else None
            what = f"the row has no bytes{f', only the path {printable(path)}' if path else ''}; embed the files"
            raise BadFile(self.where(index), "empty", what)
        return bytes(data)

    def _cell(self, index: int, column: str) -> Any:
        file, place, _ = self._find(index)
        if column not in self._kept or self._kept[column][0] != place:
            try:
                with _open(self.root / self.files[file]) as table:
                    group = int(self._groups[place, 1])
                    self._kept[column] = place, table.read_row_group(group, [column], use_threads=False)[column]
            except Exception as error:  # damaged pages raise OSError, ArrowException, ValueError, ...
                what = f"its row group cannot be read ({one_line(error)}); copy the file again"
                raise BadFile(self.where(index), "corrupt", what) from None
        return self._kept[column][1][int(index - self._starts[place])].as_py()

    def _find(self, index: int) -> tuple[int, int, int]:
        """(file, place of its row group in the index, row in the file)."""
        place = int(np.searchsorted(self._starts, index, "right")) - 1
        while not self._groups[place, 2]:  # empty groups start where the next one does
            place -= 1
        file = int(self._groups[place, 0])
        first = int(self._starts[np.searchsorted(self._groups[:, 0], file)])
        return file, place, index - first


def _open(path: Path) -> "pq.ParquetFile":
    """Raises InputError where it is no whole Parquet file, EnvironmentFault where pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise EnvironmentFault("Parquet needs pyarrow, which is not installed: pip install 'smalti[parquet]'") from None
    try:
        return pq.ParquetFile(path, pre_buffer=False)  # one thread: threads do not live on in forked readers
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{printable(path)}: no whole Parquet file: {one_line(error)}") from None


def _check(schema: "pa.Schema", column: str) -> None:
    import pyarrow.types as kinds

    if column not in schema.names:
        raise InputError(f"no column {column!r} (there are: {', '.join(schema.names)}); set `column`")
    kind = schema.field(column).type
    inner = kind.field("bytes").type if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (kinds.is_binary(inner) or kinds.is_large_binary(inner)):
        raise InputError(f"column {column!r} holds {one_line(kind)}, not bytes or {{bytes, path}}; set `column`")


def _labels(table: "pq.ParquetFile", label: str) -> list[Any]:
    """The class of each row, None where there is none: no column, an empty cell, or -1 (as in hidden test sets)."""
    import pyarrow.types as kinds

    if label not in table.schema_arrow.names:
        if label != "label":
            raise InputError(f"no column {label!r} (there are: {', '.join(table.schema_arrow.names)}); set `label`")
        return [None] * table.metadata.num_rows
    kind = table.schema_arrow.field(label).type
    if not (kinds.is_integer(kind) or kinds.is_string(kind) or kinds.is_large_string(kind)):
        raise InputError(f"column {label!r} holds {one_line(kind)}, not whole numbers or names; set `label`")
    cells = table.read([label], use_threads=False)[label].to_pylist()
    return [None if cell in (None, -1, "") else cell for cell in cells]


def _class_names(schema: "pa.Schema", label: str) -> tuple[str, ...]:
    """The names that `datasets` keeps beside the table; empty where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _from_hub(name: str, match: str, revision: str | None) -> Path:
    """The folder of a data set of the hub, downloaded once into its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[match])
    except HFValidationError:
        raise InputError(f"hf:{name}: not the name of a data set of the hub, as in hf:owner/name") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise EnvironmentFault(f"hf:{name}: the hub did not give it: {one_line(error)}") from None
    return Path(folder)


class ParquetConfig(Config):
    """Which Parquet files a source has. Needs `pip install 'smalti[parquet]'`."""

    kind: str
    path: PathField
    """A .parquet file, a folder of them (searched to the bottom), or `hf:owner/name`, a data set of the hub."""
    match: str = "*.parquet"
    """Of a folder, the files whose path below it fits this pattern, as `data/train-*.parquet`."""
    revision: str | None = None
    """Of a data set of the hub: a branch, tag or commit."""
    label: str = "label"
    """The column of classes, whole numbers or names."""
    limit: int = Field(default=1_000_000, ge=1)
    """At most this many Parquet files are listed."""

    def tables(self) -> tuple[Path, tuple[str, ...]]:
        """(folder, Parquet files below it), downloaded if they are on the hub. Raises InputError where none fits."""
        text = self.path.as_posix()
        path = _from_hub(text[3:], self.match, self.revision) if text.startswith("hf:") else self.path
        listing = list_files(path, (".parquet",), limit=self.limit)
        files = [
            file for file in listing.files if not path.is_dir() or fnmatchcase(file.replace(os.sep, "/"), self.match)
        ]
        if not files:
            raise InputError(f"{printable(self.path)}: no file fits {self.match!r}, as {printable(listing.files[0])}")
        return listing.root, tuple(files)

    def rows(self, column: str) -> ParquetRows:
        """Read the footers and the classes. Raises InputError with the faults of each file."""
        root, files = self.tables()
        return ParquetRows(root, files, column, self.label)


class ParquetImagesConfig(ViewConfig, ParquetConfig):
    """Pictures in Parquet files, each a sample of one frame."""

    kind: Literal["parquet-images"] = "parquet-images"
    column: str = "image"
    """The column of pictures: bytes, or {bytes, path}."""

    def build(self) -> Images:
        """Read the footers and the classes. Raises InputError with the faults of each file."""
        return Images(self, self.rows(self.column))


class ParquetVideosConfig(ClipConfig, ParquetConfig):
    """Videos in Parquet files, each a sample of one clip."""

    kind: Literal["parquet-videos"] = "parquet-videos"
    column: str = "video"
    """The column of videos: bytes, or {bytes, path}."""

    def build(self) -> Videos:
        """Read the footers and the classes. Raises InputError with the faults of each file."""
        return Videos(self, self.rows(self.column))
