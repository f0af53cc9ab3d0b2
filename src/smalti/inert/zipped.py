"""The zip archives that torch.save and TorchScript write: members stored as they are, one after the other.

Only the directory at the end and the members that are asked for are read. Everything that is not what torch writes
(compression, duplicates, members that overlap or lie outside) is refused, so no archive unfolds to more than itself.
"""

import struct
import zlib
from io import BufferedReader, BytesIO
from typing import NamedTuple

from smalti.inert.known import Known
from smalti.inert.machine import Machine
from smalti.inert.records import Fault, Place, shown

DIRECTORY = 256 << 20
"""Bytes of the largest directory that is read: about two million members."""
PICKLE = 1 << 30
"""Bytes of the largest `data.pkl`."""
PROGRAM = 16 << 20
"""Bytes of the largest file of a TorchScript program that is read."""
_END, _LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_CUT = "the file is cut short; fetch it again"


class Member(NamedTuple):
    """A line of the directory."""

    header: int
    nbytes: int
    crc: int
    stored: bool
    packed: int
    """Bytes in the file."""
    method: int


def directory(file: BufferedReader, size: int) -> dict[bytes, Member]:
    """The members by name. Raises Fault."""
    file.seek(max(0, size - 22))
    end = file.read(22)
    if end[:4] != _END:
        raise Fault(
            "its zip directory is missing: the file is cut short or has something behind its end", "fetch it again"
        )
    count, length, start = struct.unpack_from("<HII", end, 10)
    if size >= 42:
        file.seek(size - 42)
        locator = file.read(20)
        if locator[:4] == _LOCATOR:
            count, length, start = _end64(file, struct.unpack_from("<Q", locator, 8)[0], size)
    if start + length > size:
        raise Fault("its zip directory lies outside of the file", _CUT)
    if length > DIRECTORY:
        raise Fault(f"its zip directory has {length:,} bytes, more than any saved weights need")
    file.seek(start)
    members = _members(file.read(length), count)
    if sum(member.nbytes for member in members.values() if member.stored) > size:
        raise Fault("its zip members overlap")
    return members


def _end64(file: BufferedReader, place: int, size: int) -> tuple[int, int, int]:
    file.seek(min(place, size))
    record = file.read(56)
    if len(record) < 56 or record[:4] != _END64:
        raise Fault("its zip directory has no valid end", _CUT)
    return struct.unpack_from("<QQQ", record, 32)


def _members(raw: bytes, count: int) -> dict[bytes, Member]:
    members: dict[bytes, Member] = {}
    place = 0
    while place < len(raw):
        if raw[place : place + 4] != b"PK\x01\x02" or len(raw) < place + 46:
            raise Fault("its zip directory is damaged")
        flags, method = struct.unpack_from("<HH", raw, place + 8)
        crc, packed, nbytes, name_length, extra, comment = struct.unpack_from("<IIIHHH", raw, place + 16)
        header = struct.unpack_from("<I", raw, place + 42)[0]
        first = place + 46
        name = raw[first : first + name_length]
        fields = raw[first + name_length : first + name_length + extra]
        nbytes, packed, header = _sizes64(fields, nbytes, packed, header)
        if name in members:
            raise Fault(f"its zip member {shown(name.decode('latin-1'))!r} is there twice")
        method = -1 if flags & 1 else method  # encrypted
        members[name] = Member(header, nbytes, crc, method == 0 and packed == nbytes, packed, method)
        place = first + name_length + extra + comment
    if place != len(raw) or len(members) != count:
        raise Fault("its zip directory is damaged: the number of members is another than it says")
    return members


def _sizes64(fields: bytes, *sizes: int) -> tuple[int, ...]:
    """The sizes and the place of a member, from the zip64 field where 32 bits do not hold them."""
    place, wide = 0, b""
    while place + 4 <= len(fields):
        kind, length = struct.unpack_from("<HH", fields, place)
        if kind == 1:
            wide = fields[place + 4 : place + 4 + length]
        place += 4 + length
    found = []
    for value in sizes:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise Fault("its zip directory is damaged: a size is missing")
            value, wide = struct.unpack_from("<Q", wide)[0], wide[8:]
        found.append(value)
    return tuple(found)


class Archive:
    """The members of one open file."""

    def __init__(self, file: BufferedReader, size: int, check: bool) -> None:
        self.file = file
        self.size = size
        self.members = directory(file, size)
        # torch.serialization.set_crc32_options(False) writes 0 for every checksum.
        self.check = check and any(member.crc for member in self.members.values())
        self.folder = self._folder()

    def _folder(self) -> bytes:
        """The one folder that torch puts all into: that of `data.pkl`."""
        found = [name for name in self.members if name.endswith(b"/data.pkl") and name.count(b"/") == 1]
        if len(found) == 1:
            return found[0][: -len(b"data.pkl")]
        if any(name.endswith(b"/model.json") for name in self.members):
            raise Fault("a TorchScript file from before torch 1.4", "load and save it with a newer torch")
        raise Fault(f"a zip archive with {len(found)} data.pkl: not written by torch.save")

    def place(self, name: str) -> Place:
        """Where the bytes of a member are. Raises Fault if it is not there or not stored as it is."""
        encoded = self.folder + name.encode("utf-8", "replace")
        member = self.members.get(encoded)
        if member is None:
            raise Fault(f"its member {shown(name)!r} is missing")
        if not member.stored:
            raise Fault(f"its member {shown(name)!r} is compressed or encrypted, which torch never does")
        return Place(self._start(name, encoded), member.nbytes, member.crc if self.check else None)

    def _start(self, name: str, encoded: bytes) -> int:
        member = self.members[encoded]
        self.file.seek(min(member.header, self.size))
        header = self.file.read(30 + len(encoded))
        if header[:4] != b"PK\x03\x04" or header[30:] != encoded:
            raise Fault(f"its member {shown(name)!r} is not where the zip directory says")
        name_length, extra = struct.unpack_from("<HH", header, 26)
        start: int = member.header + 30 + name_length + extra
        if name_length != len(encoded) or start + member.packed > self.size:
            raise Fault(f"its member {shown(name)!r} reaches beyond the end of the file")
        return start

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a small member."""
        place = self.place(name)
        if place.nbytes > limit:
            raise Fault(f"its member {shown(name)!r} has {place.nbytes:,} bytes, more than {limit:,}")
        self.file.seek(place.start)
        data = self.file.read(place.nbytes)
        verify(name, data, place)
        return data

    def program(self) -> str:
        """The text of the program in a TorchScript archive, all its files one after the other; to be read, not run."""
        parts = []
        for encoded, member in self.members.items():
            if not encoded.startswith(self.folder + b"code/") or not encoded.endswith(b".py"):
                continue
            name = encoded[len(self.folder) :].decode("latin-1")
            if member.method not in (0, 8) or max(member.nbytes, member.packed) > PROGRAM:
                raise Fault(
                    f"its member {shown(name)!r} is encrypted, too large or packed in a way that torch never has"
                )
            self.file.seek(self._start(name, encoded))
            data = self.file.read(member.packed)
            if member.method == 8:
                data = _inflated(name, data, member.nbytes)
            verify(name, data, Place(0, member.nbytes, member.crc if self.check else None))
            parts.append(data.decode("utf-8", "replace"))
        return "\n".join(parts)


def _inflated(name: str, data: bytes, nbytes: int) -> bytes:
    """At most one byte more than the directory promises, so that nothing unfolds without end."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, nbytes + 1)
    except zlib.error:
        raise Fault(f"its member {shown(name)!r} is damaged", "fetch it again") from None


def verify(name: str, data: bytes | memoryview, place: Place) -> None:
    """Raise Fault if the bytes are not those that were written."""
    if len(data) != place.nbytes:
        raise Fault(f"its member {shown(name)!r} is cut short", "fetch it again")
    if place.crc is not None and zlib.crc32(data) != place.crc:
        raise Fault(f"the bytes of its member {shown(name)!r} are not those that were written", "fetch it again")


def read_zip(file: BufferedReader, size: int, check: bool) -> tuple[object, dict[str, Place]]:
    """The tree of the archive, and where its storages are. Raises Fault."""
    archive = Archive(file, size, check)
    if archive.folder + b"byteorder" in archive.members:
        order = archive.read("byteorder", 16)
        if order != b"little":
            raise Fault(
                f"its numbers have the byte order {shown(order.decode('latin-1'))!r}, not 'little'", "convert it"
            )
    pickled = archive.read("data.pkl", PICKLE)
    known = Known(len(pickled))
    source = BytesIO(pickled)
    tree = Machine(known).run(source)
    if source.tell() != len(pickled):
        raise Fault("its pickle has something behind its end")
    places = {}
    for key, storage in known.storages.items():
        place = places[key] = archive.place(f"data/{key}")
        if place.nbytes != storage.nbytes:
            raise Fault(f"its storage {shown(key)!r} has {place.nbytes} bytes, its pickle says {storage.nbytes}")
    return tree, places
