"""WebDataset tars: samples by key, read in any order and without unpacking."""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from pydantic import Field

from smalti.config import Config, PathField
from smalti.data.classes import Classed, number_classes
from smalti.data.clips import ClipConfig
from smalti.data.images import SUFFIXES as PICTURES
from smalti.data.images import Images
from smalti.data.lists import list_files
from smalti.data.source import decode_text, open_media, refuse
from smalti.data.tar_headers import LONGEST_NOTE, Member, read_members
from smalti.data.videos import SUFFIXES as VIDEOS
from smalti.data.videos import Videos
from smalti.data.views import ViewConfig
from smalti.errors import BadFile, InputError
from smalti.text import one_line, printable

_NO_LINE = re.compile(r"[\n\r\0\ud800-\udc7f\udd00-\udfff]")
"""Line breaks, and halves of characters, which JSON can hold."""


class _Samples(NamedTuple):
    """The samples of one tar, in the order of their first members."""

    media: list[Member]
    labels: list[str | None]
    texts: list[Member | None]
    """Where the caption of each may be: its `txt`, or else its `json`."""
    faults: list[str]


def _samples(path: Path, suffixes: Sequence[str], member: str | None) -> _Samples:
    """Raises BadFile where the tar cannot be opened."""
    with open_media(path) as file:
        groups = dict[str, dict[str, Member]]()
        faults = []
        try:
            for found in read_members(file):
                folder, name = os.path.split(found.name)
                base, dot, extension = name.partition(".")
                if not base or not dot:
                    continue  # hidden, or without a suffix
                group = groups.setdefault(os.path.join(folder, base), {})  # noqa: PTH118 - a name, not a path
                if extension.lower() in group:
                    first = group[extension.lower()].offset
                    faults.append(f"{_place(path, found)} is there twice, first at byte {first:,}")
                group[extension.lower()] = found
        except ValueError as error:
            faults.append(f"{printable(path)}: {error}")
        media, labels, texts = list[Member](), list[str | None](), list[Member | None]()
        for key, group in groups.items():
            try:
                chosen = _choose(group, suffixes, member)
                if chosen is not None:
                    label = _label(file, group)
                    media.append(chosen)
                    labels.append(label)
                    texts.append(group.get("txt", group.get("json")))
            except ValueError as error:
                faults.append(f"{printable(path)}: sample {printable(key)}: {error}")
    return _Samples(media, labels, texts, faults)


def suffixes_in(path: Path) -> set[str]:
    """The suffixes of the members of a tar, by its headers. Raises InputError where it is damaged."""
    with open_media(path) as file:
        try:
            return {os.path.splitext(member.name)[1].lower() for member in read_members(file)}  # noqa: PTH122
        except ValueError as error:
            raise InputError(f"{printable(path)}: {error}") from None


def _choose(group: dict[str, Member], suffixes: Sequence[str], member: str | None) -> Member | None:
    """The medium of a sample; None for a sample of another kind."""
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
    if {"cls", "json"} & set(group) and not last & {*PICTURES, *VIDEOS}:
        raise ValueError(f"has no picture or video (there are: {_listed(group)})")
    return None


def _label(file: BinaryIO, group: dict[str, Member]) -> str | None:
    """The class in `.cls`; else in `.json`, a whole number, or an object with it or a name under `label` or `cls`."""
    kind = next((kind for kind in ("cls", "json") if kind in group), None)
    if kind is None:
        return None
    found = group[kind]
    where = f"its {kind} at byte {found.offset:,}"
    if found.size > LONGEST_NOTE:
        raise ValueError(f"{where} has {found.size:,} bytes, at most {LONGEST_NOTE:,} are read")
    file.seek(found.offset)
    text = file.read(found.size).decode("utf-8", "surrogateescape").strip()
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


class TarMembers(Classed):
    """Media in tars, by an index that the headers gave; a `Store`."""

    def __init__(self, root: Path, tars: Sequence[str], suffixes: Sequence[str], member: str | None = None) -> None:
        self.root, self.tars = root, tuple(tars)
        places, labels, faults = list[tuple[int, int, int]](), list[str | None](), list[str]()
        self._names, self._texts = list[str](), list[Member | None]()
        for number, tar in enumerate(self.tars):
            try:
                found = _samples(root / tar, suffixes, member)
            except BadFile as bad:
                faults.append(str(bad))
                continue
            self._names += [one.name for one in found.media]
            places += [(number, one.offset, one.size) for one in found.media]
            labels += found.labels
            self._texts += found.texts
            faults += found.faults
        where = printable(root / self.tars[0] if len(self.tars) == 1 else root)
        refuse(where, "members or tars", faults)
        if not places:
            raise InputError(f"{where}: no sample has a file of any of {' '.join(suffixes)}")
        self._places = np.array(places, np.int64)  # 24 bytes a sample, shared by readers
        super().__init__(number_classes(labels, where=where, named=self.key))

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        """`tar/member`, on one line."""
        return printable(f"{self.tars[self._places[index, 0]]}/{self._names[index]}")

    def where(self, index: int) -> str:
        """The path of the tar, the member, and its first byte."""
        tar, offset, size = self._places[index].tolist()
        return _place(self.root / self.tars[tar], Member(self._names[index], offset, size))

    def caption(self, index: int) -> str | None:
        """The text in its `txt`, or what its `json` has under `caption` or `text`. Raises BadFile."""
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
        found = [value[name] for name in ("caption", "text") if name in value] if isinstance(value, dict) else []
        return found[0] if found and isinstance(found[0], str) else None

    def media(self, index: int) -> bytes:
        """The bytes of a member. Raises BadFile where they are not there any more."""
        tar, offset, size = self._places[index].tolist()
        with open_media(self.root / self.tars[tar]) as file:
            file.seek(offset)
            data = file.read(size)
        if not size:
            raise BadFile(self.where(index), "empty", "has no bytes; write it again")
        if len(data) < size:
            raise BadFile(self.where(index), "truncated", "the tar has become shorter since it was listed")
        return data


class TarsConfig(Config):
    """Which tars a source has."""

    kind: str
    path: PathField
    """A tar, a folder of tars (searched to the bottom), or a pattern such as `train-{0000..0146}.tar`."""
    member: str | None = None
    """File of a sample that is read, by what follows the first dot of its name (`jpg`, `left.png`); needed if a sample
    has several."""
    limit: int = Field(default=1_000_000, ge=1)
    """Largest number of tars that are listed."""

    def tars(self) -> tuple[Path, tuple[str, ...]]:
        """(folder, tars below it). Raises InputError where there are none."""
        if "{" in str(self.path) and not os.path.lexists(self.path):
            return _expand(self.path, self.limit)
        return list_files(self.path, (".tar",), limit=self.limit)[:2]

    def members(self, suffixes: Sequence[str]) -> TarMembers:
        """Read the headers of all tars. Raises InputError with the faults of each."""
        return TarMembers(*self.tars(), suffixes, self.member)


def _expand(pattern: Path, limit: int) -> tuple[Path, tuple[str, ...]]:
    """(folder, tars below it) of a pattern with {0000..0146} or {a,b}. Raises InputError where a tar is missing."""
    fixed = next(i for i, part in enumerate(pattern.parts) if "{" in part)
    root, text = Path(*pattern.parts[:fixed]), os.path.join(*pattern.parts[fixed:])  # noqa: PTH118
    pieces = [_choices(piece, limit) for piece in re.split(r"(\{[^{}]*\})", text)]
    count = math.prod(map(len, pieces))
    if not 1 <= count <= limit:
        what = f"more than {limit:,} tars; raise `limit`" if count else "no tars; write the smaller number first"
        raise InputError(f"{printable(pattern)}: stands for {what}")
    tars = tuple("".join(chosen) for chosen in product(*pieces))
    missing = [f"no such file {printable(tar)}" for tar in tars if not os.path.lexists(root / tar)]
    refuse(printable(pattern), "tars", missing)
    return root, tars


def _choices(piece: str, limit: int) -> list[str]:
    """What a piece of a pattern stands for: numbers of equal width (never many more than `limit`), names, or itself."""
    span = re.fullmatch(r"\{(\d{1,9})\.\.(\d{1,9})\}", piece)
    if span is None:
        return piece[1:-1].split(",") if piece.startswith("{") else [piece]
    return [f"{n:0{len(span[1])}d}" for n in range(int(span[1]), int(span[2]) + 1)[: limit + 1]]


class TarImagesConfig(ViewConfig, TarsConfig):
    """Pictures in WebDataset tars, each a sample of one frame."""

    kind: Literal["tar-images"] = "tar-images"

    def build(self) -> Images:
        """Read the headers of all tars. Raises InputError with the faults of each."""
        return Images(self, self.members(PICTURES))


class TarVideosConfig(ClipConfig, TarsConfig):
    """Videos in WebDataset tars, each a sample of one clip."""

    kind: Literal["tar-videos"] = "tar-videos"

    def build(self) -> Videos:
        """Read the headers of all tars. Raises InputError with the faults of each."""
        return Videos(self, self.members(VIDEOS))
