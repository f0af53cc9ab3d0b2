"""Containers by their first bytes: what a file is, and where it says that it ends, without decoding anything."""

import os
import struct
from io import BytesIO
from typing import BinaryIO, NamedTuple

FOREIGN = (
    (0, b"<!DOCTYPE", "an HTML page (a download that failed?)"),
    (0, b"<!doctype", "an HTML page (a download that failed?)"),
    (0, b"<html", "an HTML page (a download that failed?)"),
    (0, b"#EXTM3U", "a playlist, which names other files"),
    (0, b"ffconcat", "a playlist, which names other files"),
    (0, b"\x0b\x77", "sound (AC-3)"),
    (0, b"fLaC", "sound (FLAC)"),
    (0, b"ID3", "sound (MP3)"),
    (8, b"WAVE", "sound (WAV)"),
    (0, b"FWS", "Flash (SWF)"),
    (0, b"CWS", "Flash (SWF)"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%!PS", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"\x1f\x8b", "packed with gzip"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"PAR1", "a Parquet file"),
    (257, b"ustar", "a tar"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
)
"""(place, bytes, name) of files that are often found under the name of an image or a video, and are neither."""

HEAD_BYTES = 512
_SEGMENT = b"\x18\x53\x80\x67"
_ASF_HEAD = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_BOXES = frozenset(b"ftyp moov mdat free skip wide moof mfra sidx styp uuid pnot meta udta emsg prft ssix".split())


class Ending(NamedTuple):
    """The end of a file by its own account."""

    is_known: bool
    """Whether the container says where it ends, or that it has ended."""
    is_cut: bool
    """Whether bytes are missing at the end."""
    what: str = ""
    """Missing part, as `holds 1,000 of 2,000 bytes`."""


_UNKNOWN, _WHOLE = Ending(False, False), Ending(True, False)


def foreign_kind(head: bytes) -> str | None:
    """Return what a file is by its first bytes, where it is of a kind that is not read; None where they do not tell."""
    return next((name for place, mark, name in FOREIGN if head[place : place + len(mark)] == mark), None)


def ending_of(file: BinaryIO | BytesIO) -> Ending:
    """Return whether an open file ends where its container says that it should.

    MP4 and its kin say it by the size of each box, Matroska, AVI and ASF by one number in the head, Ogg by a mark on
    the last page, FLV by the size of the last tag, GIF by its blocks. MPEG streams and others do not say it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    try:
        if head[4:8] in _BOXES:
            return _end_of_boxes(file, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _until(_end_of_segment(head), size)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _end_of_riff(file, size)
        if head[:16] == _ASF_HEAD:
            return _until(_asf_size(file), size)
        if head[:4] == b"OggS":
            return _end_of_ogg(file, size)
        if head[:3] == b"FLV":
            return _end_of_flv(file, size)
        if head[:4] == b"GIF8":
            return _end_of_gif(file)
    except (struct.error, IndexError):
        pass  # cut within a head, which opening the file will say
    return _UNKNOWN


def _until(end: int | None, size: int) -> Ending:
    if end is None:
        return _UNKNOWN
    return Ending(True, True, f"holds {size:,} of {end:,} bytes") if size < end else _WHOLE


def _end_of_boxes(file: BinaryIO | BytesIO, size: int) -> Ending:
    """Walk the boxes of the file, whose sizes must add up to it (ISO/IEC 14496-12, 4.2)."""
    at, kinds = 0, set[bytes]()
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kinds and kind not in _BOXES and not kind.isalnum():
            break  # bytes after the last box
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        kinds.add(kind)
        if length == 0:  # up to the end of the file
            at = size
        elif length < 8:
            return _UNKNOWN
        at += length
    if at > size:
        return Ending(True, True, f"holds {size:,} of at least {at:,} bytes")
    return Ending(True, True, "has no index (moov)") if b"mdat" in kinds and b"moov" not in kinds else _WHOLE


def _end_of_segment(head: bytes) -> int | None:
    """Return the end of the first segment of Matroska or WebM (RFC 8794, RFC 9559); None for a live one."""
    length, at = _ebml_size(head, 4)
    at += length or 0
    while head[at : at + 1] == b"\xec":  # a gap
        length, at = _ebml_size(head, at + 1)
        at += length or 0
    if head[at : at + 4] != _SEGMENT:
        return None
    length, at = _ebml_size(head, at + 4)
    return None if length is None else at + length


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """Return (a size, None where it is unknown; the place after it)."""
    width = 9 - data[at].bit_length()
    if width > 8:
        raise IndexError("no size")
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def _end_of_riff(file: BinaryIO | BytesIO, size: int) -> Ending:
    """Walk the RIFF chunks of AVI; a file of 2 GB and more has several. A writer that died leaves the size 0."""
    at = 0
    while at + 12 <= size:
        file.seek(at)
        mark, length = struct.unpack("<4sI", file.read(8))
        if mark != b"RIFF":
            break  # bytes after the last chunk
        if length in (0, 0xFFFFFFFF):
            return _UNKNOWN
        at += 8 + length + length % 2
    return _until(at - 1, size) if at == size + 1 else _until(at, size)


def _asf_size(file: BinaryIO | BytesIO) -> int | None:
    """Return the size of the file by its head; None for a live one."""
    file.seek(0)
    head = file.read(1 << 16)
    at = head.index(_ASF_FILE) if _ASF_FILE in head else -1
    if at < 0:
        return None
    size, flags = struct.unpack_from("<Q", head, at + 40)[0], struct.unpack_from("<I", head, at + 88)[0]
    return None if flags & 1 or not size else size


def _end_of_ogg(file: BinaryIO | BytesIO, size: int) -> Ending:
    """Look for the mark of the end on the last page (RFC 3533, 6)."""
    file.seek(max(0, size - (1 << 17)))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return Ending(True, True, "has no whole last page")
    lengths = tail[at + 27 : at + 27 + tail[at + 26]]
    whole = len(lengths) == tail[at + 26] and len(tail) >= at + 27 + len(lengths) + sum(lengths)
    return _WHOLE if whole and tail[at + 5] & 4 else Ending(True, True, "has no page that ends it")


def _end_of_flv(file: BinaryIO | BytesIO, size: int) -> Ending:
    """Compare the last number of the file with the size of the tag before it."""
    if size < 13 + 15:
        return _UNKNOWN
    file.seek(size - 4)
    (last,) = struct.unpack(">I", file.read(4))
    if last == 0:
        return _UNKNOWN  # some writers leave it out
    if last + 4 > size - 13:
        return Ending(True, True, "has no whole last tag")
    file.seek(size - 4 - last + 1)
    length = int.from_bytes(file.read(3), "big")
    return _WHOLE if length == last - 11 else Ending(True, True, "has no whole last tag")


def _end_of_gif(file: BinaryIO | BytesIO) -> Ending:
    """Walk the blocks of a GIF; one that ends after a whole block lacks no more than its end mark."""
    file.seek(0)
    data = file.read()
    at = 13 + _colours(data[10])
    while at < len(data) and data[at] in b"\x21\x2c":
        at += 2 if data[at] == 0x21 else 11 + _colours(data[at + 9])
        while at < len(data) and data[at]:
            at += 1 + data[at]
        if at >= len(data):
            return Ending(True, True, "has no whole last image")
        at += 1
    return _WHOLE if at >= len(data) or data[at] == 0x3B else _UNKNOWN


def _colours(flags: int) -> int:
    """Return the bytes of a table of colours, 0 where there is none."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
