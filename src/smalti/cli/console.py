"""The common part of the commands: output (one line on stderr, JSON alone on stdout, a bar on a terminal), options."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

from smalti.errors import BadFile, ConfigError, InputError
from smalti.text import Progress, escape
from smalti.text import say as say

_LONGEST = 400
"""Characters of a message. How to fix an error stands at its end, so a longer message loses its middle."""


def message_line(text: object) -> str:
    """Return the text on one line: blanks joined, control characters escaped, at most `_LONGEST` characters."""
    line = escape(" ".join(str(text).split()))
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[: half - 3]} ... {line[-half + 2 :]}"


def is_watched() -> bool:
    """Return whether stderr is a terminal; a daemon may have none."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def print_line(text: object) -> None:
    """Print one line on stdout."""
    print(message_line(text), flush=True)


def print_json(data: Any) -> None:
    """Print the one document on stdout: strict JSON, in which paths are strings and nothing is NaN."""
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=str))


def end_with_bad_files(bad: Sequence[BadFile], good: int, *, named: bool = False) -> None:
    """Name the files that could not be used (unless they are `named` already), count them, and end with the exit code
    of bad input; nothing where there are none."""
    if not bad:
        return
    for fault in () if named else bad:
        say(f"left out: {message_line(fault)}")
    say(f"error: {len(bad)} of {good + len(bad)} files could not be used and are left out; the rest is done")
    raise typer.Exit(InputError.exit_code)


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Progress]:
    """Show a progress bar with rate and time left on stderr, where that is a terminal; nothing elsewhere."""
    if not is_watched():
        yield lambda done, total=None, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    text = TextColumn("{task.description}", markup=False)
    rate = TextColumn("{task.fields[rate]}", markup=False)
    columns = (text, BarColumn(20), MofNCompleteColumn(), rate, TimeRemainingColumn(compact=True))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task, begun = bars.add_task(what, total=total, rate=""), time.monotonic()

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            speed = done / max(1e-9, time.monotonic() - begun)
            bars.update(task, completed=done, rate=f"{speed:,.1f}/s {note}".rstrip())
            if total is not None:
                bars.update(task, total=total)

        yield advance


TOKENIZER_HELP = "A tokenizer folder, a run, smalti/tiny-image-2, smalti/tiny-video-2, or OWNER/NAME."

TokenizerOption = Annotated[str, typer.Option(metavar="TOKENIZER", help=TOKENIZER_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...; the best one if not given.")]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="Number format; default: the file's. bfloat16: 2-5 % other ids, as good; see doctor."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
MaxBadOption = Annotated[
    float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="End early if more than this share of files is bad.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config; repeatable.")
]


def integers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of an option like `1,2,2`. Raises ConfigError that names the option."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: expected whole numbers with commas, as in 1,2,2") from None


def parse_size(text: str) -> int | tuple[int, int]:
    """Return height and width of `--size`, or the side of a square. Raises ConfigError."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise ConfigError(f"--size {text}: expected one number or height x width, as in 256 or 144x256")
    return sides[0], sides[1]
