"""List files: one path per line, and the formats of ImageNet, K600, UCF-101, mindone and ImageFolder, read strictly."""

import csv
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from smalti.data.metadata import DEFAULT_COLUMNS, MetadataColumns, read_metadata
from smalti.data.source import NO_CLASSES, NOTHING_LEFT_OUT, Classes, number_classes, raise_listed, suffix_of
from smalti.errors import InputError
from smalti.files import unique_keys
from smalti.text import one_line, printable

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".json", ".jsonl")

ListFormat = Literal["auto", "list", "imagenet-json", "k600", "ucf101", "mindone-csv", "metadata"]

_UCF101 = re.compile(r"(([^/\s]+)/(v_[^/\s]+_g\d\d_c\d\d\.avi))(?: (\d{1,6}))?")
_UCF101_FOLDERS = ("", "rec_train", "rec_test")
"""Where the files are if they were moved out of their class folders: mindone's helper makes the last two."""
_NO_CSV = " is no line of CSV; correct its quotes"


class Listing(NamedTuple):
    """The files of a source: `root / files[i]` is file i."""

    root: Path
    files: tuple[str, ...]
    """Paths relative to the root, as the operating system gives them."""
    classes: Classes = NO_CLASSES
    captions: tuple[str | None, ...] | None = None
    """Text that goes with each file, None where there is none; None where the list has no texts at all."""
    has_columns: bool = False
    """Whether metadata with columns describe the files."""
    left_out: Mapping[str, int] = NOTHING_LEFT_OUT
    """Number of files that are there and are not listed, by the reason."""


class _List(NamedTuple):
    """The text of a list file."""

    path: Path
    root: Path
    text: str
    columns: MetadataColumns = DEFAULT_COLUMNS

    def lines(self) -> list[str]:
        lines = re.split("\r\n|\n|\r", self.text)
        return lines if lines[-1] else lines[:-1]


class _Row(NamedTuple):
    number: int
    """Number of the row, from 1."""
    name: str
    """Path of the file; empty for a blank row."""
    label: str | None = None
    fault: str = ""
    """Reason why the row cannot be used, written so that it follows `row 3`; empty for a good row."""
    caption: str | None = None


class _Rows(NamedTuple):
    """The rows of a list file, before they are checked."""

    rows: list[_Row]
    classes: tuple[str, ...] | None = None
    """Names of the classes, where the format has them: labels are then numbers from 0."""
    unit: Literal["row", "entry"] = "row"


def read_list(
    path: Path,
    root: Path | None = None,
    *,
    format: ListFormat = "auto",
    limit: int = 20_000_000,
    columns: MetadataColumns = DEFAULT_COLUMNS,
) -> Listing:
    """Read the files that a list names, relative to `root` or else to the folder of the list.

    - `list`: one path per line, with a class after a comma or tab if the list has classes; a first row `path,label`
      is a header; quotes work as in CSV.
    - `imagenet-json`: MagicMaster's `ImageNet_train.json`, a list of {filename, prefix, label}.
    - `k600`: MagicMaster's `train_new.txt`, `name,class`, cut at the last comma; a name without suffix is an `.mp4`.
    - `ucf101`: the official `trainlist01.txt` (`Class/v_Class_g08_c01.avi 1`) and `testlist01.txt` (no number), with
      the classes of the `classInd.txt` beside them. Files that were moved out of their class folders are found in the
      root, and in its `rec_train` and `rec_test`.
    - `mindone-csv`: a header row, then the path in the first column; the others are ignored, and there are no classes.
    - `metadata`: a CSV with a header, or JSON lines (`.jsonl`), with the path in the column `file_name`, and class and
      caption in those that `columns` names, as in Hugging Face's ImageFolder.

    `auto` takes `.json` for `imagenet-json`, `.jsonl` and a `.csv` whose header has `file_name` for `metadata`, a list
    whose first row is as in UCF-101's for `ucf101`, all else for `list`. Classes that are whole numbers keep them
    (UCF-101's count from 0 here), names are numbered in byte order.
    Absolute paths are taken as they are.

    Raises InputError with the number of every row that is blank, malformed, doubled, without its file, or with a
    class where others have none: a list is never read in part.
    """
    file = _List(path, root or path.parent, read_text(path), columns)
    format = _detect_format(file) if format == "auto" else format
    read, has_columns = _READERS[format](file), format == "metadata"
    where = printable(path)
    if len(read.rows) > limit:
        raise InputError(f"{where}: {len(read.rows):,} rows, at most {limit:,} are read; raise `limit`, or cut it")
    raise_listed(where, "rows" if read.unit == "row" else "entries", _faults(read, file.root))
    if not read.rows:
        raise InputError(f"{where}: the list names no files")
    files = tuple(row.name for row in read.rows)
    labels = [row.label for row in read.rows]
    captions = tuple(row.caption for row in read.rows) if any(row.caption for row in read.rows) else None
    if read.classes is None:
        return Listing(file.root, files, number_classes(labels, where=where), captions, has_columns)
    return Listing(file.root, files, Classes(tuple(int(label or 0) for label in labels), read.classes), captions)


def _faults(read: _Rows, root: Path) -> list[str]:
    faults, numbers = [], dict[str, int]()
    first = next((row for row in read.rows if row.name and not row.fault), None)
    for row in read.rows:
        which = f"{read.unit} {row.number}"
        if row.fault:
            faults.append(f"{which}{row.fault}")
        elif not row.name:
            faults.append(f"{which} is blank")
        elif row.name in numbers:
            faults.append(f"{which} repeats {read.unit} {numbers[row.name]} ({printable(row.name)})")
        elif not os.path.lexists(root / row.name):
            faults.append(f"{which}: no such file {printable(root / row.name)}")
        elif row.label == "":
            faults.append(f"{which} has an empty class")
        elif first is not None and (row.label is None) != (first.label is None):
            faults.append(f"{which} has {'a' if row.label else 'no'} class, unlike {read.unit} {first.number}")
        numbers.setdefault(row.name, row.number)
    return faults


def _detect_format(file: _List) -> ListFormat:
    suffix = file.path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        return "metadata" if suffix == ".jsonl" else "imagenet-json"
    if suffix == ".csv" and "file_name" in (_fields("".join(file.lines()[:1])) or ()):
        return "metadata"
    first = re.search(r"[^\r\n]*\S[^\r\n]*", file.text)
    return "ucf101" if first and _UCF101.fullmatch(first[0].strip()) else "list"


def read_text(path: Path) -> str:
    """Read a list file; bytes that are no UTF-8 stay as surrogates. Raises InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {one_line(error.strerror)}; check its rights") from None


def _fields(line: str, delimiter: str = ",") -> list[str] | None:
    """Split a line of CSV; None where it is none. Blanks around a field count only inside quotes."""
    try:
        line = line.strip(" ")
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return None


def _plain(file: _List) -> _Rows:
    rows = []
    for number, line in enumerate(file.lines(), start=1):
        fields = _fields(line, "\t" if "\t" in re.sub('"[^"]*"', "", line) else ",")
        if number == 1 and fields and [f.lower() for f in fields] in (["path"], ["path", "label"]):
            continue
        if fields is None:
            rows.append(_Row(number, "", fault=_NO_CSV))
        elif len(fields) > 2:
            what = f" has {len(fields)} fields, not path and class; put a name with commas in quotes, or set format"
            rows.append(_Row(number, "", fault=what))
        else:
            rows.append(_Row(number, *(fields or [""])))
    return _Rows(rows)


def _k600(file: _List) -> _Rows:
    rows = []
    for number, line in enumerate(map(str.strip, file.lines()), start=1):
        name, _, label = line.rpartition(",")
        if line and not (name and label):
            rows.append(_Row(number, "", fault=f" is not name,class but {printable(line)[:80]}"))
        else:
            name = name if suffix_of(name) or not name else f"{name}.mp4"
            rows.append(_Row(number, name, label.strip()))
    return _Rows(rows)


def _mindone_csv(file: _List) -> _Rows:
    lines = file.lines()
    header = _fields(lines[0]) if lines else ["path"]
    if not header or suffix_of(header[0]) or os.path.isfile(file.root / header[0]):  # noqa: PTH113
        what = "row 1 is no header row (format mindone-csv); add one, or set format: list"
        raise InputError(f"{printable(file.path)}: {what}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = _fields(line)
        rows.append(_Row(number, fields[0] if fields else "", fault=_NO_CSV if fields is None else ""))
    return _Rows(rows)


def _metadata(file: _List) -> _Rows:
    rows = read_metadata(file.path, file.text, file.columns)
    if rows is None:
        raise InputError(f"{printable(file.path)}: no column file_name (format metadata); name the column of paths so")
    return _Rows([_Row(row.number, row.name, row.label, row.fault, row.caption) for row in rows])


def _imagenet_json(file: _List) -> _Rows:
    try:
        data = json.loads(file.text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(file.path)}: not valid JSON: {one_line(error)}") from None
    if not isinstance(data, list):
        what = "holds no list of {filename, prefix, label} (format imagenet-json)"
        raise InputError(f"{printable(file.path)}: {what}")
    return _Rows([_imagenet_entry(i, entry) for i, entry in enumerate(data, start=1)], unit="entry")


def _imagenet_entry(number: int, entry: object) -> _Row:
    if not isinstance(entry, dict):
        return _Row(number, "", fault=" is no {filename, prefix, label}")
    filename, prefix, label = (entry.get(name) for name in ("filename", "prefix", "label"))
    if not isinstance(filename, str) or not filename:
        return _Row(number, "", fault=" has no filename")
    if not isinstance(prefix, str):
        return _Row(number, "", fault=' has no prefix ("" if the file is in the root)')
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        return _Row(number, "", fault=f" has no whole number as label (found {printable(repr(label))[:40]})")
    return _Row(number, os.path.join(prefix, filename), str(label))  # noqa: PTH118


class _ClassNumbers(NamedTuple):
    """The classes of UCF-101 and their numbers, from 1: those of `classInd.txt`, or those of the rows so far."""

    official: Path | None
    number: dict[str, int]
    name: dict[int, str]

    def of(self, name: str, stated: int | None) -> tuple[int | None, str]:
        """Return (number of a class, fault) for a row that may give its number."""
        if self.official is not None:
            number = self.number.get(name)
            if number is None:
                return None, f": class {printable(name)} is not in {printable(self.official)}"
            wrong = stated not in (None, number)
            return number, f": class {stated} in the row, {number} in {printable(self.official)}" if wrong else ""
        if stated is None or stated == 0:
            return None, "" if stated is None else ": classes count from 1"
        known, holder = self.number.setdefault(name, stated), self.name.setdefault(stated, name)
        wrong = known != stated or holder != name
        return stated, f": class {stated} of {printable(name)} contradicts a row above" if wrong else ""


def _ucf101(file: _List) -> _Rows:
    index = file.path.parent / "classInd.txt"
    numbers = _class_index(index) if index.is_file() else _ClassNumbers(None, {}, {})
    rows = []
    for number, line in enumerate(map(str.strip, file.lines()), start=1):
        match = _UCF101.fullmatch(line)
        if match is None:
            what = ": not Class/v_Class_g01_c01.avi, as UCF-101 has it; correct it, or set format: list"
            rows.append(_Row(number, "", fault=what if line else ""))
            continue
        nested, folder, bare, stated = match.groups()
        places = (nested, *(os.path.join(moved, bare) for moved in _UCF101_FOLDERS))  # noqa: PTH118
        name = next((place for place in places if os.path.lexists(file.root / place)), nested)
        label, fault = numbers.of(folder, int(stated) if stated else None)
        rows.append(_Row(number, name, None if label is None else str(label - 1), fault))
    if not numbers.name:
        return _Rows(rows)
    return _Rows(rows, tuple(numbers.name.get(i, str(i)) for i in range(1, max(numbers.name) + 1)))


def _class_index(path: Path) -> _ClassNumbers:
    """Read `classInd.txt`: the numbers 1, 2, 3, ..., each with a class."""
    numbers = _ClassNumbers(path, {}, {})
    for number, line in enumerate(_List(path, path.parent, read_text(path)).lines(), start=1):
        parts = line.split()
        if len(parts) != 2 or parts[0] != str(number) or parts[1] in numbers.number:
            raise InputError(f"{printable(path)}: row {number} is not `{number} Class`; take the official file")
        numbers.number[parts[1]], numbers.name[number] = number, parts[1]
    return numbers


_READERS: dict[ListFormat, Callable[[_List], _Rows]] = {
    "list": _plain,
    "imagenet-json": _imagenet_json,
    "k600": _k600,
    "ucf101": _ucf101,
    "mindone-csv": _mindone_csv,
    "metadata": _metadata,
}
