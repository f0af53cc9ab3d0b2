"""Text in messages: one line, printable, short, the nearest of some names; and how long work says what it has done."""

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable


def printable(path: Path | str) -> str:
    """Return the path as text on one line, one to one: bytes that are no UTF-8, control characters and `\\` are
    escaped."""
    text = os.fspath(path).replace("\\", "\\\\")
    return escape(text)


def escape(text: str) -> str:
    """Return the text on one line: what is not printable is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def one_line(error: object) -> str:
    """Return the text of a foreign error on one line of at most 200 printable characters."""
    return printable(" ".join(str(error).split()))[:200] or type(error).__name__


def shorten(text: str) -> str:
    """Return the text cut to 80 characters, with its length where it was longer."""
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def counts_text(counts: Mapping[str, int]) -> str:
    """Return counts as text: `2 links to files that are listed, 1 hidden files or folders`."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def nearest(name: str, allowed: Iterable[str], before: str = "; ") -> str:
    """Return `; did you mean 'x'?` for the closest of the allowed names, nothing where none is close."""
    close = difflib.get_close_matches(name, sorted(allowed), n=1)
    return f"{before}did you mean {close[0]!r}?" if close else ""


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape carried
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"


@runtime_checkable
class Progress(Protocol):
    """A callback of long work, called after each piece: `progress(done, total, note)`."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Take note that `done` of `total` pieces are done (None: not known), with a few words."""


def say(line: str) -> None:
    """Print one line on stderr, if there is one: a reader that is gone, or a full disk under a log, stops no work."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # ValueError: closed
            print(line, file=sys.stderr, flush=True)
