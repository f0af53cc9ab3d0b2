"""The headers of a tar: where each file in it lies, read strictly and without unpacking."""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from smalti.text import one_line, printable

_BLOCK = 512
LONGEST_NOTE = 1 << 20
"""Bytes of a long name, of a class, or of the JSON of a sample: no more are read."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


class Member(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    """Of its first byte in the tar."""
    size: int


def read_members(file: BinaryIO) -> Iterator[Member]:
    """The files in an open tar (ustar, GNU and pax names), by its headers; nothing is unpacked.

    Raises ValueError, naming the byte, where a header is damaged, a member or the end mark is cut off, more follows
    the end mark, a member is a link, a device or sparse, or its name leads out of the folder that it is in.
    """
    end = os.fstat(file.fileno()).st_size
    at, name, size, last = 0, None, None, "its start"
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if len(block) == _BLOCK and not any(block):
            return _check_end(file, at)
        info = _header(block, at, last)
        shown = printable(name or info.name)[:300]
        length = size if size is not None and info.type in _FILES else 0 if info.isdir() else info.size
        data = at + _BLOCK
        if length < 0 or data + length > end:
            raise ValueError(f"member {shown} at byte {at:,} needs {length:,} bytes, {end - data:,} are left (cut off)")
        at = data + (length + _BLOCK - 1) // _BLOCK * _BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if length > LONGEST_NOTE:
                raise ValueError(f"a name of {length:,} bytes at byte {data:,}")
            note = file.read(length)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = note.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                name, size = _pax(note, data, name)
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        if info.type in _FILES:
            yield Member(_inside(name or info.name, data), data, length)
        elif not info.isdir():
            raise ValueError(f"member {shown} at byte {data - _BLOCK:,} is a link, device or sparse file, not a file")
        name, size, last = None, None, f"member {shown}"


def _inside(name: str, at: int) -> str:
    """The name, which whoever writes files by the keys of samples may trust."""
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"member {printable(name)} at byte {at:,} has a name that leads elsewhere; pack it anew")
    return name


def _header(block: bytes, at: int, last: str) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        packer = _COMPRESSED.get(block[:2]) if at == 0 else None
        if packer:
            raise ValueError(f"is packed with {packer}, so that members cannot be found; unpack it") from None
        if len(block) < _BLOCK:
            raise ValueError(
                f"ends at byte {at + len(block):,}, after {last}, without the end mark (cut off)"
            ) from None
        raise ValueError(f"no header at byte {at:,}, after {last}: {one_line(error)}") from None


def _check_end(file: BinaryIO, at: int) -> None:
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise ValueError(f"more data after the end mark at byte {at:,} (tars joined?)")


def _pax(note: bytes, at: int, name: str | None) -> tuple[str | None, int | None]:
    """(path, size) of a pax header: records `length key=value\\n`, the length counting all of itself."""
    size, place = None, 0
    while place < len(note):
        match = re.match(rb"(\d{1,7}) ([^=]+)=", note[place : place + 300])
        stop = place + int(match[1]) if match else 0
        if match is None or not place + match.end() < stop <= len(note) or note[stop - 1 : stop] != b"\n":
            raise ValueError(f"damaged pax header at byte {at + place:,}")
        value = note[place + match.end() : stop - 1].decode("utf-8", "surrogateescape")
        if match[2].startswith(b"GNU.sparse"):
            raise ValueError(f"a sparse file at byte {at:,}, not a file")
        if match[2] == b"path":
            name = value
        elif match[2] == b"size":
            if not (value.isascii() and value.isdigit()):
                raise ValueError(f"damaged pax header at byte {at + place:,}")
            size = int(value)
        place = stop
    return name, size
