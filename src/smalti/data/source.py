"""The common part of sources and stores of samples: functions, classes, random order, the checks of a media file."""

import hashlib
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.errors import BadFile, InputError, is_out_of_memory
from smalti.text import one_line, printable

Medium = Literal["images", "videos"]

MAX_PIXELS = 64_000_000
"""Largest number of pixels of an image or frame (192 MB of RGB), compared with the header before decoding."""
LARGEST_CLASS = 1_000_000

NOTHING_LEFT_OUT: Mapping[str, int] = {}
"""Counts of what is there and is not listed, by the reason: none."""

_LFS = b"version https://git-lfs.github.com/spec/"
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


@runtime_checkable
class Source(Protocol):
    """A fixed, ordered list of samples: images, clips of videos, or anything with these four functions."""

    def __len__(self) -> int:
        """Return the number of samples, the bad ones included."""
        ...

    def key(self, index: int) -> str:
        """Return the name of a sample, different for each: text that prints on one line."""
        ...

    def label(self, index: int) -> int | None:
        """Return the class of a sample, or None where the source has no classes."""
        ...

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """Load the pixels of a sample (an image has t = 1), augmented as `rng` decides. Raises BadFile."""
        ...


class Subset:
    """Samples `indices` of a source, in that order; itself a `Source`. The first n are `range(len(source))[:n]`."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """Return the name of a sample."""
        return self.source.key(self.indices[index])

    def label(self, index: int) -> int | None:
        """Return the class of a sample, or None."""
        return self.source.label(self.indices[index])

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """Load the pixels of a sample. Raises BadFile."""
        return self.source.load(self.indices[index], rng)


class Classes(NamedTuple):
    """The class of each sample, and the names of the classes."""

    labels: tuple[int, ...] | None
    """Indices into `names`, one for each sample; None where there are no classes."""
    names: tuple[str, ...]


NO_CLASSES = Classes(None, ())


class Store(ABC):
    """Where the media of a source are: files of a folder or list, members of tars, cells of a table."""

    def __init__(
        self, classes: Classes, *, numbered: bool | None = None, left_out: Mapping[str, int] = NOTHING_LEFT_OUT
    ) -> None:
        self._labels = classes.labels
        self.classes = classes.names
        """Names of the classes."""
        self.numbered = all(map(str.isdigit, classes.names)) if numbered is None else numbered
        """Whether classes are whole numbers, which mean the same in every file."""
        self.left_out = left_out
        """Number of files or members that are there and are no samples, by the reason."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of media."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the name of a medium, different for each: text that prints on one line."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Return the path of a medium on one line, as error messages name it."""

    @abstractmethod
    def media(self, index: int) -> Path | bytes:
        """Return a media file, or its bytes. Raises BadFile."""

    @abstractmethod
    def caption(self, index: int) -> str | None:
        """Read the text that goes with a medium; None where there is none. Raises BadFile where it is no text."""

    def label(self, index: int) -> int | None:
        """Return the class of a medium, an index into `classes`, or None where there are none."""
        return None if self._labels is None else self._labels[index]

    def sizes(self) -> Sequence[int] | None:
        """Return the bytes of each medium, -1 where it cannot be read; None where all would have to be read to tell."""
        return None

    def digest(self, index: int) -> str | None:
        """Return the sha256 of a medium's bytes; None where it cannot be read."""
        try:
            media = self.media(index)
            if isinstance(media, bytes):
                return hashlib.sha256(media).hexdigest()
            digest = hashlib.sha256()
            with open_media(media) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            return digest.hexdigest()
        except (BadFile, OSError):
            return None


class StoreSource:
    """The part of a `Source` that is the same for images and videos: names and classes are those of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def key(self, index: int) -> str:
        """Return the name of a sample, on one line."""
        return self.store.key(index)

    def label(self, index: int) -> int | None:
        """Return the class of a sample, an index into `classes`, or None."""
        return self.store.label(index)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.store.classes


def number_classes(
    labels: Sequence[str | None], *, where: str, name_of: Callable[[int], str] = str, whole_numbers: bool = True
) -> Classes:
    """Number the classes of samples: whole numbers keep their value, names are numbered in byte order.

    None for every sample means no classes. Raises InputError where only some have a class (`name_of` names the first
    that has none), and where a number is below 0 or above 1,000,000.
    """
    present = [label for label in labels if label is not None]
    if not present:
        return NO_CLASSES
    if len(present) < len(labels):
        first = name_of(next(i for i, label in enumerate(labels) if label is None))
        missing = f"{len(labels) - len(present):,} of {len(labels):,} samples have no class"
        raise InputError(f"{where}: {missing}, the first is {first}; give all a class, or none")
    names = set(present)
    if whole_numbers and all(map(_WHOLE_NUMBER.fullmatch, names)):
        wrong = next((n for n in names if n.startswith("-") or len(n) > 9 or int(n) > LARGEST_CLASS), None)
        if wrong is not None:
            raise InputError(f"{where}: class {wrong[:20]} is no class number (0 to {LARGEST_CLASS:,}); correct it")
        numbers = tuple(map(int, present))
        return Classes(numbers, tuple(map(str, range(max(numbers) + 1))))
    ordered = tuple(sorted(names, key=os.fsencode))
    number = {name: i for i, name in enumerate(ordered)}
    return Classes(tuple(number[name] for name in present), ordered)


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
        raise BadFile(printable(path), "missing", "no such file") from None
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


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in small letters, as `.jpg`; empty where it has none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - names stay text: millions of Paths are slow


FIRST = 100
"""Files that count as read, before there are so many, where a share of bad ones is limited."""


def check_bad_share(bad: int, listed: int, most: float) -> None:
    """Raise InputError where more than the share `most` of the files so far are bad; the first `FIRST` count as read.

    A run over many files that is mostly bad (another format, a disk that fails) then ends early.
    """
    if bad > most * max(listed, FIRST):
        what = f"{bad:,} of the first {listed:,} files could not be used, more than `max_bad` {most:g}"
        raise InputError(f"{what}; look at their faults, repair them, or allow more")


@contextmanager
def memory_as_bad_file(name: str) -> Iterator[None]:
    """Turn a lack of memory within the block into a BadFile of that name, with the code memory."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Not within `except`: as its context, the error would keep the frames that took the memory, and their tensors.
    raise BadFile(name, "memory", "needs more memory than there is; take a smaller size, or clips")


def raise_listed(where: str, what: str, faults: list[str]) -> None:
    """Raise InputError on one line with the first five faults, each cut to 300 characters, and their number; return
    where there are none."""
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        texts = [text if len(text) <= 300 else f"{text[:280]}... ({len(text):,} characters)" for text in faults[:5]]
        raise InputError(f"{where}: {len(faults)} bad {what}: {'; '.join(texts)}{more}")


def decode_text(data: bytes, where: str) -> str:
    """Decode a caption, without blanks at its ends. Raises BadFile, naming `where`, unless it is UTF-8."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadFile(where, "caption", f"its text is not UTF-8 ({one_line(error)})") from None


_MASK = (1 << 64) - 1
_ROUNDS = 6


def mix(*numbers: int) -> int:
    """Hash whole numbers to 64 bits (splitmix64, chained): the same on every machine and in every version."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def sample_rng(seed: int, epoch: int, index: int) -> torch.Generator:
    """Return the generator that decides the augmentation of a sample: its crop is the same wherever it is loaded."""
    return torch.Generator().manual_seed(mix(seed, epoch, index) >> 1)


class Order:
    """The order of an endless run: position 0, 1, 2, ... to (epoch, index), each epoch another permutation.

    Needs no memory and no replay, whatever the length: a Feistel network of six keyed rounds permutes the smallest
    2^k >= length numbers, and is applied again until it lands below the length (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains"): less than twice on average.
    """

    def __init__(self, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"an order of {length} samples: at least 1 is needed")
        self.length = length
        self.seed = seed
        bits = max(4, (length - 1).bit_length())
        self._halves = (bits // 2, bits - bits // 2)
        self._keys = lru_cache(maxsize=4)(self._make_keys)

    def __call__(self, position: int) -> tuple[int, int]:
        """Return (epoch, index) of a position."""
        if position < 0:
            raise ValueError(f"position {position} is below 0")
        epoch, number = divmod(position, self.length)
        keys = self._keys(epoch)
        number = self._permute(number, keys)
        while number >= self.length:
            number = self._permute(number, keys)
        return epoch, number

    def _permute(self, number: int, keys: tuple[int, ...]) -> int:
        high, low = self._halves
        left, right = number >> low, number & (1 << low) - 1
        for key in keys:  # the halves change places, and so do their widths; after six rounds they are back
            hashed = (right ^ key) * 0xBF58476D1CE4E5B9 & _MASK
            hashed = (hashed ^ hashed >> 29) * 0x94D049BB133111EB & _MASK
            left, right = right, left ^ hashed >> 64 - high
            high, low = low, high
        return left << low | right

    def _make_keys(self, epoch: int) -> tuple[int, ...]:
        return tuple(mix(self.seed, epoch, i) for i in range(_ROUNDS))
