"""A foreign file at the border: opened, looked into, and read in part. Every fault is one line with its path."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.errors import InputError, IntegrityError, MachineError
from smalti.files import naming_os_errors
from smalti.inert.known import Known, array
from smalti.inert.legacy import read_legacy
from smalti.inert.records import Fault, Foreign, Place, Storage, Stored, shown
from smalti.inert.tree import Copy, branches, named
from smalti.inert.zipped import Archive, read_zip, verify


class _Stamp(NamedTuple):
    size: int
    changed: int
    number: int


class TorchFile:
    """The tree of a file, without the values of its tensors; `read` brings those that are asked for."""

    def __init__(self, path: Path, stamp: _Stamp, tree: Any, places: dict[str, Place]) -> None:
        self.path = path
        self.tree = tree
        """Dicts, lists, tuples, numbers, texts; `Stored` for a tensor, `Foreign` for all that is no plain data."""
        self._stamp = stamp
        self._places = places

    def at(self, *keys: str | int) -> Any:
        """A part of the tree: entries of dicts, items of lists, attributes of objects. IntegrityError if absent."""
        node = self.tree
        for depth, key in enumerate(keys):
            below = dict(branches(node))
            if str(key) not in below:
                place = ".".join(str(k) for k in keys[:depth]) or "its root"
                there = ", ".join(shown(name) for name in list(below)[:8]) or "nothing"
                raise IntegrityError(f"{self.path}: no {shown(key)!r} in {place}, which has: {there}")
            node = below[str(key)]
        return node

    def stored(self, *keys: str | int) -> dict[str, Stored]:
        """Type, shape and strides of the tensors below a part, by dotted name; no value is read."""
        with _told(self.path):
            return named(self.at(*keys), Stored)

    def tensors(self, *keys: str | int) -> dict[str, Tensor]:
        """The tensors below a part, by dotted name (a part that is a tensor has the name ""). Reads theirs alone."""
        wanted = self.stored(*keys)
        values = self.read(list(wanted.values()))
        return dict(zip(wanted, values, strict=True))

    def read(self, node: Any) -> Any:
        """A part of the tree with its tensors (on the CPU, sharing as they did) and numpy arrays. IntegrityError."""
        with _told(self.path), self.path.open("rb") as file:
            if _stamped(file) != self._stamp:
                raise Fault("it changed while it was read", "wait until it is written, and run again")
            return Copy(_Reader(file, self._places, self._stamp.size).leaf).of(node)


class _Reader:
    """Fills the tensors of one reading; each storage is read once."""

    def __init__(self, file: BufferedReader, places: dict[str, Place], size: int) -> None:
        self.file = file
        self.places = places
        self.budget = Known(size)
        self.bytes: dict[str, Tensor] = {}

    def leaf(self, node: object) -> object | None:
        """A tensor for `Stored`, an array for a record of numpy's; None for all else."""
        if isinstance(node, Stored):
            return self._tensor(node)
        if isinstance(node, Storage):
            count = node.nbytes // node.dtype.itemsize
            return self._tensor(Stored(node, node.dtype, (count,), (1,), 0))
        return array(node, self.budget) if isinstance(node, Foreign) else None

    def _tensor(self, stored: Stored) -> Tensor:
        key = stored.storage.key
        if key not in self.bytes:
            self.bytes[key] = self._load(key, self.places[key])
        first = stored.storage.start // stored.dtype.itemsize + stored.offset
        tensor = torch.empty(0, dtype=stored.dtype)
        tensor.set_(self.bytes[key].untyped_storage(), first, stored.shape, stored.strides)
        tensor = tensor.conj() if stored.conjugate else tensor
        return torch._neg_view(tensor) if stored.negative else tensor

    def _load(self, key: str, place: Place) -> Tensor:
        try:
            values = torch.empty(place.nbytes, dtype=torch.uint8)
        except RuntimeError:
            raise MachineError(f"{self.file.name}: {place.nbytes:,} bytes of memory are not there; free some") from None
        data = memoryview(values.numpy())  # type: ignore[arg-type]
        self.file.seek(place.start)
        count = self.file.readinto(data) if place.nbytes else 0
        verify(f"data/{key}", data[:count], place)
        return values


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        with naming_os_errors(path):
            yield
    except Fault as fault:
        raise IntegrityError(f"{path}: {fault.what}; {fault.mend}") from None
    except RecursionError:
        raise IntegrityError(f"{path}: it is nested too deep; fetch or save it again") from None
    except IntegrityError as fault:
        if str(fault).startswith(f"{path}: "):
            raise
        raise IntegrityError(f"{path}: {fault}") from None


def _stamped(file: BufferedReader) -> _Stamp:
    status = os.fstat(file.fileno())
    return _Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def open_torch(path: Path | str, *, check: bool = True) -> TorchFile:
    """Look into a file of torch.save. Reads its directory and its pickle, no tensor.

    `check` compares the zip's CRC-32 of all that is read, if it has any (old files have none). Raises InputError if
    there is no such file, MachineError if it cannot be opened, IntegrityError if it is damaged or something else.
    """
    path = Path(path)
    with naming_os_errors(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: no such file; check the path") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; give the file of weights")
    with _told(path), path.open("rb") as file:
        stamp = _stamped(file)
        head = file.read(512)
        _refuse(head)
        tree, places = read_zip(file, stamp.size, check) if head[:2] == b"PK" else read_legacy(file, stamp.size)
    return TorchFile(path, stamp, tree, places)


def read_torch(path: Path | str, *keys: str | int, check: bool = True) -> Any:
    """A file of torch.save, or the part of it at `keys`, as plain data with its tensors; see `open_torch`."""
    file = open_torch(path, check=check)
    return file.read(file.at(*keys))


def read_program(path: Path | str) -> str:
    """The text of the program in a TorchScript archive, empty for other files: to look a number up, never to run it.

    Raises as `open_torch` does.
    """
    path = Path(path)
    with _told(path), path.open("rb") as file:
        if file.read(2) != b"PK":
            return ""
        return Archive(file, os.fstat(file.fileno()).st_size, check=True).program()


def _refuse(head: bytes) -> None:
    """What often lies in place of the weights, by its first bytes."""
    text = head.lstrip().lower()
    if not head:
        raise Fault("it is empty", "fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise Fault("a git-lfs pointer, not the file", "run `git lfs pull`, or fetch the file itself")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise Fault("a web page, not the file", "fetch the file itself; a login or a confirmation may be needed")
    if head[8:10] == b'{"':
        raise Fault("a .safetensors file, not one of torch.save", "name it .safetensors")
    if head[257:262] == b"ustar":
        raise Fault(
            "a tar archive: torch.save before 0.1.10, or packed files", "unpack it, or save it with a newer torch"
        )
    if head[:2] == b"\x1f\x8b":
        raise Fault("packed by gzip", "unpack it with gunzip")
