"""Loose media files: those of a folder searched to the bottom or of a list file, always in one order."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from smalti.data.list_formats import LIST_SUFFIXES, ListFormat, Listing, read_list, read_text
from smalti.data.metadata import DEFAULT_COLUMNS, METADATA, MetadataColumns, MetadataRow, read_metadata
from smalti.data.source import Store, decode_text, number_classes, raise_listed, suffix_of
from smalti.errors import BadFile, InputError
from smalti.text import one_line, printable

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif"),
    *(".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
)
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".mts", ".3gp", ".flv", ".wmv", ".ogv"),
)
OTHER_FILES = "files of other kinds"
HIDDEN = "hidden files or folders"
LINKED_FILES = "links to files that are listed"
LINKED_FOLDERS = "links to folders that are searched"
_NAMED = 5
"""Links and folders that cannot be followed, each named in the counts; more are counted together."""


class FileStore(Store):
    """The files of a listing; a `Store`."""

    def __init__(self, listing: Listing) -> None:
        super().__init__(listing.classes, left_out=listing.left_out)
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing.files)

    def key(self, index: int) -> str:
        """Return the path relative to the root, on one line."""
        return printable(self.listing.files[index])

    def where(self, index: int) -> str:
        """Return the whole path, on one line."""
        return printable(self.media(index))

    def media(self, index: int) -> Path:
        """Return the file of a sample."""
        return self.listing.root / self.listing.files[index]

    def sizes(self) -> list[int]:
        """Return the bytes of each file, -1 where it cannot be read."""
        return [_size(os.path.join(self.listing.root, file)) for file in self.listing.files]  # noqa: PTH118

    def caption(self, index: int) -> str | None:
        """Return the text of the list or metadata, or else read the `.txt` of the same name beside the file.

        None where there is none. Raises BadFile where the `.txt` cannot be read.
        """
        text = None if self.listing.captions is None else self.listing.captions[index]
        if text is not None:
            return text
        path = self.media(index).with_suffix(".txt")
        try:
            return decode_text(path.read_bytes(), self.where(index))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise BadFile(self.where(index), "caption", f"its text cannot be read: {one_line(error)}") from None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - millions of Paths are slow
    except (OSError, ValueError):
        return -1


def list_files(
    path: Path,
    suffixes: Sequence[str],
    *,
    class_folders: bool = False,
    root: Path | None = None,
    format: ListFormat = "auto",
    limit: int = 20_000_000,
    columns: MetadataColumns = DEFAULT_COLUMNS,
) -> Listing:
    """List the files of `path`: a folder (searched to the bottom), a list file, or one media file.

    Files of a folder come in the byte order of their relative path, so that every file system gives the same list;
    each real file comes once, however many links lead to it; links in a circle end. A `metadata.csv` or
    `metadata.jsonl` with a column `file_name` gives the files of its folder and below it classes and captions, and
    leaves out those that it does not name, as Hugging Face's ImageFolder does. With `class_folders` the first folder of
    the path is the class where metadata give none, and classes are numbered in byte order. A list file (.txt .csv .tsv
    .lst .json .jsonl) names files relative to `root` or else to its own folder; see `read_list`.

    What is in the folder and not in the listing is counted in `left_out`.

    Raises InputError where nothing is found, where more than `limit` files are there, and where the list or the
    metadata have faults.
    """
    try:
        if path.is_dir():
            return _list_folder(path, suffixes, class_folders, limit, columns)
        if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
            listing = read_list(path, root, format=format, limit=limit, columns=columns)
            return _by_folder(listing) if class_folders and listing.classes.labels is None else listing
        exists = path.exists()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be listed: {one_line(error.strerror)}; check its rights") from None
    if not exists:
        raise InputError(f"{printable(path)}: no such file or folder")
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{printable(path)}: neither a folder, a list ({' '.join(LIST_SUFFIXES)}) nor a file to read")
    return Listing(path.parent, (path.name,))


def _list_folder(
    root: Path, suffixes: Sequence[str], class_folders: bool, limit: int, columns: MetadataColumns
) -> Listing:
    files, metadata, left_out = list[str](), list[str](), Counter[str]()
    for name in _walk(root, left_out):
        if os.path.basename(name) in METADATA:  # noqa: PTH119 - names stay text: millions of Paths are slow
            metadata.append(name)
        elif suffix_of(name) not in suffixes:
            left_out[OTHER_FILES] += 1
        else:
            files.append(name)
            if len(files) > limit:
                what = f"more than {limit:,} files; raise `limit` or choose a smaller folder"
                raise InputError(f"{printable(root)}: {what}")
    files.sort(key=os.fsencode)
    listing = Listing(root, tuple(files))
    if metadata:
        listing = _describe(listing, sorted(metadata, key=os.fsencode), columns, left_out)
    if not listing.files:
        what = f"no file ends in {' '.join(suffixes)}" if not files else "its metadata name none of its files"
        raise InputError(f"{printable(root)}: {what} ({left_out[OTHER_FILES]} other files)")
    listing = listing._replace(left_out=left_out)
    return _by_folder(listing) if class_folders and listing.classes.labels is None else listing


def _describe(listing: Listing, metadata: list[str], columns: MetadataColumns, left_out: Counter[str]) -> Listing:
    """Give the files that metadata name their classes and captions, and leave out the others below them."""
    where, faults = printable(listing.root), list[str]()
    rows, covered = dict[str, MetadataRow](), list[str]()
    for name in metadata:
        path = listing.root / name
        own = read_metadata(path, read_text(path), columns)
        if own is None:
            left_out["metadata files without a column file_name"] += 1
            continue
        folder = os.path.dirname(name)  # noqa: PTH120 - as above
        covered.append(os.path.join(folder, ""))  # noqa: PTH118
        for row in own:
            target = os.path.join(folder, row.name)  # noqa: PTH118
            fault = row.fault or _fault_of_name(listing.root, row.name, target, rows)
            faults += [f"{printable(name)} row {row.number}{fault}"] if fault else []
            rows[target] = row
    raise_listed(where, "rows of metadata", faults)
    files = [file for file in listing.files if file in rows or not file.startswith(tuple(covered))]
    if len(files) < len(listing.files):
        left_out["files that no row of the metadata names"] += len(listing.files) - len(files)
    own_rows = [rows.get(file) for file in files]
    labels = [None if row is None else row.label for row in own_rows]
    captions = [None if row is None else row.caption for row in own_rows]
    classes = number_classes(labels, where=where, name_of=lambda i: printable(files[i]))
    return Listing(listing.root, tuple(files), classes, tuple(captions) if any(captions) else None, bool(covered))


def _fault_of_name(root: Path, name: str, target: str, rows: dict[str, MetadataRow]) -> str:
    """Return the reason why a row cannot name this file, to follow `row 3`; empty where it can."""
    path = Path(name)
    if path.is_absolute() or path.parts[0] == os.pardir:
        return f" names {printable(name)}, which leads out of its folder"
    if target in rows:
        return f" repeats {printable(target)}, which row {rows[target].number} names"
    return "" if os.path.lexists(root / target) else f": no such file {printable(target)}"


def _by_folder(listing: Listing) -> Listing:
    """Make the first folder of each path its class."""
    where = printable(listing.root)
    loose = [name for name in listing.files if name.find(os.sep) < 1]
    if loose:
        raise InputError(f"{where}: {len(loose)} files are in no class folder, as {printable(loose[0])}")
    folders = [name.split(os.sep, 1)[0] for name in listing.files]
    return listing._replace(classes=number_classes(folders, where=where, whole_numbers=False))


def _walk(root: Path, left_out: Counter[str]) -> Iterator[str]:
    """Yield the relative paths of all files below `root` but the hidden ones; each real folder and file once.

    Count what is passed over in `left_out`.
    """
    above = {(s.st_dev, s.st_ino) for s in (parent.stat() for parent in root.resolve().parents)}
    identities = set(above)  # a link to a folder above the root would bring in the whole disk
    folders = [""]
    files: dict[int, set[int]] = {}
    while folders:
        folder = folders.pop()
        status = (root / folder).stat()
        if (status.st_dev, status.st_ino) in identities:
            left_out[LINKED_FOLDERS] += 1
            continue
        identities.add((status.st_dev, status.st_ino))
        below = []
        try:
            with os.scandir(root / folder) as entries:
                ordered = sorted(entries, key=lambda entry: (entry.is_symlink(), os.fsencode(entry.name)))
        except OSError as error:
            if not folder:
                raise
            _leave_out(left_out, "folders that cannot be read", folder, error)
            continue
        for entry in ordered:  # links come last, so that a file keeps its own name
            name = os.path.join(folder, entry.name)  # noqa: PTH118 - names stay text: millions of Paths are slow
            if entry.name.startswith("."):
                left_out[HIDDEN] += 1
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to itself, for one: with a suffix it is listed, as a broken link is
                if not suffix_of(name):
                    _leave_out(left_out, "links that lead nowhere", name, error)
                    continue
                is_folder = False
            if is_folder:
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
            if inode in known:
                left_out[LINKED_FILES] += 1
                continue
            known.add(inode)
            yield name
        folders.extend(reversed(below))


def _leave_out(left_out: Counter[str], what: str, name: str, error: OSError) -> None:
    """Count what cannot be followed, by its name; from `_NAMED` on, without."""
    named = sum(key.startswith(what) for key in left_out)
    left_out[what if named >= _NAMED else f"{what}: {printable(name)} ({one_line(error.strerror)})"] += 1
