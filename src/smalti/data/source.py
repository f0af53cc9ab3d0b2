"""What every source of samples keeps, and the checks that come before a media file is opened."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.errors import BadFile, InputError
from smalti.text import one_line, printable

MAX_PIXELS = 64_000_000
"""Pictures and frames above this are refused by their declared size, before they are decoded (192 MB of RGB)."""

_LFS = b"version https://git-lfs.github.com/spec/"


@runtime_checkable
class Source(Protocol):
    """A fixed, ordered list of samples: photographs, clips of film, or anything with these four functions."""

    def __len__(self) -> int:
        """How many samples there are, the bad ones counted too."""
        ...

    def key(self, index: int) -> str:
        """The name of a sample, different for each: text that prints on one line."""
        ...

    def label(self, index: int) -> int | None:
        """The class of a sample, or None where the source has no classes."""
        ...

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """The pixels of a sample (an image has t = 1); `rng` decides its augmentation. Raises BadFile."""
        ...


class Subset:
    """Samples `indices` of a source, in that order; itself a `Source`. The first n are `range(len(source))[:n]`."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """The name of a sample."""
        return self.source.key(self.indices[index])

    def label(self, index: int) -> int | None:
        """The class of a sample, or None."""
        return self.source.label(self.indices[index])

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """The pixels of a sample. Raises BadFile."""
        return self.source.load(self.indices[index], rng)


@runtime_checkable
class Store(Protocol):
    """Where the media of a source are: files of a folder or list, members of tars, cells of a table."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def key(self, index: int) -> str:
        """The name of one, different for each: text that prints on one line."""
        ...

    def label(self, index: int) -> int | None:
        """The class of one, an index into `classes`, or None where there are none."""
        ...

    def caption(self, index: int) -> str | None:
        """The text that goes with one, or None. Raises BadFile where it is no text."""
        ...

    def where(self, index: int) -> str:
        """What a fault of one is named by: its path, on one line."""
        ...

    def media(self, index: int) -> Path | bytes:
        """A media file, or its bytes. Raises BadFile."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...


class Stored:
    """What pictures and videos have in common as a `Source`: they are the media of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def key(self, index: int) -> str:
        """The name of a sample, on one line."""
        return self.store.key(index)

    def label(self, index: int) -> int | None:
        """The class of a sample, an index into `classes`."""
        return self.store.label(index)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.store.classes


def open_media(path: Path) -> BinaryIO:
    """Open a media file for reading after the checks that all formats share. Raises BadFile.

    Pipes, devices and sockets are never opened, so they cannot hang a run.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(printable(path), "not-a-file", "not a regular file but a folder, pipe, socket or device")
        if status.st_size == 0:
            raise BadFile(printable(path), "empty", "has no bytes; copy it again")
        file = open(path, "rb")  # noqa: SIM115, PTH123 - the caller closes it; an open fd serves a `with`
    except FileNotFoundError:
        raise BadFile(printable(path), "missing", "no such file (removed since it was listed?)") from None
    except PermissionError:
        raise BadFile(printable(path), "permission", "permission denied; check the rights of file and folder") from None
    except (OSError, ValueError) as error:
        raise BadFile(printable(path), "unreadable", f"cannot be opened: {one_line(error)}") from None
    head = file.read(len(_LFS))
    file.seek(0)
    if head == _LFS:
        file.close()
        raise BadFile(printable(path), "lfs-pointer", "a git-lfs pointer, not the file; run `git lfs pull`")
    return file


def refuse(where: str, what: str, faults: list[str]) -> None:
    """Raise InputError on one line with the first five faults and how many there are; pass where there are none."""
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(f"{where}: {len(faults)} bad {what}: {'; '.join(faults[:5])}{more}")


def decode_text(data: bytes, where: str) -> str:
    """The text of a caption, without blanks at its ends. Raises BadFile, naming `where`, unless it is UTF-8."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadFile(where, "caption", f"its text is not UTF-8 ({one_line(error)})") from None
