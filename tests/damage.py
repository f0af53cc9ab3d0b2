"""Damages of every kind of file that smalti writes or reads, and the law that all their readers keep.

A damaged file is refused in one line with its name and the exit code of its error, or it is read; where its format has
digests, then with the content that was written. Nothing else: no other exception, and no other content in silence.

The files are in `tests/formats/kinds.py`; `pytest -m slow -s tests/formats/test_damage.py` damages each 1,000 times.
"""

import random
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from smalti.errors import SmaltiError

READ = "read"
STRANGERS = (
    b"",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\x02\0\0\0",
    b"PK\3\4" + bytes(60),
    b"PAR1" + bytes(40) + b"PAR1",
    struct.pack("<Q", 40) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4),
    b"\0\0\0\x18ftypmp42" + bytes(200),
    b"\x80\x02}q\0X\1\0\0\0aq\1K\1s.",
    b"SMT\0" + bytes(40),
    b'{"format": 1}\n',
    b"[[[[1, 2], 3]]]",
    b"kind: tokenizer\nsteps: 3\n",
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    bytes(4096),
    "a,b\n\ufeff1,\u2028\n".encode(),
)
"""Beginnings of files of other kinds, under the name of this one."""


def flip(data: bytearray, dice: random.Random) -> bytes:
    for _ in range(dice.choice((1, 1, 1, 4))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def cut(data: bytearray, dice: random.Random) -> bytes:
    a, b = sorted(dice.choices(range(len(data) + 1), k=2))
    return bytes(data[:a] if dice.random() < 0.7 else data[:a] + data[b:])


def swap(data: bytearray, dice: random.Random) -> bytes:
    size = dice.randint(1, max(1, len(data) // 4))
    a, b = sorted(dice.randrange(max(1, len(data) - size)) for _ in range(2))
    b = max(b, min(a + size, len(data) - size))
    return bytes(data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :])


def zero(data: bytearray, dice: random.Random) -> bytes:
    at, size = dice.randrange(len(data)), dice.choice((1, 4, 64, 512, len(data)))
    data[at : at + size] = bytes(len(data[at : at + size]))
    return bytes(data)


def lengthen(data: bytearray, dice: random.Random) -> bytes:
    """Put bytes in, or bytes behind its end, or a piece twice."""
    at, size = dice.randrange(len(data) + 1), dice.choice((1, 2, 64, 700))
    extra = data[at : at + size] if dice.random() < 0.5 else dice.randbytes(size)
    return bytes(data + extra if dice.random() < 0.3 else data[:at] + extra + data[at:])


def other_number(data: bytearray, dice: random.Random) -> bytes:
    """Write another number over four or eight bytes, as a wrong length would be, or change a digit of a text."""
    digits = [place for place, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if digits and dice.random() < 0.5:
        place = dice.choice(digits)
        data[place : place + 1] = dice.choice((b"0", b"7", b"9" * 9, b"-1", b"1e9", b"NaN"))
        return bytes(data)
    size, order = dice.choice((2, 4, 8)), dice.choice(("little", "big"))
    number = dice.choice((0, 1, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)) % 256**size
    at = dice.randrange(min(len(data), dice.choice((64, 1024, len(data)))))
    data[at : at + size] = number.to_bytes(size, order)[: len(data) - at]
    return bytes(data)


def stranger(data: bytearray, dice: random.Random) -> bytes:
    head = dice.choice(STRANGERS)
    return head + bytes(data[len(head) :]) if head and dice.random() < 0.3 else head


WAYS = (flip, cut, swap, zero, lengthen, other_number, stranger)


def damaged(data: bytes, dice: random.Random, number: int) -> bytes:
    """A damaged form of a file, in the ways in turn; half of them in its first kilobyte, where the heads are."""
    way = WAYS[number % len(WAYS)]
    for _ in range(20):
        if way not in (cut, stranger) and number // len(WAYS) % 2 and len(data) > 1024:
            changed = way(bytearray(data[:1024]), dice) + data[1024:]
        else:
            changed = way(bytearray(data), dice)
        if changed != data:
            return changed
    return data + b"!"  # no way changes it, as zeros do zeros


class Kind(NamedTuple):
    """A file, and the reader that is called as a user does."""

    path: Path
    read: Callable[[], object]
    """Gives the content, to be compared."""
    exact: bool = True
    """Whether what is read must be what was written: its format has digests."""
    is_known: bool = True
    """Whether something outside of it knows its digest, so that a whole file of other content is refused too."""
    names: tuple[str, ...] = ()
    """Names one of which a refusal may have in place of the file's: a manifest tells of the other files."""


def outcome(kind: Kind, wanted: object, *, is_stranger: bool) -> str:
    """Read it; `read`, or the name of the error. Raises AssertionError where it keeps the law in no way."""
    refusal: SmaltiError | None = None
    try:
        found = kind.read()
    except SmaltiError as fault:
        refusal = fault
    if refusal is None:
        is_free = not kind.exact or (is_stranger and not kind.is_known)
        assert is_free or found == wanted, "other content was read in silence"
        return READ
    text = str(refusal)
    assert any(name in text for name in (kind.path.name, *kind.names)), f"does not name the file: {text}"
    assert text.isprintable(), f"not one line: {text!r}"
    assert len(text) < 2000, f"long: {text}"
    assert refusal.exit_code in (2, 3, 4), f"exit code {refusal.exit_code}: {text}"
    return type(refusal).__name__


def trials(kind: Kind, count: int, seed: int = 0) -> Counter[str]:
    """Damage a file so many times; returns what became of it. Raises AssertionError with the way and the number."""
    data, dice, found = kind.path.read_bytes(), random.Random(f"{kind.path.name} {seed}"), Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn of damage
        wanted = kind.read()
        assert data, "an empty file has no damage"
        try:
            for number in range(count):
                broken = damaged(data, dice, number)
                kind.path.write_bytes(broken)
                way = WAYS[number % len(WAYS)].__name__
                try:
                    found[outcome(kind, wanted, is_stranger=way == "stranger")] += 1
                except Exception as error:
                    kept = kind.path.with_name(f"{kind.path.name}.found")
                    kept.write_bytes(broken)
                    text = f"{kind.path.name}: damage {number} of seed {seed} ({way}; kept as {kept}): "
                    raise AssertionError(f"{text}{type(error).__name__}: {error}") from error
        finally:
            kind.path.write_bytes(data)
        assert kind.read() == wanted
    return found
