"""Parquet tables of pictures or videos, as `datasets` writes them: local files, or a data set of the hub."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from smalti.config import Config, PathField
from smalti.data.classes import Classed, Classes, number_classes
from smalti.data.clips import ClipConfig
from smalti.data.images import Images
from smalti.data.lists import list_files
from smalti.data.source import open_media, refuse
from smalti.data.videos import Videos
from smalti.data.views import ViewConfig
from smalti.errors import BadFile, InputError, MachineError, SmaltiError
from smalti.text import one_line, printable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class _Footer(NamedTuple):
    """What is known of a Parquet file before its media are read."""

    groups: list[int]
    """Rows of each row group."""
    labels: list[str | None]
    names: tuple[str, ...]
    """What `datasets` calls the classes; empty where it does not say."""


class ParquetRows(Classed):
    """The cells of one column of Parquet files; a `Store`. The row group read last is kept."""

    def __init__(self, root: Path, files: Sequence[str], column: str, label: str, caption: str | None = None) -> None:
        self.root, self.files, self.column, self.text = root, tuple(files), column, caption
        found, faults = list[_Footer](), list[str]()
        for file in self.files:
            try:
                found.append(_read_footer(root / file, column, label, caption))
                if found[-1].names != found[0].names:
                    faults.append(f"{printable(root / file)}: its classes are not those of {printable(self.files[0])}")
            except InputError as error:
                faults.append(str(error))
        where = printable(root / self.files[0] if len(self.files) == 1 else root)
        refuse(where, "Parquet files", faults)
        groups = [
            (file, group, rows) for file, one in enumerate(found) for group, rows in enumerate(one.groups) if rows
        ]
        if not groups:
            raise InputError(f"{where}: the table has no rows")
        self._groups = np.array(groups, np.int64)
        self._starts = np.cumsum(self._groups[:, 2]) - self._groups[:, 2]
        self._kept: dict[str, tuple[int, pa.ChunkedArray]] = {}
        labels = [label for one in found for label in one.labels]
        classes, names = number_classes(labels, where=where, named=self.key), found[0].names
        if classes.labels is not None and len(names) >= len(classes.names):
            super().__init__(Classes(classes.labels, names), numbered=all(map(str.isdigit, classes.names)))
        else:
            super().__init__(classes)

    def __len__(self) -> int:
        return int(self._starts[-1] + self._groups[-1, 2])

    def key(self, index: int) -> str:
        """`file/row`, on one line; rows of a file count from 0."""
        file, row = self._find(index)
        return f"{printable(self.files[file])}/{row}"

    def where(self, index: int) -> str:
        """The path of the file, and the row in it."""
        file, row = self._find(index)
        return f"{printable(self.root / self.files[file])} row {row}"

    def caption(self, index: int) -> str | None:
        """The text in the column of captions, None where there is none. Raises BadFile."""
        cell = None if self.text is None else self._cell(index, self.text)
        return cell if cell is None or isinstance(cell, str) else str(cell)

    def media(self, index: int) -> bytes:
        """The bytes of a cell; its row group is read. Raises BadFile."""
        cell = self._cell(index, self.column)
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if not data:
            what = f"the row has no bytes{f', only the path {one_line(path)}' if path else ''}; embed the files"
            raise BadFile(self.where(index), "empty", what)
        return bytes(data)

    def _cell(self, index: int, column: str) -> Any:
        place = self._place(index)
        try:
            return self._row_group(place, column)[int(index - self._starts[place])].as_py()
        except BadFile:
            raise
        except Exception as error:  # damaged pages raise OSError, ArrowException, UnicodeDecodeError, IndexError, ...
            what = f"its row group cannot be read ({one_line(error)}); copy the file again"
            raise BadFile(self.where(index), "corrupt", what) from None

    def _row_group(self, place: int, column: str) -> "pa.ChunkedArray":
        if column not in self._kept or self._kept[column][0] != place:
            file, group, _ = self._groups[place].tolist()
            with _table(self.root / self.files[file]) as table:
                self._kept[column] = place, table.read_row_group(group, [column], use_threads=False)[column]
        return self._kept[column][1]

    def _place(self, index: int) -> int:
        """The row group of a sample, counted over all files."""
        return int(np.searchsorted(self._starts, index, "right")) - 1

    def _find(self, index: int) -> tuple[int, int]:
        """(file, row in the file) of a sample."""
        file = int(self._groups[self._place(index), 0])
        return file, index - int(self._starts[np.searchsorted(self._groups[:, 0], file)])


def column_names(path: Path) -> list[str]:
    """The names of the columns of a Parquet file. Raises InputError where it is none."""
    with _open(path) as table:
        return list(table.schema_arrow.names)


def _table(path: Path) -> "pq.ParquetFile":
    """Raises BadFile where it is no file with bytes, MachineError where pyarrow is not installed."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MachineError("Parquet needs pyarrow, which is not installed: pip install 'smalti[parquet]'") from None
    open_media(path).close()  # the checks that all media share
    return pq.ParquetFile(path, pre_buffer=False)  # no threads of its own: forked readers would lack them


@contextmanager
def _open(path: Path) -> Iterator["pq.ParquetFile"]:
    """A Parquet file whose every fault is an InputError."""
    try:
        with _table(path) as table:
            yield table
    except SmaltiError:
        raise
    except Exception as error:  # damaged files raise ArrowException, OSError, UnicodeDecodeError, KeyError, ...
        raise InputError(f"{printable(path)}: no whole Parquet file: {one_line(error)}") from None


def _read_footer(path: Path, column: str, label: str, caption: str | None) -> _Footer:
    """The footer of a file and its column of classes, checked. Raises InputError."""
    with _open(path) as table:
        schema, where = table.schema_arrow, printable(path)
        _check_column(schema, column, where)
        groups = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        if label != "label" and label not in schema.names:
            raise InputError(f"{where}: no column {label!r} (there are: {_listed(schema.names)}); set `label`")
        if caption is not None and caption not in schema.names:
            raise InputError(f"{where}: no column {caption!r} (there are: {_listed(schema.names)}); set `caption`")
        labels = _labels(table, label, where)
        if min(groups, default=0) < 0 or sum(groups) != len(labels):
            raise InputError(
                f"{where}: has {len(labels):,} rows by one count, {sum(groups):,} by another; write it anew"
            )
        return _Footer(groups, labels, _class_names(schema, label))


def _check_column(schema: "pa.Schema", column: str, where: str) -> None:
    import pyarrow.types as kinds

    if schema.names.count(column) != 1:
        raise InputError(f"{where}: no column {column!r} (there are: {_listed(schema.names)}); set `column`")
    kind = schema.field(column).type
    inner = kind.field("bytes").type if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (kinds.is_binary(inner) or kinds.is_large_binary(inner)):
        what = f"column {column!r} holds {one_line(kind)}, not bytes or {{bytes, path}}; set `column`"
        raise InputError(f"{where}: {what}")


def _labels(table: "pq.ParquetFile", label: str, where: str) -> list[str | None]:
    """The class of each row, None where there is none: no column, an empty cell, or -1 (as in hidden test sets)."""
    import pyarrow.types as kinds

    if label not in table.schema_arrow.names:
        return [None] * table.metadata.num_rows
    kind = table.schema_arrow.field(label).type
    inner = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (kinds.is_integer(inner) or kinds.is_string(inner) or kinds.is_large_string(inner)):
        raise InputError(f"{where}: column {label!r} holds {one_line(kind)}, not whole numbers or names; set `label`")
    cells = table.read([label], use_threads=False)[label].to_pylist()
    return [None if cell in (None, -1, "") else str(cell) for cell in cells]


def _class_names(schema: "pa.Schema", label: str) -> tuple[str, ...]:
    """The names that `datasets` keeps beside the table; empty where there are none."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _listed(names: Sequence[str]) -> str:
    return one_line(", ".join(names))


def _from_hub(name: str, match: str, revision: str | None) -> Path:
    """The folder of a data set of the hub, downloaded once into its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[match])
    except HFValidationError:
        raise InputError(f"hf:{name}: not the name of a data set of the hub, as in hf:owner/name") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MachineError(f"hf:{name}: the hub did not give it: {one_line(error)}") from None
    return Path(folder)


class ParquetConfig(Config):
    """Which Parquet files a source has. Needs `pip install 'smalti[parquet]'`."""

    kind: str
    path: PathField
    """A .parquet file, a folder of them (searched to the bottom), or `hf:owner/name`, a data set of the hub."""
    match: str = "*.parquet"
    """Pattern of the files of a folder, by their path below it, as `data/train-*.parquet`."""
    revision: str | None = None
    """Branch, tag or commit of a data set of the hub."""
    label: str = "label"
    """Column of classes, whole numbers or names."""
    limit: int = Field(default=1_000_000, ge=1)
    """Largest number of Parquet files that are listed."""

    def files(self) -> tuple[Path, tuple[str, ...]]:
        """(folder, Parquet files below it); a data set of the hub is downloaded. Raises InputError."""
        text = self.path.as_posix()
        path = _from_hub(text[3:], self.match, self.revision) if text.startswith("hf:") else self.path
        root, files, *_ = list_files(path, (".parquet",), limit=self.limit)
        if not path.is_dir():
            return root, files
        fitting = tuple(file for file in files if fnmatchcase(file.replace(os.sep, "/"), self.match))
        if not fitting:
            raise InputError(f"{printable(self.path)}: no file fits {self.match!r}, as {printable(files[0])}")
        return root, fitting

    def rows(self, column: str) -> ParquetRows:
        """Read the footers and the classes. Raises InputError with the faults of each file."""
        return ParquetRows(*self.files(), column, self.label)


class ParquetImagesConfig(ViewConfig, ParquetConfig):
    """Pictures in Parquet files, each a sample of one frame."""

    kind: Literal["parquet-images"] = "parquet-images"
    column: str = "image"
    """Column of images: bytes, or {bytes, path}."""

    def build(self) -> Images:
        """Read the footers and the classes. Raises InputError with the faults of each file."""
        return Images(self, self.rows(self.column))


class ParquetVideosConfig(ClipConfig, ParquetConfig):
    """Videos in Parquet files, each a sample of one clip."""

    kind: Literal["parquet-videos"] = "parquet-videos"
    column: str = "video"
    """Column of videos: bytes, or {bytes, path}."""

    def build(self) -> Videos:
        """Read the footers and the classes. Raises InputError with the faults of each file."""
        return Videos(self, self.rows(self.column))
