"""How long work says how far it has come, and what else a user should know of it."""

import sys
from contextlib import suppress
from typing import Protocol, runtime_checkable


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
