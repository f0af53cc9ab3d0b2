"""What every verb says and how: one line on stderr, JSON alone on stdout, a bar where somebody watches."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

_LONGEST = 400
"""Characters of a message; the mend stands at its end, so the middle is what goes."""


def one_line(text: object) -> str:
    """The text on one line: blanks joined, control characters escaped, at most `_LONGEST` characters."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[: half - 3]} ... {line[-half + 2 :]}"


def say(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """The one document on stdout; strict JSON, in which paths are strings and nothing is NaN."""
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=str))


@runtime_checkable
class Advance(Protocol):
    """Tells how far work has come."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """`done` of `total`, with a few words."""


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """A progress bar with rate and time left on stderr, where that is a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total=None, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    rate = TextColumn("{task.fields[rate]}", markup=False)
    columns = (text, BarColumn(20), MofNCompleteColumn(), rate, TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task, begun = progress.add_task(what, total=total, rate=""), time.monotonic()

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            speed = done / max(1e-9, time.monotonic() - begun)
            progress.update(task, completed=done, rate=f"{speed:,.1f}/s {note}".rstrip())
            if total is not None:
                progress.update(task, total=total)

        yield advance
