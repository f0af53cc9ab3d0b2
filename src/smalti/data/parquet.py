"""Parquet tables of images or videos, as `datasets` writes them: local files, or a data set of the hub."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from smalti.data.source import Classes, Store, number_classes, open_media, raise_listed
from smalti.errors import BadFile, InputError, MachineError, SmaltiError
from smalti.hub import hub_fault, is_hub_fault
from smalti.text import one_line, printable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class _Footer(NamedTuple):
    """The parts of a Parquet file that are read before its media."""

    groups: list[int]
    """Number of rows of each row group."""
    labels: list[str | None]
    names: tuple[str, ...]
    """Names of the classes as `datasets` stores them; empty where it does not."""


HELD = 1 << 28
"""Bytes of cells of a column that are kept; a single cell may have more."""
PACKED = 200
"""Ratio of unpacked to packed bytes of a row group of media above which it is taken for a bomb, if it unpacks to more
than `HELD`: media are packed already, and blank pixels compress to a thirtieth."""
LABELS = 1 << 30
"""Bytes of a column of classes that are read."""
_ROWS = 4
"""Rows that are unpacked at a time: a few bytes of a dictionary can stand for any number of large cells."""


class _Cells:
    """The cells of a row group, unpacked in order and a few at a time; the last ones are kept, up to `HELD` bytes."""

    def __init__(self, path: Path, group: int, column: str) -> None:
        self.path, self.group, self.column = path, group, column
        self.rewind()

    def rewind(self) -> None:
        """Begin at the first row."""
        self.kept: list[pa.Array] = []
        self.starts: list[int] = []
        """First row of each that is kept."""
        self.end = self.bytes = 0
        self.batches = self._unpack()

    def cell(self, row: int) -> Any:
        """Return the cell of a row of the group. Raises what pyarrow raises, BadFile for a bomb."""
        if self.starts and row < self.starts[0]:
            self.rewind()
        while row >= self.end:
            try:
                batch = next(self.batches)
            except StopIteration:
                raise IndexError(f"it ends before its row {row}") from None
            except BaseException:
                self.rewind()  # a generator that has raised is at its end, and the next cell must see the fault too
                raise
            self.kept.append(batch)
            self.starts.append(self.end)
            self.end += len(batch)
            self.bytes += batch.nbytes
            while len(self.kept) > 1 and self.bytes > HELD:
                self.bytes -= self.kept.pop(0).nbytes
                del self.starts[0]
        place = bisect_right(self.starts, row) - 1
        return self.kept[place][row - self.starts[place]].as_py()

    def _unpack(self) -> "Iterator[pa.Array]":
        with _table(self.path) as table:
            packed, unpacked = _declared_bytes(table, self.group, self.column)
            if unpacked > max(HELD, PACKED * packed):
                raise BadFile("", "bomb", f"its row group of {packed:,} bytes declares {unpacked:,} unpacked")
            options: Any = {"row_groups": [self.group], "columns": [self.column], "use_threads": False}
            for batch in table.iter_batches(_ROWS, **options):
                yield batch.column(0)


def _declared_bytes(table: "pq.ParquetFile", group: int, column: str) -> tuple[int, int]:
    """Return the bytes of a column in a row group, packed and unpacked, as the footer declares them."""
    about = table.metadata.row_group(group)
    parts = [about.column(i) for i in range(about.num_columns)]
    own = [part for part in parts if part.path_in_schema.split(".")[0] == column]
    return sum(part.total_compressed_size for part in own), sum(part.total_uncompressed_size for part in own)


class ParquetStore(Store):
    """The cells of one column of Parquet files; a `Store`. The cells read last are kept."""

    def __init__(self, root: Path, files: Sequence[str], column: str, label: str, caption: str | None = None) -> None:
        self.root, self.files, self.column, self.text = root, tuple(files), column, caption
        footers, faults = list[_Footer](), list[str]()
        for file in self.files:
            try:
                footers.append(_read_footer(root / file, column, label, caption))
                if footers[-1].names != footers[0].names:
                    faults.append(f"{printable(root / file)}: its classes are not those of {printable(self.files[0])}")
            except InputError as error:
                faults.append(str(error))
        where = printable(root / self.files[0] if len(self.files) == 1 else root)
        raise_listed(where, "Parquet files", faults)
        groups = [
            (file, group, rows)
            for file, footer in enumerate(footers)
            for group, rows in enumerate(footer.groups)
            if rows
        ]
        if not groups:
            raise InputError(f"{where}: the table has no rows")
        self._groups = np.array(groups, np.int64)
        self._starts = np.cumsum(self._groups[:, 2]) - self._groups[:, 2]
        self._kept: dict[str, tuple[int, _Cells]] = {}
        labels = [label for footer in footers for label in footer.labels]
        classes, names = number_classes(labels, where=where, name_of=self.key), footers[0].names
        if classes.labels is not None and len(names) >= len(classes.names):
            super().__init__(Classes(classes.labels, names), numbered=all(map(str.isdigit, classes.names)))
        else:
            super().__init__(classes)

    def __len__(self) -> int:
        return int(self._starts[-1] + self._groups[-1, 2])

    def key(self, index: int) -> str:
        """Return `file/row`, on one line; rows of a file count from 0."""
        file, row = self._find(index)
        return f"{printable(self.files[file])}/{row}"

    def where(self, index: int) -> str:
        """Return the path of the file, and the row in it."""
        file, row = self._find(index)
        return f"{printable(self.root / self.files[file])} row {row}"

    def caption(self, index: int) -> str | None:
        """Read the text in the column of captions; None where there is none. Raises BadFile."""
        cell = None if self.text is None else self._cell(index, self.text)
        return cell if cell is None or isinstance(cell, str) else str(cell)

    def media(self, index: int) -> bytes:
        """Read the bytes of a cell, and its row group with it. Raises BadFile."""
        cell = self._cell(index, self.column)
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if not data:
            what = f"the row has no bytes{f', only the path {one_line(path)}' if path else ''}; embed the files"
            raise BadFile(self.where(index), "empty", what)
        return bytes(data)

    def _cell(self, index: int, column: str) -> Any:
        place = self._place(index)
        try:
            return self._row_group(place, column).cell(int(index - self._starts[place]))
        except BadFile as bad:
            raise BadFile(self.where(index), bad.code, bad.message) from None
        except MemoryError:
            raise BadFile(self.where(index), "memory", "needs more memory to unpack than there is") from None
        except Exception as error:  # damaged pages raise OSError, ArrowException, UnicodeDecodeError, IndexError, ...
            what = f"its row group cannot be read ({one_line(error)}); copy the file again"
            raise BadFile(self.where(index), "corrupt", what) from None

    def _row_group(self, place: int, column: str) -> _Cells:
        if column not in self._kept or self._kept[column][0] != place:
            file, group, _ = self._groups[place].tolist()
            self._kept[column] = place, _Cells(self.root / self.files[file], group, column)
        return self._kept[column][1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # another process opens the files itself

    def _place(self, index: int) -> int:
        """Return the row group of a sample, counted over all files."""
        return int(np.searchsorted(self._starts, index, "right")) - 1

    def _find(self, index: int) -> tuple[int, int]:
        """Return (file, row in the file) of a sample."""
        file = int(self._groups[self._place(index), 0])
        return file, index - int(self._starts[np.searchsorted(self._groups[:, 0], file)])


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file. Raises InputError where it is none."""
    with _open(path) as table:
        return list(table.schema_arrow.names)


def _table(path: Path, texts: Sequence[str] = ()) -> "pq.ParquetFile":
    """Open a Parquet file; `texts` are columns of which each text is kept once.

    Raises BadFile where it has no bytes, MachineError where pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MachineError("Parquet needs pyarrow, which is not installed: pip install 'smalti[parquet]'") from None
    open_media(path).close()  # the checks that all media share
    return pq.ParquetFile(
        path, read_dictionary=list(texts), pre_buffer=False
    )  # no threads of its own: forked readers would lack them


@contextmanager
def _open(path: Path) -> Iterator["pq.ParquetFile"]:
    """Open a Parquet file and turn each of its faults into an InputError."""
    try:
        with _table(path) as table:
            yield table
    except SmaltiError:
        raise
    except Exception as error:  # damaged files raise ArrowException, OSError, UnicodeDecodeError, KeyError, ...
        raise InputError(f"{printable(path)}: no whole Parquet file: {one_line(error)}") from None


def _read_footer(path: Path, column: str, label: str, caption: str | None) -> _Footer:
    """Read and check the footer of a file and its column of classes. Raises InputError."""
    with _open(path) as table:
        schema, where = table.schema_arrow, printable(path)
        _check_column(schema, column, where)
        groups = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        if label != "label" and label not in schema.names:
            raise InputError(f"{where}: no column {label!r} (there are: {_listed(schema.names)}); set `label`")
        if caption is not None and caption not in schema.names:
            raise InputError(f"{where}: no column {caption!r} (there are: {_listed(schema.names)}); set `caption`")
        labels = _labels(table, path, label)
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


def _labels(table: "pq.ParquetFile", path: Path, label: str) -> list[str | None]:
    """Read the class of each row, None where there is none: no column, an empty cell, or -1 (hidden test sets)."""
    import pyarrow.types as kinds

    if label not in table.schema_arrow.names:
        return [None] * table.metadata.num_rows
    kind, where = table.schema_arrow.field(label).type, printable(path)
    inner = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (kinds.is_integer(inner) or kinds.is_string(inner) or kinds.is_large_string(inner)):
        raise InputError(f"{where}: column {label!r} holds {one_line(kind)}, not whole numbers or names; set `label`")
    unpacked = sum(_declared_bytes(table, group, label)[1] for group in range(table.num_row_groups))
    if unpacked > LABELS:
        raise InputError(f"{where}: column {label!r} declares {unpacked:,} bytes of classes; set `label`")
    classes = list[str | None]()
    with _table(path, [] if kinds.is_integer(inner) else [label]) as texts:
        parts = texts.read([label], use_threads=False)[label].chunks
    for part in parts:
        if kinds.is_dictionary(part.type):  # its texts once, however often they occur
            names = [_class_of(name) for name in part.dictionary.to_pylist()]
            classes += [None if place is None else names[place] for place in part.indices.to_pylist()]
        else:
            classes += map(_class_of, part.to_pylist())
    return classes


def _class_of(cell: object) -> str | None:
    return None if cell in (None, -1, "") else str(cell)


def _class_names(schema: "pa.Schema", label: str) -> tuple[str, ...]:
    """Return the names that `datasets` keeps beside the table; empty where there are none."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _listed(names: Sequence[str]) -> str:
    return one_line(", ".join(names))


def download_from_hub(name: str, match: str, revision: str | None) -> Path:
    """Download a data set of the hub, once into its cache, and return its folder. Raises InputError, MachineError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[match])
    except HFValidationError:
        raise InputError(f"hf:{name}: not the name of a data set of the hub, as in hf:owner/name") from None
    except Exception as error:
        if not is_hub_fault(error):
            raise
        raise MachineError(f"hf:{name}: not in the cache, and the hub {hub_fault(error)}") from None
    return Path(folder)
