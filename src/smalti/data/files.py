"""Loose media files: those of a folder searched to the bottom or of a list file, always in one order."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from smalti.data.list_formats import LIST_SUFFIXES, ListFormat, Listing, read_list
from smalti.data.source import Store, decode_text, number_classes, suffix_of
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


class FileStore(Store):
    """The files of a listing; a `Store`."""

    def __init__(self, listing: Listing) -> None:
        super().__init__(listing.classes)
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

    def caption(self, index: int) -> str | None:
        """Read the `.txt` of the same name beside the file; None where there is none. Raises BadFile."""
        path = self.media(index).with_suffix(".txt")
        try:
            return decode_text(path.read_bytes(), self.where(index))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise BadFile(self.where(index), "caption", f"its text cannot be read: {one_line(error)}") from None


def list_files(
    path: Path,
    suffixes: Sequence[str],
    *,
    class_folders: bool = False,
    root: Path | None = None,
    format: ListFormat = "auto",
    limit: int = 20_000_000,
) -> Listing:
    """List the files of `path`: a folder (searched to the bottom), a list file, or one media file.

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
        if suffix_of(name) not in suffixes:
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
    """Make the first folder of each path its class."""
    where = printable(listing.root)
    loose = [name for name in listing.files if name.find(os.sep) < 1]
    if loose:
        raise InputError(f"{where}: {len(loose)} files are in no class folder, as {printable(loose[0])}")
    folders = [name.split(os.sep, 1)[0] for name in listing.files]
    return listing._replace(classes=number_classes(folders, where=where, whole_numbers=False))


def _walk(root: Path) -> Iterator[str]:
    """Yield the relative paths of all files below `root` but the hidden ones; each real folder and file once."""
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
