"""List files: one path per line, and the annotation formats of ImageNet, K600, UCF-101 and mindone, read strictly."""

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from smalti.data.source import one_line, printable, refuse
from smalti.errors import InputError

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".json")

ListFormat = Literal["auto", "list", "imagenet-json", "k600", "ucf101", "mindone-csv"]

_MOST_CLASSES = 1_000_000
_UCF101 = re.compile(r"(([^/\s]+)/(v_[^/\s]+_g\d\d_c\d\d\.avi))(?: (\d{1,6}))?")
_UCF101_FOLDERS = ("", "rec_train", "rec_test")
"""Where the files are if they were moved out of their class folders: mindone's helper makes the last two."""


class Listing(NamedTuple):
    """The files of a source. `root / files[i]` is the file; `labels[i]` is its class, an index into `classes`."""

    root: Path
    files: tuple[str, ...]
    """Paths relative to the root, as the operating system gives them."""
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    skipped: int
    """Files of the folder that have another suffix."""


class _Row(NamedTuple):
    number: int
    """Counted from 1."""
    name: str
    """Empty for a blank row."""
    label: str | None = None
    fault: str = ""
    """What is wrong with it, as it follows `row 3`."""


class _Read(NamedTuple):
    rows: list[_Row]
    classes: tuple[str, ...] | None = None
    """The classes, where the format names them: labels are then numbers from 0."""
    unit: str = "row"


def read_list(path: Path, root: Path | None = None, *, format: ListFormat = "auto", limit: int = 20_000_000) -> Listing:
    """The files that a list names, relative to `root` or else to the folder of the list.

    - `list`: one path per line, with a class after a comma or tab if the list has classes; a first row `path,label`
      is a header; quotes work as in CSV.
    - `imagenet-json`: MagicMaster's `ImageNet_train.json`, a list of {filename, prefix, label}.
    - `k600`: MagicMaster's `train_new.txt`, `name,class`, cut at the last comma; a name without suffix is an `.mp4`.
    - `ucf101`: the official `trainlist01.txt` (`Class/v_Class_g08_c01.avi 1`) and `testlist01.txt` (no number), with
      the classes of the `classInd.txt` beside them. Files that were moved out of their class folders are found in the
      root, and in its `rec_train` and `rec_test`.
    - `mindone-csv`: a header row, then the path in the first column; the others are ignored, and there are no classes.

    `auto` takes `.json` for `imagenet-json`, a list whose first row is as in UCF-101's for `ucf101`, all else for
    `list`. Classes that are whole numbers keep them (UCF-101's count from 0 here), names are numbered in byte order.
    Absolute paths are taken as they are.

    Raises InputError with the number of every row that is blank, malformed, doubled, without its file, or with a
    class where others have none: a list is right or it is mended, never read in part.
    """
    root = root or path.parent
    read = _READERS[_told(path, format)](path, root)
    if len(read.rows) > limit:
        raise InputError(f"{printable(path)}: {len(read.rows):,} rows, at most {limit:,} are read")
    refuse(printable(path), "rows" if read.unit == "row" else "entries", _faults(read, root))
    if not read.rows:
        raise InputError(f"{printable(path)}: the list names no files")
    files = tuple(row.name for row in read.rows)
    names = [row.label for row in read.rows if row.label is not None]
    if not names:
        return Listing(root, files, None, (), 0)
    if read.classes is not None:
        return Listing(root, files, tuple(map(int, names)), read.classes, 0)
    labels, classes = number_classes(names, where=printable(path))
    return Listing(root, files, labels, classes, 0)


def number_classes(
    names: Sequence[str], *, where: str = "classes", whole_numbers: bool = True
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(number of each, all classes): whole numbers keep their value, where all are; else names in byte order."""
    if whole_numbers and all(name.isascii() and name.isdigit() for name in names):
        largest = max(map(int, names))
        if largest > _MOST_CLASSES:
            raise InputError(f"{where}: class {largest} is no class number (at most {_MOST_CLASSES:,}); mend the list")
        return tuple(map(int, names)), tuple(str(i) for i in range(largest + 1))
    classes = tuple(sorted(set(names), key=os.fsencode))
    number = {name: i for i, name in enumerate(classes)}
    return tuple(number[name] for name in names), classes


def _faults(read: _Read, root: Path) -> list[str]:
    faults, seen = [], dict[str, int]()
    for row in read.rows:
        which = f"{read.unit} {row.number}"
        if row.fault:
            faults.append(f"{which}{row.fault}")
        elif not row.name:
            faults.append(f"{which} is blank")
        elif row.name in seen:
            faults.append(f"{which} repeats {read.unit} {seen[row.name]} ({printable(row.name)})")
        elif "\0" in row.name or not os.path.lexists(root / row.name):
            faults.append(f"{which}: no such file {printable(root / row.name)}")
        elif (row.label is None) != (read.rows[0].label is None) or row.label == "":
            first = f"{read.unit} {read.rows[0].number}"
            faults.append(f"{which} has {'a' if row.label else 'no'} class, unlike {first}")
        seen.setdefault(row.name, row.number)
    return faults


def _told(path: Path, format: ListFormat) -> ListFormat:
    if format != "auto":
        return format
    if path.suffix.lower() == ".json":
        return "imagenet-json"
    first = next((line for line in _lines(path) if line.strip()), "")
    return "ucf101" if _UCF101.fullmatch(first.strip()) else "list"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {one_line(error.strerror)}; check its rights") from None


def _lines(path: Path) -> list[str]:
    lines = re.split("\r\n|\n|\r", _text(path))
    return lines if lines[-1] else lines[:-1]


def _fields(line: str, delimiter: str = ",") -> list[str] | None:
    """The fields of a line of CSV, or None where it is none."""
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return None


def _plain(path: Path, root: Path) -> _Read:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        fields = _fields(line, "\t" if "\t" in line else ",")
        if number == 1 and fields and [f.lower() for f in fields] in (["path"], ["path", "label"]):
            continue
        if fields is None:
            rows.append(_Row(number, "", None, " is no line of CSV; mend its quotes"))
        elif len(fields) > 2:
            what = f" has {len(fields)} fields, not path and class; put a name with commas in quotes, or set format"
            rows.append(_Row(number, "", None, what))
        else:
            rows.append(_Row(number, *(fields or [""])))
    return _Read(rows)


def _k600(path: Path, root: Path) -> _Read:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        name, comma, label = (part.strip() for part in line.rpartition(","))
        if not line.strip():
            rows.append(_Row(number, ""))
        elif not comma or not name or not label:
            rows.append(_Row(number, "", None, f": name,class is needed (found {printable(line.strip())[:80]})"))
        else:
            rows.append(_Row(number, name if os.path.splitext(name)[1] else f"{name}.mp4", label))  # noqa: PTH122
    return _Read(rows)


def _mindone_csv(path: Path, root: Path) -> _Read:
    lines = _lines(path)
    header = _fields(lines[0]) if lines else None
    if lines and (not header or os.path.lexists(root / (header[0] or "\n"))):
        raise InputError(
            f"{printable(path)}: row 1 is no header row (format mindone-csv); add one, or set format: list"
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = _fields(line)
        fault = " is no line of CSV; mend its quotes" if fields is None else ""
        rows.append(_Row(number, fields[0] if fields else "", None, fault))
    return _Read(rows)


def _imagenet_json(path: Path, root: Path) -> _Read:
    try:
        data = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(path)}: not valid JSON: {one_line(error)}") from None
    shape = "a list of {filename, prefix, label}"
    if not isinstance(data, list):
        raise InputError(f"{printable(path)}: holds no {shape} (format imagenet-json)")
    return _Read([_imagenet_entry(i, entry) for i, entry in enumerate(data, start=1)], unit="entry")


def _imagenet_entry(number: int, entry: object) -> _Row:
    if not isinstance(entry, dict):
        return _Row(number, "", None, " is no {filename, prefix, label}")
    filename, prefix, label = (entry.get(name) for name in ("filename", "prefix", "label"))
    if not isinstance(filename, str) or not filename:
        return _Row(number, "", None, " has no filename")
    if not isinstance(prefix, str):
        return _Row(number, "", None, ' has no prefix ("" if the file is in the root)')
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        return _Row(number, "", None, f" has no whole number as label (found {printable(repr(label))[:40]})")
    return _Row(number, os.path.join(prefix, filename), str(label))  # noqa: PTH118


def _ucf101(path: Path, root: Path) -> _Read:
    index = path.parent / "classInd.txt"
    classes = _class_index(index) if index.is_file() else None
    rows, folders = [], dict[int, str]()
    for number, line in enumerate(_lines(path), start=1):
        match = _UCF101.fullmatch(line.strip())
        if not line.strip() or match is None:
            fault = ": not Class/v_Class_g01_c01.avi, as UCF-101 has it; mend it, or set format: list"
            rows.append(_Row(number, "", None, fault if line.strip() else ""))
            continue
        nested, folder, bare, label = match.groups()
        places = (nested, *(os.path.join(moved, bare) for moved in _UCF101_FOLDERS))  # noqa: PTH118
        name = next((place for place in places if os.path.lexists(root / place)), nested)
        fault, given = "", int(label) if label else None
        if classes is not None:
            number_of = classes.get(folder)
            if number_of is None:
                fault = f": class {printable(folder)} is not in {printable(index)}"
            elif given not in (None, number_of):
                fault = f": class {given} in the row, {number_of} in {printable(index)}"
            given = number_of
        elif given is not None and folders.setdefault(given, folder) != folder:
            fault = f": class {given} is {printable(folder)} here and {printable(folders[given])} above"
        fault = fault or (": classes count from 1" if given == 0 else "")
        rows.append(_Row(number, name, None if given is None else str(given - 1), fault))
    if classes is None:
        names = tuple(folders.get(i, str(i)) for i in range(1, max(folders, default=0) + 1))
    else:
        names = tuple(classes)
    return _Read(rows, names)


def _class_index(path: Path) -> dict[str, int]:
    """`classInd.txt`: class -> number, in the order of the numbers 1, 2, 3, ..."""
    classes = dict[str, int]()
    for number, line in enumerate(_lines(path), start=1):
        parts = line.split()
        if len(parts) != 2 or parts[0] != str(number) or parts[1] in classes:
            raise InputError(f"{printable(path)}: row {number} is not `{number} Class`; take the official file")
        classes[parts[1]] = number
    return classes


_READERS: dict[ListFormat, Callable[[Path, Path], _Read]] = {
    "list": _plain,
    "imagenet-json": _imagenet_json,
    "k600": _k600,
    "ucf101": _ucf101,
    "mindone-csv": _mindone_csv,
}
