"""The file of the codec, `.smt`: a head, blocks, and a foot with the seek table. Every byte is under a digest.

    head   magic 8 | format u16 | length u32 | JSON | digest 8
    block  "B" | frames u32 | length u32 | coded ids | digest 8           as many as there are
    foot   "F" | blocks u32 | (frames u32, length u32, digest 8) for each block | blocks u32 | digest 8

In format 1 the text of the head is JSON. Format 2, of files that name a prior, has it in bytes (`pack_head`), and an
image ends after its block, without a foot: its overhead is a third. Format 3 is format 2 for a video with held tokens:
a block is length u32 | flags | coded ids, the flags those of all its tokens, coded as ids of two values, or of length 0
where none is held, and the ids those of the tokens that are not held.

Numbers are little-endian. A digest is BLAKE2b of 8 bytes over the digest before it and all bytes since. So a block is
known to be the one that was written here, in this order; whoever reads the foot alone knows every block by its digest.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from typing import BinaryIO, Literal, NamedTuple

from pydantic import Field, model_validator

from smalti.config import Config, Triple, Tuple, Two
from smalti.data.source import MAX_PIXELS
from smalti.errors import ConfigError, IntegrityError
from smalti.files import failpoint
from smalti.quantize.quantizer import LARGEST_CODEBOOK
from smalti.tokenizer_info import TokenizerInfo
from smalti.version import __version__
from smalti.video import legal_size

SMT_FORMAT = 3
"""Newest format that is read and written."""
MAGIC = b"\x93SMT\r\n\x1a\n"
"""As in PNG: not text, and changed by whatever changes line ends."""
IMAGE_KIND: Literal["picture"] = "picture"
LARGEST_HEAD = 1 << 16
LARGEST_BLOCK = 1 << 26
"""Tokens."""
_DIGEST = 8
_START = struct.Struct("<8sHI")
_BLOCK = struct.Struct("<sII")
_FOOT = struct.Struct("<sI")
_ENTRY = struct.Struct(f"<II{_DIGEST}s")
_END = struct.Struct(f"<I{_DIGEST}s")
_AT_ONCE = 1 << 20
_FIX = "copy it again, or compress its source anew"


Rate = Two[int]


class Head(Config):
    """Header of a `.smt` file: its media and its tokenizer. Frame i of a video is shown at i / rate seconds."""

    kind: Literal["picture", "video"]
    """`picture` for an image, as the first files of this format say."""
    tokenizer: str = Field(pattern="^[0-9a-f]{32}([0-9a-f]{32})?$")
    """The fingerprint of the tokenizer, without which ids mean nothing; its first half in format 2."""
    levels: Tuple[int]
    """Values of each digit; digit 0 is the least significant of an id."""
    strides: Triple[int]
    """Frames, height and width in pixels of one token."""
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    rate: Rate | None
    """Frames per second as a fraction; null for an image."""
    block: int = Field(ge=1)
    """Latent frames of a block: all blocks are full but the last of a group."""
    group: int = Field(ge=0)
    """Frames that are a video of their own, encoded and decoded without those before; 0 is all of them."""
    pixel_aspect: Rate | None = None
    """Width of a pixel over its height, as a fraction; null for square pixels, and then not written."""
    prior: str | None = Field(default=None, pattern="^[0-9a-f]{16}$")
    """Digest of the prior that ids may be coded with; null for none, and then not written."""
    holds: bool = False
    """Whether tokens may be held, in place of coded; the format says so."""
    smalti: str = Field(default=__version__, max_length=99)
    """The version that wrote the file."""

    @model_validator(mode="after")
    def _sane(self) -> "Head":
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) > LARGEST_CODEBOOK:
            raise ValueError(f"levels {list(self.levels)} are those of no quantizer")
        if min(self.strides) < 1:
            raise ValueError(f"strides {list(self.strides)} are below 1")
        if self.height * self.width > MAX_PIXELS:
            raise ValueError(f"frames of {self.width} x {self.height} pixels, at most {MAX_PIXELS:,} are read")
        if self.block * math.prod(self.grid) > LARGEST_BLOCK:
            raise ValueError(f"blocks of {self.block} x {self.grid} tokens, at most {LARGEST_BLOCK:,} are read")
        if (self.rate is None) != self.is_image or (self.rate is not None and min(self.rate) < 1):
            raise ValueError(f"rate {self.rate} does not suit kind {self.kind}")
        if self.pixel_aspect is not None and min(self.pixel_aspect) < 1:
            raise ValueError(f"pixel_aspect {self.pixel_aspect} is no shape of a pixel")
        if self.holds and (self.is_image or self.prior is None):
            raise ValueError("holds is for videos that are coded with a prior")
        return self

    @property
    def format(self) -> int:
        """Format of the file: the oldest that can say all this."""
        return 1 if self.prior is None else 3 if self.holds else 2

    @property
    def has_foot(self) -> bool:
        """Whether the file ends with a seek table."""
        return self.format == 1 or not self.is_image

    @property
    def is_image(self) -> bool:
        """Whether the file holds an image and not a video."""
        return self.kind == IMAGE_KIND

    @property
    def info(self) -> TokenizerInfo:
        """Facts of the tokenizer that made the ids."""
        size = math.prod(self.levels)
        return TokenizerInfo(fingerprint=self.tokenizer, levels=self.levels, codebook_size=size, strides=self.strides)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width in tokens."""
        size = legal_size((1, self.height, self.width), self.strides)
        return size.h // self.strides[1], size.w // self.strides[2]

    @property
    def fps(self) -> Fraction:
        """Frame rate; 1 for an image."""
        return Fraction(1) if self.rate is None else Fraction(*self.rate)

    def room(self, start: int) -> int:
        """Return the frames of a whole block that starts at frame `start`: up to the end of its group, if near."""
        at, stride = self._in_group(start), self.strides[0]
        whole = stride * self.block if at else 1 + stride * (self.block - 1)
        return min(whole, self.group - at) if self.group else whole

    def latents(self, start: int, frames: int) -> int:
        """Return the latent frames of a block of `frames` frames that starts at frame `start`."""
        alone = 0 if self._in_group(start) else 1
        return alone - (alone - frames) // self.strides[0]

    def group_start(self, frame: int) -> int:
        """Return the frame at which the decoder must start for this one."""
        return frame - self._in_group(frame)

    def _in_group(self, frame: int) -> int:
        return frame % self.group if self.group else frame


class CodedBlock(NamedTuple):
    """Coded ids of some frames, checked."""

    start: int
    """The number of the first frame."""
    frames: int
    data: bytes


class Entry(NamedTuple):
    """A line of the seek table."""

    start: int
    frames: int
    offset: int
    """Place of the block in the file, in bytes."""
    length: int
    """Size of the coded ids in bytes."""
    before: bytes
    """The digest before the block."""
    digest: bytes


class Writer:
    """Writes a file block by block; it is whole when `close` has been called."""

    def __init__(self, file: BinaryIO | BytesIO, head: Head) -> None:
        text = pack_head(head) if head.format > 1 else _json_head(head)
        self._file, self._chain, self._table = file, b"", list[bytes]()
        self.head, self.frames, self.bytes = head, 0, 0
        self._write(_START.pack(MAGIC, head.format, len(text)) + text)

    def add(self, frames: int, data: bytes) -> None:
        """Write the coded ids of the next frames."""
        self._write(_BLOCK.pack(b"B", frames, len(data)) + data)
        self._table.append(_ENTRY.pack(frames, len(data), self._chain))
        self.frames += frames
        failpoint("codec:after-block")

    def close(self) -> None:
        """Write the foot, where there is one."""
        count = len(self._table)
        if self.head.has_foot:
            self._write(_FOOT.pack(b"F", count) + b"".join(self._table) + struct.pack("<I", count))

    def _write(self, data: bytes) -> None:
        self._chain = _digest(self._chain, data)
        self._file.write(data + self._chain)
        self.bytes += len(data) + _DIGEST


class Reader:
    """Reads a file from its beginning, or from its seek table, for which alone it is sought. Errors call it `name`.

    Raises IntegrityError for a file that is not whole, of another program, or of a newer smalti.
    """

    def __init__(self, file: BinaryIO | BytesIO, name: str) -> None:
        self._file, self._name, self._chain = file, name, b""
        start = self._read(_START.size)
        magic, version, length = _START.unpack(start)
        if magic != MAGIC:
            raise IntegrityError(f"{name}: not a file of smalti compress; give a .smt file")
        if not 1 <= version <= SMT_FORMAT:
            raise IntegrityError(
                f"{name}: format {version}; this is smalti {__version__}, which reads formats up to {SMT_FORMAT}: "
                "update smalti"
            )
        if length > LARGEST_HEAD:
            raise self._damaged("its head is too long")
        text = self._read(length)
        self._check(start + text, "its head")
        self.head = self._parsed(text) if version == 1 else self._unpacked(text, holds=version == 3)
        if self.head.format != version:
            raise self._damaged(f"its head is not one of format {version}")
        self._begun = _START.size + length + _DIGEST, self._chain

    def blocks(self) -> Iterator[CodedBlock]:
        """Read all blocks in their order, once, right after opening; the foot is checked at the end."""
        table, start, full = list[bytes](), 0, True
        while (mark := self._read(1)) == b"B":
            frames, length = struct.unpack("<II", (rest := self._read(_BLOCK.size - 1)))
            data = self._read(length)
            self._check(mark + rest + data, f"block {len(table)}")
            self._check_frames(start, frames, full)
            table.append(_ENTRY.pack(frames, length, self._chain))
            yield CodedBlock(start, frames, data)
            start, full = start + frames, frames == self.head.room(start)
            if not self.head.has_foot:
                break
        if not self.head.has_foot:
            if not table or mark != b"B" or self._file.read(1):
                raise self._damaged("it is not one block")
            return
        foot = self._read(_FOOT.size - 1 + _ENTRY.size * len(table) + 4)
        count = struct.pack("<I", len(table))
        self._check(mark + foot, "its foot")
        if mark != b"F" or foot != count + b"".join(table) + count or not table:
            raise self._damaged("its seek table is not that of its blocks")
        if self._file.read(1):
            raise self._damaged("it goes on after its end")

    def table(self) -> list[Entry]:
        """Read the seek table from the end of the file, without the blocks. Raises IntegrityError."""
        offset, chain = self._begun
        end = self._file.seek(0, 2)
        if not self.head.has_foot:
            return [self._only_entry(offset, chain, end)]
        if end < offset + _FOOT.size + _END.size:
            raise self._damaged("it is cut")
        self._file.seek(end - _END.size)
        count, digest = _END.unpack(self._read(_END.size))
        size = _FOOT.size + _ENTRY.size * count + _END.size
        if end < offset + size:
            raise self._damaged("it is cut")
        self._file.seek(end - size)
        foot = self._read(size)
        entries, start = list[Entry](), 0
        for i in range(count):
            frames, length, next_chain = _ENTRY.unpack_from(foot, _FOOT.size + _ENTRY.size * i)
            entries.append(Entry(start, frames, offset, length, chain, next_chain))
            start, offset, chain = start + frames, offset + _BLOCK.size + length + _DIGEST, next_chain
        whole = _digest(chain, foot[:-_DIGEST]) == digest and _FOOT.unpack_from(foot) == (b"F", count)
        if not whole or offset + size != end or not entries:
            raise self._damaged("its foot has changed since it was written")
        full = True
        for entry in entries:
            self._check_frames(entry.start, entry.frames, full)
            full = entry.frames == self.head.room(entry.start)
        return entries

    def _only_entry(self, offset: int, chain: bytes, end: int) -> Entry:
        """The block of an image without a foot: all that is left."""
        length = end - offset - _BLOCK.size - _DIGEST
        self._file.seek(offset)
        if length < 0 or self._read(_BLOCK.size) != _BLOCK.pack(b"B", 1, length):
            raise self._damaged("it is not one block")
        self._file.seek(end - _DIGEST)
        return Entry(0, 1, offset, length, chain, self._read(_DIGEST))

    def block(self, entry: Entry) -> CodedBlock:
        """Read one block by the seek table. Raises IntegrityError."""
        self._file.seek(entry.offset)
        data = self._read(_BLOCK.size + entry.length)
        self._chain = entry.before
        self._check(data, f"the block of frame {entry.start}")
        if data[: _BLOCK.size] != _BLOCK.pack(b"B", entry.frames, entry.length) or self._chain != entry.digest:
            raise self._damaged("its seek table is not that of its blocks")
        return CodedBlock(entry.start, entry.frames, data[_BLOCK.size :])

    def _parsed(self, text: bytes) -> Head:
        try:
            return Head.parse(json.loads(text), where=self._name)
        except (ValueError, RecursionError):
            raise self._damaged("its head is no JSON") from None
        except ConfigError as error:
            raise IntegrityError(f"{error}: not a head that smalti {__version__} has written") from None

    def _unpacked(self, text: bytes, *, holds: bool) -> Head:
        try:
            return unpack_head(text, holds=holds)
        except (ValueError, IndexError, ConfigError):
            raise self._damaged(f"its head is none that smalti {__version__} has written") from None

    def _check_frames(self, start: int, frames: int, follows: bool) -> None:
        """A block has as many frames as there is room for, or fewer and is the last; an image has one frame."""
        room = self.head.room(start) if self.head.kind == "video" else int(start == 0)
        if not follows or not 0 < frames <= room:
            raise self._damaged(f"{frames} frames from frame {start} on are not where its head wants them")

    def _read(self, count: int) -> bytes:
        """Exactly so many bytes, in pieces: what a damaged length promises is not allocated."""
        pieces = []
        while count:
            piece = self._file.read(min(count, _AT_ONCE))
            if not piece:
                raise self._damaged("it is cut")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _check(self, data: bytes, what: str) -> None:
        self._chain = _digest(self._chain, data)
        if self._read(_DIGEST) != self._chain:
            raise self._damaged(f"{what} has changed since it was written")

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self._name}: {what}; {_FIX}")


def pack_head(head: Head) -> bytes:
    """Return a head of format 2 or 3: half the tokenizer's fingerprint, the prior's digest, whole numbers of seven
    bits a byte, the version."""
    rate, aspect = head.rate or (0, 0), head.pixel_aspect or (0, 0)
    numbers = (head.height, head.width, *rate, *aspect, head.block, head.group, *head.strides)
    counted = b"".join(map(_number_bytes, (*numbers, len(head.levels), *head.levels)))
    return bytes.fromhex(head.tokenizer)[:16] + bytes.fromhex(head.prior or "") + counted + head.smalti.encode()


def unpack_head(text: bytes, *, holds: bool = False) -> Head:
    """Read what `pack_head` wrote; `holds` is that of the head. Raises ValueError, IndexError or ConfigError for
    anything else."""
    at = 24

    def number() -> int:
        nonlocal at
        value, place = 0, 0
        while True:
            value += (text[at] & 127) << place
            at, place = at + 1, place + 7
            if text[at - 1] < 128:
                return value
            if place > 62:
                raise ValueError("a number is too long")

    height, width, *rest = (number() for _ in range(11))
    levels = tuple(number() for _ in range(min(number(), 64)))
    fields = {
        "kind": "video" if rest[0] else IMAGE_KIND,
        "tokenizer": text[:16].hex(),
        "prior": text[16:24].hex(),
        "height": height,
        "width": width,
        "rate": rest[0:2] if rest[0] else None,
        "pixel_aspect": rest[2:4] if rest[2] else None,
        "block": rest[4],
        "group": rest[5],
        "strides": rest[6:9],
        "levels": levels,
        "holds": holds,
        "smalti": text[at:].decode(),
    }
    head = Head.parse(fields)
    if pack_head(head) != text:
        raise ValueError("it has another form")
    return head


def _number_bytes(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have bit 7."""
    high = value >> 7
    return bytes([value & 127 | (128 if high else 0)]) + (_number_bytes(high) if high else b"")


def _json_head(head: Head) -> bytes:
    absent = {"holds", *(name for name in ("pixel_aspect", "prior") if getattr(head, name) is None)}
    fields = {name: value for name, value in head.plain().items() if name not in absent}  # older readers know no such
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _digest(before: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(before + data, digest_size=_DIGEST).digest()
