"""Metadata of images and videos in the form of Hugging Face's ImageFolder and VideoFolder: CSV or JSON lines."""

import csv
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from smalti.errors import InputError
from smalti.files import unique_keys
from smalti.text import one_line, printable

METADATA = ("metadata.csv", "metadata.jsonl")
"""Names of the files that describe the media in their folder and below it."""

_FILE = "file_name"
_CAPTIONS = ("text", "caption")
"""Columns that hold the caption unless one is named; the first that is there."""


class MetadataColumns(NamedTuple):
    """Columns that are read beside `file_name`."""

    label: str = "label"
    """Column of classes, whole numbers or names."""
    caption: str | None = None
    """Column of captions; None is `text`, or else `caption`."""


DEFAULT_COLUMNS = MetadataColumns()
"""Columns of the names that Hugging Face's `datasets` uses."""


class MetadataRow(NamedTuple):
    """A row of metadata, or the reason why it cannot be used."""

    number: int
    """Number of the row, from 1; the header of a CSV counts."""
    name: str
    """Path of the file, from the folder of the metadata."""
    label: str | None = None
    """Class; None for an empty cell and for -1, which stands for a hidden class."""
    caption: str | None = None
    """Text; None for an empty cell."""
    fault: str = ""
    """Reason, written so that it follows `row 3`; empty for a good row."""


class _Record(NamedTuple):
    number: int
    cells: Mapping[str, Any]
    fault: str = ""


def read_metadata(path: Path, text: str, columns: MetadataColumns = DEFAULT_COLUMNS) -> list[MetadataRow] | None:
    """Read the rows of a metadata file with this text: JSON lines if it is named `.jsonl`, else CSV with a header.

    Return None where it has no column `file_name`, so that it describes no files. Blank lines are passed over. Raises
    InputError where a column of `columns` that was named is not there.
    """
    captions = _CAPTIONS if columns.caption is None else (columns.caption,)
    is_json = path.suffix.lower() == ".jsonl"
    records = list(_json_records(text) if is_json else _csv_records(text, {_FILE, columns.label, *captions}))
    present = dict.fromkeys(name for record in records for name in record.cells)
    if _FILE not in present and (present or not records):
        return None
    caption = next((name for name in captions if name in present), None)
    for option, name, default in (("label", columns.label, "label"), ("caption", columns.caption, None)):
        if name is not None and name != default and name not in present:
            listed = one_line(", ".join(present))
            raise InputError(f"{printable(path)}: no column {name!r} (there are: {listed}); set `{option}`")
    return [_row(record, columns.label, caption) for record in records]


def _csv_records(text: str, used: Collection[str]) -> Iterator[_Record]:
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: Sequence[str] | None = None
    number = 0
    while True:
        number += 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield _Record(number, {}, f" is no row of CSV ({one_line(error)}); correct its quotes")
            break  # where the next row begins is not known
        if not any(fields):
            continue
        if header is None:
            header = [name.strip() for name in fields]
            if _FILE not in header:
                yield _Record(number, dict.fromkeys(header))
                break
            if twice := sorted(name for name in used if header.count(name) > 1):
                yield _Record(number, dict.fromkeys(header), f" names the column {twice[0]} twice; rename one")
                break
        elif len(fields) != len(header):
            yield _Record(number, {}, f" has {len(fields)} fields, the header {len(header)}; put commas in quotes")
        else:
            yield _Record(number, dict(zip(header, fields, strict=True)))


def _json_records(text: str) -> Iterator[_Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            yield _Record(number, {}, f" is not valid JSON ({one_line(error)})")
            continue
        yield _Record(number, cells) if isinstance(cells, dict) else _Record(number, {}, " is no JSON object")


def _row(record: _Record, label: str, caption: str | None) -> MetadataRow:
    name = record.cells.get(_FILE)
    if record.fault or not isinstance(name, str) or not name:
        return MetadataRow(record.number, "", fault=record.fault or f" has no {_FILE}")
    name = os.path.normpath(name)
    kind, text = record.cells.get(label), None if caption is None else record.cells.get(caption)
    if kind is not None and (isinstance(kind, bool) or not isinstance(kind, str | int)):
        return MetadataRow(record.number, name, fault=f" has no whole number or name as {label}")
    if text is not None and not (isinstance(text, str) and _is_unicode(text)):
        return MetadataRow(record.number, name, fault=f" has no text in UTF-8 as {caption}")
    number_or_name = None if kind is None or str(kind).strip() in ("", "-1") else str(kind).strip()
    return MetadataRow(record.number, name, number_or_name, (text or "").strip() or None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
