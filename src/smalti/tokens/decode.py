"""Rows of a token set back to pictures and film."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torch import Tensor

from smalti.data.video_writer import write_media
from smalti.errors import ConfigError
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import ids_to_frames, ids_to_image
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import Row


class Decoded(NamedTuple):
    """A file that was written."""

    key: str
    path: Path
    frames: int
    height: int
    width: int
    fps: float | None
    """None for a picture."""


def decode_frames(tokenizer: Tokenizer, row: Row) -> Iterator[Tensor]:
    """Decode the frames of a row, uint8 `h w 3`, in memory that does not grow where the tokenizer is causal.

    Raises ValueError for an id that the tokenizer does not have.
    """
    ids, (count, *size) = row.tensor()[None], row.size
    if count == 1:
        yield ids_to_image(tokenizer, ids, (size[0], size[1]))
    else:
        yield from ids_to_frames(tokenizer, [(count, ids)], (size[0], size[1]))


def decode_row(
    tokenizer: Tokenizer, row: Row, target: Path, frame_done: Callable[[int], None] | None = None
) -> Decoded:
    """Write a row as PNG, or as MP4 at its frame rate; whole or not at all."""

    def frames() -> Iterator[Tensor]:
        for number, frame in enumerate(decode_frames(tokenizer, row), start=1):
            yield frame
            if frame_done is not None:
                frame_done(number)

    write_media(target, frames(), row.fps)
    return Decoded(row.key, target, *row.size, row.fps)


def choose_rows(tokens: TokenSet, rows: str | None, keys: Sequence[str]) -> list[int]:
    """The rows asked for, as `0:10`, `-5:` or `7`, or by keys; else all. Raises ConfigError, InputError."""
    chosen = [tokens.find(key) for key in keys]
    if rows is None:
        return chosen or list(range(len(tokens)))
    start, colon, stop = rows.partition(":")
    try:
        numbers = [int(text) if text else None for text in (start, stop)]
    except ValueError:
        raise ConfigError(f"--rows {rows}: expected START:STOP or one number, as in 0:10") from None
    if not colon:
        if numbers[0] is None or not -len(tokens) <= numbers[0] < len(tokens):
            raise ConfigError(f"--rows {rows}: the set has the rows 0 to {len(tokens) - 1}")
        return [*chosen, numbers[0] % len(tokens)]
    return [*chosen, *range(len(tokens))[slice(*numbers)]]


def targets(tokens: TokenSet, rows: Sequence[int], out: Path) -> dict[int, Path]:
    """Which row becomes which file below `out`. Raises ConfigError where two would become one."""
    taken: dict[Path, int] = {}
    for index in rows:
        row = tokens.row(index)
        path = out / target_name(row.key, is_video=row.fps is not None)
        if taken.setdefault(path, index) != index:
            raise ConfigError(f"rows {taken[path]} and {index} would both become {path}; decode them in turn")
    return {index: path for path, index in taken.items()}


def target_name(key: str, *, is_video: bool) -> Path:
    """A path below the folder of results for any key, which never leads out of it: `tar/a.jpg` becomes `tar/a.png`,
    `film.mp4#000017` becomes `film#000017.mp4`."""
    name, hash_, clip = key.rpartition("#") if "#" in key and key.rpartition("#")[2].isdigit() else (key, "", "")
    parts = [part for part in PurePosixPath(name.replace("\0", "")).parts if part not in ("/", "..", ".")]
    last = Path(parts[-1] if parts else "row")
    stem = last.stem or "row"
    return Path(*parts[:-1], f"{stem}{hash_}{clip}{'.mp4' if is_video else '.png'}")
