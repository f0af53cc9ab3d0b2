"""Which files a source has: a folder searched to the bottom, class folders, or a list file; always in one order."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from smalti.data.source import one_line, printable
from smalti.errors import InputError

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst")


class Listing(NamedTuple):
    """The files of a source. `root / files[i]` is the file; `labels[i]` is its class, an index into `classes`."""

    root: Path
    files: tuple[str, ...]
    """Paths relative to the root, as the operating system gives them."""
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    skipped: int
    """Files of the folder that have another suffix."""


class Listed:
    """What pictures and videos have in common as a `Source`: they are files of a listing."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing.files)

    def key(self, index: int) -> str:
        """The path relative to the root, on one line."""
        return printable(self.listing.files[index])

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.listing.root / self.listing.files[index]

    def label(self, index: int) -> int | None:
        """The class of a sample, an index into `classes`."""
        return None if self.listing.labels is None else self.listing.labels[index]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.listing.classes


def list_files(
    path: Path,
    suffixes: Sequence[str],
    *,
    class_folders: bool = False,
    root: Path | None = None,
    limit: int = 20_000_000,
) -> Listing:
    """The files of `path`: a folder (searched to the bottom), a list file, or one media file.

    Files of a folder come in the byte order of their relative path, so that every file system gives the same list;
    each real file comes once, however many links lead to it; links in a circle end. With `class_folders` the first
    folder below `path` is the class, and classes are numbered in byte order. A list file (.txt .csv .tsv .lst) has
    one path per line, relative to `root` or else to the folder of the list; see `read_list`.

    Raises InputError where nothing is found, more than `limit` files are there, or the list has faults.
    """
    try:
        if path.is_dir():
            return _list_folder(path, suffixes, class_folders, limit)
        if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
            return read_list(path, root, limit=limit)
        exists = path.exists()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be listed: {one_line(error.strerror)}; check its rights") from None
    if not exists:
        raise InputError(f"{printable(path)}: no such file or folder")
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{printable(path)}: neither a folder, a list ({' '.join(LIST_SUFFIXES)}) nor a file to read")
    return Listing(path.parent, (path.name,), None, (), 0)


def read_list(path: Path, root: Path | None = None, *, limit: int = 20_000_000) -> Listing:
    """The files of a list: one path per line, with a class after a comma or tab if the list has classes.

    A first row `path,label` is a header; quotes work as in CSV. Classes that are all whole numbers (as in the lists
    of ImageNet and of action sets) keep their numbers; else names are numbered in byte order. Absolute paths are
    taken as they are. Raises InputError with the row numbers of blank rows, doubled paths, missing files, and rows
    with and without a class mixed: a list is right or it is mended, never read in part.
    """
    root = root or path.parent
    rows = list(_rows(path, limit))
    faults = _faults(rows, root)
    if faults:
        shown = "; ".join(faults[:5])
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(f"{printable(path)}: {len(faults)} bad rows: {shown}{more}")
    if not rows:
        raise InputError(f"{printable(path)}: the list names no files")
    files = tuple(row[1] for row in rows)
    if rows[0][2] is None:
        return Listing(root, files, None, (), 0)
    names = [str(row[2]) for row in rows]
    if all(name.isascii() and name.isdigit() for name in names):
        labels = tuple(int(name) for name in names)
        return Listing(root, files, labels, tuple(str(i) for i in range(max(labels) + 1)), 0)
    classes = tuple(sorted(set(names), key=os.fsencode))
    number = {name: i for i, name in enumerate(classes)}
    return Listing(root, files, tuple(number[name] for name in names), classes, 0)


def _rows(path: Path, limit: int) -> Iterator[tuple[int, str, str | None]]:
    """(row number, path, class) of every row but the header; a blank row has an empty path."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {one_line(error.strerror)}") from None
    lines = text.splitlines()
    if len(lines) > limit:
        raise InputError(f"{printable(path)}: {len(lines):,} rows, at most {limit:,} are read")
    for number, line in enumerate(lines, start=1):
        comma = "\t" if "\t" in line else ","
        fields = next(csv.reader([line], delimiter=comma), [])
        if number == 1 and [field.strip().lower() for field in fields[:2]] in (["path"], ["path", "label"]):
            continue
        name = fields[0].strip() if fields else ""
        yield number, name, fields[1].strip() if len(fields) > 1 else None


def _faults(rows: list[tuple[int, str, str | None]], root: Path) -> list[str]:
    faults, seen = [], dict[str, int]()
    for number, name, label in rows:
        if not name:
            faults.append(f"row {number} is blank")
        elif name in seen:
            faults.append(f"row {number} repeats row {seen[name]} ({printable(name)})")
        elif not os.path.lexists(root / name):
            faults.append(f"row {number}: no such file {printable(root / name)}")
        elif (label is None) != (rows[0][2] is None) or label == "":
            faults.append(f"row {number} has {'no' if not label else 'a'} class, unlike row {rows[0][0]}")
        seen.setdefault(name, number)
    return faults


def _list_folder(root: Path, suffixes: Sequence[str], class_folders: bool, limit: int) -> Listing:
    files, skipped = [], 0
    for name in _walk(root):
        if os.path.splitext(name)[1].lower() not in suffixes:  # noqa: PTH122 - twice as fast, for millions of files
            skipped += 1
            continue
        files.append(name)
        if len(files) > limit:
            raise InputError(f"{printable(root)}: more than {limit:,} files; raise `limit` or choose a smaller folder")
    files.sort(key=os.fsencode)
    if not files:
        raise InputError(f"{printable(root)}: no file ends in {' '.join(suffixes)} ({skipped} other files)")
    if not class_folders:
        return Listing(root, tuple(files), None, (), skipped)
    loose = [name for name in files if os.sep not in name]
    if loose:
        raise InputError(f"{printable(root)}: {len(loose)} files are in no class folder, as {printable(loose[0])}")
    classes = tuple(sorted({name.split(os.sep, 1)[0] for name in files}, key=os.fsencode))
    number = {name: i for i, name in enumerate(classes)}
    return Listing(root, tuple(files), tuple(number[f.split(os.sep, 1)[0]] for f in files), classes, skipped)


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of all files below `root`, hidden ones apart; each real folder and each real file once."""
    above = {(s.st_dev, s.st_ino) for s in (parent.stat() for parent in root.resolve().parents)}
    seen = set(above)  # a link to a folder above the root would bring in the whole disk
    folders = [""]
    files: dict[int, set[int]] = {}
    while folders:
        folder = folders.pop()
        status = (root / folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        with os.scandir(root / folder) as entries:
            ordered = sorted(entries, key=lambda entry: (entry.is_symlink(), os.fsencode(entry.name)))
        for entry in ordered:  # links come last, so that a file keeps its own name
            name = os.path.join(folder, entry.name)  # noqa: PTH118 - names stay text: millions of Paths are slow
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below.append(name)
                continue
            device, inode = status.st_dev, entry.inode()
            if entry.is_symlink():
                try:
                    target = entry.stat()
                    device, inode = target.st_dev, target.st_ino
                except OSError:
                    pass  # a broken link is listed; reading it names it
            known = files.setdefault(device, set())
            if inode not in known:
                known.add(inode)
                yield name
        folders.extend(reversed(below))
