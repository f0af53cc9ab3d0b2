"""What a foreign file holds, as records that do nothing: names, places and sizes."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch


class Fault(Exception):
    """What is wrong with a file, and the mend; the border adds the path."""

    def __init__(self, what: str, mend: str = "fetch or save it again") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


@dataclass(eq=False, slots=True, repr=False)
class Foreign:
    """A class, function or object of somebody else's program: its name and what it was given. Never looked up."""

    name: str
    """`module.name`; a call of something that is itself the result of a call is named `(call)`."""
    args: tuple[object, ...] | None = None
    """What it was called with; None = only the name was stored."""
    state: object = None
    """What `__setstate__` or `__dict__` would have got."""
    items: dict[object, object] | list[object] | None = None
    """What was put into it, where it is a kind of dict, list or set."""

    def __repr__(self) -> str:
        return f"Foreign({self.name!r})"  # its content may hold itself, or itself a billion times


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A run of bytes that tensors share."""

    key: str
    dtype: torch.dtype
    nbytes: int
    start: int = 0
    """First byte within the stored run; not 0 for the views of old files."""


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Stored:
    """A tensor that has not been read: where its values are."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """In values of `dtype`, from the storage's start."""
    conjugate: bool = False
    negative: bool = False

    @property
    def numel(self) -> int:
        """How many values it shows, those that are shown twice counted twice."""
        return prod(self.shape)

    def __repr__(self) -> str:
        return f"Stored({self.dtype}, {list(self.shape)})"


class Place(NamedTuple):
    """Where a storage's bytes are in the file."""

    start: int
    nbytes: int
    crc: int | None  # None: the format keeps none


def shown(text: object) -> str:
    """A foreign text as one short line of ASCII, for messages."""
    line = ascii(str(text)[:81]).replace("\\\\", "\\")[1:-1]
    return line if len(line) <= 80 else line[:77] + "..."
