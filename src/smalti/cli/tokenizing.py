"""What `smalti tokenize` reads and prints: sizes, and lines of progress."""

import sys
import time

from smalti.cli.terminal import say
from smalti.errors import ConfigError
from smalti.progress import Progress

_EVERY = 30.0
"""Seconds between two lines of progress where there is no bar."""


class LineProgress:
    """Moves the bar; where there is none, prints a line now and then unless `quiet`."""

    def __init__(self, advance: Progress, *, quiet: bool) -> None:
        self.advance, self.quiet = advance, quiet or sys.stderr.isatty()
        self.begin = self.last_line = time.monotonic()

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Take note that `done` of `total` are done."""
        self.advance(done, total, note)
        now = time.monotonic()
        if not self.quiet and total and now - self.last_line > _EVERY:
            self.last_line = now
            rest = (total - done) * (now - self.begin) / max(1, done)
            unit, _, rates = note.partition(", ")
            say(f"{done:,} of {total:,} {unit}, {rates}, {rest:,.0f} s left")


def size_of(text: str | None) -> int | tuple[int, int] | None:
    """Rows and columns of `--size`."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise ConfigError(f"--size {text}: expected one number or rows x columns, as in 256 or 144x256")
    return sides[0], sides[1]
