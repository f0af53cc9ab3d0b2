"""WebDataset tars: samples by key, read in any order and without unpacking."""

import json
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from smalti.data.source import Store, decode_text, number_classes, open_media, raise_listed, suffix_of
from smalti.errors import BadFile, InputError
from smalti.text import one_line, printable

LONGEST_NOTE = 1 << 20
"""Largest number of bytes of a long name, of a class, or of the JSON of a sample."""

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NOTES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_NO_LINE = re.compile(r"[\n\r\0\ud800-\udc7f\udd00-\udfff]")
"""Line breaks, and halves of characters, which JSON can hold."""


class Member(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    """Position of its first byte in the tar."""
    size: int


class _Header(tarfile.TarInfo):
    """A header that is read strictly: damaged pax records, sparse files and endless names raise ValueError."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Header":
        """Read the next header, after a look at the note (a long name or pax records) that may stand before it."""
        file = tarfile.fileobj
        assert file is not None
        at = file.tell()
        block = file.read(_BLOCK)
        if block[156:157] in _NOTES:
            note = cls.frombuf(block, "utf-8", "surrogateescape")
            if not 0 <= note.size <= LONGEST_NOTE:
                raise ValueError(f"a name of {note.size:,} bytes at byte {at + _BLOCK:,}")
            if note.type not in _NOTES[-2:]:
                _check_pax(file.read(note.size), at + _BLOCK)
        file.seek(at)
        return super().fromtarfile(tarfile)


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Yield the files in an open tar (ustar, GNU and pax names), by its headers; nothing is unpacked.

    Raises ValueError, naming the byte, where a header is damaged, a member or the end mark is cut off, more follows
    the end mark, a member is a link, a device or sparse, or its name leads out of the folder that it is in.
    """
    length, at, last = os.fstat(file.fileno()).st_size, 0, "its start"
    try:
        tar = tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
        for info in tar:
            at, last = info.offset_data, f"member {printable(info.name)[:300]}"
            if info.isdir():
                continue
            if info.type not in _FILES:
                raise ValueError(f"{last} at byte {at - _BLOCK:,} is a link, device or sparse file, not a file")
            if info.name.startswith("/") or "\0" in info.name or ".." in info.name.split("/"):
                raise ValueError(f"{last} at byte {at:,} has a name that leads elsewhere; pack it anew")
            if not 0 <= info.size <= length - at:
                needs = f"needs {info.size:,} bytes, {length - at:,} are left (cut off)"
                raise ValueError(f"{last} at byte {at - _BLOCK:,} {needs}")
            yield Member(info.name, at, info.size)
            at += (info.size + _BLOCK - 1) // _BLOCK * _BLOCK
    except (tarfile.TarError, OSError, EOFError, OverflowError, RecursionError) as error:
        raise ValueError(f"{_no_header(file, at, last)}: {one_line(error)}") from None
    file.seek(at)
    if file.read(_BLOCK) != bytes(_BLOCK):  # `tarfile` stops without a word at what is no header
        raise ValueError(_no_header(file, at, last))
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise ValueError(f"more data after the end mark at byte {at:,} (tars joined?)")


def _no_header(file: BinaryIO, at: int, last: str) -> str:
    """Return the reason why no header could be read at byte `at`."""
    file.seek(at)
    block = file.read(_BLOCK)
    packer = _COMPRESSED.get(block[:2]) if at == 0 else None
    if packer:
        return f"is packed with {packer}, so that members cannot be found; unpack it"
    if len(block) < _BLOCK:
        return f"ends at byte {at + len(block):,}, after {last}, without the end mark (cut off)"
    return f"no header at byte {at:,}, after {last}"


def _check_pax(note: bytes, at: int) -> None:
    """Check the records `length key=value\\n` of a pax header, whose length counts all of the record."""
    place = 0
    while place < len(note):
        match = re.match(rb"(\d{1,7}) ([^=]+)=", note[place : place + 300])
        stop = place + int(match[1]) if match else 0
        if match is None or not place + match.end() < stop <= len(note) or note[stop - 1 : stop] != b"\n":
            raise ValueError(f"damaged pax header at byte {at + place:,}")
        if match[2].startswith(b"GNU.sparse"):
            raise ValueError(f"a sparse file at byte {at:,}, not a file")
        if match[2] == b"size" and not note[place + match.end() : stop - 1].isdigit():
            raise ValueError(f"damaged pax header at byte {at + place:,}")
        place = stop


class _Samples(NamedTuple):
    """The samples of one tar, in the order of their first members."""

    media: list[Member]
    labels: list[str | None]
    texts: list[Member | None]
    """Member that may hold the caption of each: its `txt`, or else its `json`."""
    bad: dict[int, str]
    """Faults of samples, by their place here: they are listed, and are bad files when they are loaded."""
    faults: list[str]
    """Faults of the tar as a whole."""
    left_out: Counter[str]
    """Number of members or samples that are not among `media`, by the reason."""


def _samples(path: Path, suffixes: Sequence[str], extension: str | None) -> _Samples:
    """Group the members of a tar by key. Raises BadFile where the tar cannot be opened."""
    with open_media(path) as file:
        groups, twice = dict[str, dict[str, Member]](), dict[str, str]()
        faults, left_out = list[str](), Counter[str]()
        try:
            for member in read_members(file):
                folder, name = os.path.split(member.name)
                base, dot, ending = name.partition(".")
                if not base or not dot:
                    left_out["members that are hidden or have no suffix"] += 1
                    continue
                key = os.path.join(folder, base)  # noqa: PTH118 - a name, not a path
                group = groups.setdefault(key, {})
                first = group.setdefault(ending.lower(), member)
                if first is not member:
                    at = f"at byte {first.offset:,} and at byte {member.offset:,}"
                    twice.setdefault(key, f"its {one_line(ending.lower())} is there twice, {at}; pack it anew")
        except ValueError as error:
            faults.append(f"{printable(path)}: {error}")
        samples = _Samples([], [], [], {}, faults, left_out)
        for key, group in groups.items():
            medium, label = next(iter(group.values())), None
            try:
                chosen = _choose(group, suffixes, extension)
                if chosen is None:
                    left_out["samples of other kinds"] += 1
                    continue
                medium = chosen
                if key in twice:
                    raise ValueError(twice[key])
                label = _label(file, group)
            except ValueError as error:
                samples.bad[len(samples.media)] = f"sample {printable(key)}: {error}"
            samples.media.append(medium)
            samples.labels.append(label)
            samples.texts.append(group.get("txt", group.get("json")))
    return samples


def suffixes_in(path: Path) -> set[str]:
    """Return the suffixes of the members of a tar, by its headers. Raises InputError where it is damaged."""
    with open_media(path) as file:
        try:
            return {suffix_of(member.name) for member in read_members(file)}
        except ValueError as error:
            raise InputError(f"{printable(path)}: {error}") from None


def _choose(group: dict[str, Member], suffixes: Sequence[str], member: str | None) -> Member | None:
    """Return the medium of a sample; None for a sample of another kind."""
    if member is not None:
        if member.lower() not in group:
            raise ValueError(f"has no .{member} (there are: {_listed(group)})")
        return group[member.lower()]
    own = [extension for extension in group if f".{extension}" in suffixes]
    if len(own) > 1:
        raise ValueError(f"has several media ({_listed(own)}); set `member` to one")
    if own:
        return group[own[0]]
    last = {f".{extension.rsplit('.', 1)[-1]}" for extension in group}
    if last & set(suffixes):
        raise ValueError(f"has {_listed(group)}; set `member` to one")
    if {"cls", "json"} & set(group) and not last & {*IMAGE_SUFFIXES, *VIDEO_SUFFIXES}:
        raise ValueError(f"has no image or video (there are: {_listed(group)})")
    return None


def _label(file: BinaryIO, group: dict[str, Member]) -> str | None:
    """Read the class in `.cls`, or else in `.json`: a number, or a number or name under `label` or `cls`."""
    kind = next((kind for kind in ("cls", "json") if kind in group), None)
    if kind is None:
        return None
    member = group[kind]
    where = f"its {kind} at byte {member.offset:,}"
    if member.size > LONGEST_NOTE:
        raise ValueError(f"{where} has {member.size:,} bytes, at most {LONGEST_NOTE:,} are read")
    file.seek(member.offset)
    text = file.read(member.size).decode("utf-8", "surrogateescape").strip()
    if kind == "json":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{where} is not valid JSON") from None
        if isinstance(value, dict):
            value = next((value[name] for name in ("label", "cls") if name in value), None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{where} has no whole number or name as class")
        text = str(value).strip()
    if not text or _NO_LINE.search(text):
        raise ValueError(f"{where} is {'no line of text' if text else 'empty'}")
    return text


def _listed(extensions: Iterable[str]) -> str:
    return one_line(", ".join(sorted(extensions)))


def _place(path: Path, member: Member) -> str:
    return f"{printable(path / member.name)} at byte {member.offset:,}"


class TarStore(Store):
    """Media in tars, by an index that is made from the headers; a `Store`."""

    def __init__(self, root: Path, tars: Sequence[str], suffixes: Sequence[str], member: str | None = None) -> None:
        self.root, self.tars = root, tuple(tars)
        places, labels, faults = list[tuple[int, int, int]](), list[str | None](), list[str]()
        self._names, self._texts, self._bad = list[str](), list[Member | None](), dict[int, str]()
        left_out = Counter[str]()
        for number, tar in enumerate(self.tars):
            try:
                samples = _samples(root / tar, suffixes, member)
            except BadFile as bad:
                faults.append(str(bad))
                continue
            self._bad |= {len(places) + place: fault for place, fault in samples.bad.items()}
            self._names += [medium.name for medium in samples.media]
            places += [(number, medium.offset, medium.size) for medium in samples.media]
            labels += samples.labels
            self._texts += samples.texts
            faults += samples.faults
            left_out += samples.left_out
        where = printable(root / self.tars[0] if len(self.tars) == 1 else root)
        if len(self._bad) == len(places):  # where some are good, the others are bad files that are counted
            faults += [f"{printable(root / self.tars[places[place][0]])}: {bad}" for place, bad in self._bad.items()]
        raise_listed(where, "members or tars", faults)
        if not places:
            raise InputError(f"{where}: no sample has a file of any of {' '.join(suffixes)}")
        self._places = np.array(places, np.int64)  # 24 bytes a sample, shared by readers
        good = [place for place in range(len(places)) if place not in self._bad]
        name_of = lambda place: self.key(good[place])  # noqa: E731
        classes = number_classes([labels[place] for place in good], where=where, name_of=name_of)
        if classes.labels is not None and self._bad:
            numbers = dict(zip(good, classes.labels, strict=True))
            classes = classes._replace(labels=tuple(numbers.get(place, 0) for place in range(len(places))))
        super().__init__(classes, left_out=left_out)

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        """Return `tar/member`, on one line."""
        return printable(f"{self.tars[self._places[index, 0]]}/{self._names[index]}")

    def sizes(self) -> list[int]:
        """Return the bytes of each member."""
        sizes: list[int] = self._places[:, 2].tolist()
        return sizes

    def where(self, index: int) -> str:
        """Return the path of the tar, the member, and its first byte."""
        tar, offset, size = self._places[index].tolist()
        return _place(self.root / self.tars[tar], Member(self._names[index], offset, size))

    def label(self, index: int) -> int | None:
        """Return the class of a sample; None where there are none, or the sample is bad."""
        return None if index in self._bad else super().label(index)

    def caption(self, index: int) -> str | None:
        """Read the caption in its `txt`, or under `caption` or `text` in its `json`. Raises BadFile."""
        member, where = self._texts[index], self.where(index)
        if member is None:
            return None
        if member.size > LONGEST_NOTE:
            raise BadFile(where, "caption", f"its text has {member.size:,} bytes, at most {LONGEST_NOTE:,} are read")
        with open_media(self.root / self.tars[self._places[index, 0]]) as file:
            file.seek(member.offset)
            text = decode_text(file.read(member.size), where)
        if not member.name.lower().endswith(".json"):
            return text
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise BadFile(where, "caption", "its json is not valid JSON") from None
        texts = [value[name] for name in ("caption", "text") if name in value] if isinstance(value, dict) else []
        return texts[0] if texts and isinstance(texts[0], str) else None

    def media(self, index: int) -> bytes:
        """Read the bytes of a member. Raises BadFile where they are not there any more, or the sample has a fault."""
        if index in self._bad:
            raise BadFile(self.where(index), "sample", self._bad[index])
        tar, offset, size = self._places[index].tolist()
        with open_media(self.root / self.tars[tar]) as file:
            file.seek(offset)
            data = file.read(size)
        if not size:
            raise BadFile(self.where(index), "empty", "has no bytes; write it again")
        if len(data) < size:
            raise BadFile(self.where(index), "truncated", "the tar has become shorter since it was listed")
        return data


def expand_braces(pattern: Path, limit: int) -> tuple[Path, tuple[str, ...]]:
    """List a pattern with {0000..0146} or {a,b}: (folder, tars below it). Raises InputError where one is missing."""
    fixed = next(i for i, part in enumerate(pattern.parts) if "{" in part)
    root, text = Path(*pattern.parts[:fixed]), os.path.join(*pattern.parts[fixed:])  # noqa: PTH118
    pieces = [_choices(piece, limit) for piece in re.split(r"(\{[^{}]*\})", text)]
    count = math.prod(map(len, pieces))
    if not 1 <= count <= limit:
        what = f"more than {limit:,} tars; raise `limit`" if count else "no tars; write the smaller number first"
        raise InputError(f"{printable(pattern)}: stands for {what}")
    tars = tuple("".join(choice) for choice in product(*pieces))
    missing = [f"no such file {printable(tar)}" for tar in tars if not os.path.lexists(root / tar)]
    raise_listed(printable(pattern), "tars", missing)
    return root, tars


def _choices(piece: str, limit: int) -> list[str]:
    """Return what a piece of a pattern stands for: numbers of equal width (at most `limit` + 1), names, or itself."""
    span = re.fullmatch(r"\{(\d{1,9})\.\.(\d{1,9})\}", piece)
    if span is None:
        return piece[1:-1].split(",") if piece.startswith("{") else [piece]
    return [f"{n:0{len(span[1])}d}" for n in range(int(span[1]), int(span[2]) + 1)[: limit + 1]]
