"""Which files a source has: a folder searched to the bottom, class folders, or a list file; always in one order."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from smalti.config import Config, PathField
from smalti.data.classes import Classed, number_classes
from smalti.data.list_formats import LIST_SUFFIXES, ListFormat, Listing, read_list
from smalti.data.source import decode_text
from smalti.errors import BadFile, InputError
from smalti.text import one_line, printable


class Listed(Classed):
    """The files of a listing; a `Store`."""

    def __init__(self, listing: Listing) -> None:
        super().__init__(listing.classes)
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing.files)

    def key(self, index: int) -> str:
        """The path relative to the root, on one line."""
        return printable(self.listing.files[index])

    def where(self, index: int) -> str:
        """The whole path, on one line."""
        return printable(self.media(index))

    def media(self, index: int) -> Path:
        """The file of a sample."""
        return self.listing.root / self.listing.files[index]

    def caption(self, index: int) -> str | None:
        """The text of the `.txt` of the same name beside the file, where there is one. Raises BadFile."""
        path = self.media(index).with_suffix(".txt")
        try:
            return decode_text(path.read_bytes(), self.where(index))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise BadFile(self.where(index), "caption", f"its text cannot be read: {one_line(error)}") from None


class FilesConfig(Config):
    """Which files a source has."""

    kind: str
    path: PathField
    """A folder (searched to the bottom), a list file (.txt, .csv, .tsv, .lst, .json), or one media file."""
    root: PathField | None = None
    """Folder that the paths of a list are relative to; null is the folder of the list."""
    class_folders: bool = False
    """Whether the first folder below `path` is the class of a file, unless a list gives another."""
    format: ListFormat = "auto"
    """Format of a list file; `auto` detects it by its content."""
    limit: int = Field(default=20_000_000, ge=1)
    """Largest number of files that are listed."""

    def listing(self, suffixes: Sequence[str]) -> Listing:
        """The files, as `list_files` lists them."""
        return list_files(
            self.path,
            suffixes,
            class_folders=self.class_folders,
            root=self.root,
            format=self.format,
            limit=self.limit,
        )


def list_files(
    path: Path,
    suffixes: Sequence[str],
    *,
    class_folders: bool = False,
    root: Path | None = None,
    format: ListFormat = "auto",
    limit: int = 20_000_000,
) -> Listing:
    """The files of `path`: a folder (searched to the bottom), a list file, or one media file.

    Files of a folder come in the byte order of their relative path, so that every file system gives the same list;
    each real file comes once, however many links lead to it; links in a circle end. With `class_folders` the first
    folder of the path is the class, and classes are numbered in byte order. A list file (.txt .csv .tsv .lst .json)
    names files relative to `root` or else to its own folder; see `read_list`.

    Raises InputError where nothing is found, more than `limit` files are there, or the list has faults.
    """
    try:
        if path.is_dir():
            return _list_folder(path, suffixes, class_folders, limit)
        if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
            listing = read_list(path, root, format=format, limit=limit)
            return _by_folder(listing) if class_folders and listing.classes.labels is None else listing
        exists = path.exists()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be listed: {one_line(error.strerror)}; check its rights") from None
    if not exists:
        raise InputError(f"{printable(path)}: no such file or folder")
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{printable(path)}: neither a folder, a list ({' '.join(LIST_SUFFIXES)}) nor a file to read")
    return Listing(path.parent, (path.name,))


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
    listing = Listing(root, tuple(files), skipped=skipped)
    return _by_folder(listing) if class_folders else listing


def _by_folder(listing: Listing) -> Listing:
    """The first folder of each path as its class."""
    where = printable(listing.root)
    loose = [name for name in listing.files if name.find(os.sep) < 1]
    if loose:
        raise InputError(f"{where}: {len(loose)} files are in no class folder, as {printable(loose[0])}")
    folders = [name.split(os.sep, 1)[0] for name in listing.files]
    return listing._replace(classes=number_classes(folders, where=where, whole_numbers=False))


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
