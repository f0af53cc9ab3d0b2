"""Rows of a token set back to pictures and film."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.data.videos import write_video
from smalti.errors import ConfigError
from smalti.tokenizer import Tokenizer, decode_tiles
from smalti.tokenizer.reconstruct import TILED_ABOVE, chunk_frames, write_png
from smalti.tokenizer.tiles import choose_tile
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import Row
from smalti.video import crop_to, to_uint8

_CRF = 12
"""As in `smalti reconstruct`: what is seen should be the tokenizer's loss, not the video codec's."""


class Decoded(NamedTuple):
    """A file that was written."""

    key: str
    path: Path
    frames: int
    height: int
    width: int
    fps: float | None
    """None for a picture."""


@torch.inference_mode()
def decode_frames(tokenizer: Tokenizer, row: Row) -> Iterator[Tensor]:
    """The frames of a row, uint8 `h w 3`, in memory that does not grow where the tokenizer is causal.

    Raises ValueError for an id that the tokenizer does not have.
    """
    device, (count, height, width) = next(tokenizer.parameters()).device, row.size
    ids = row.tensor()[None].to(device)
    if count == 1 and height * width > TILED_ABOVE and tokenizer.is_tile_exact:
        yield to_uint8(crop_to(decode_tiles(tokenizer, ids, choose_tile(tokenizer)), row.size).cpu())[0, 0]
        return
    if not tokenizer.is_causal:
        yield from to_uint8(tokenizer.decode(ids, size=row.size).cpu())[0]
        return
    length = max(1, chunk_frames(height, width, tokenizer.strides[0]) // tokenizer.strides[0])
    chunks = (ids[:, at : at + length] for at in range(0, ids.shape[1], length))
    for video in tokenizer.decode_stream(chunks, size=row.size):
        yield from to_uint8(video.cpu())[0]


def decode_row(
    tokenizer: Tokenizer, row: Row, target: Path, frame_done: Callable[[int], None] | None = None
) -> Decoded:
    """Write a row as PNG, or as MP4 at its frame rate; whole or not at all."""
    if row.fps is None:
        (picture,) = decode_frames(tokenizer, row)
        write_png(target, picture)
    else:

        def frames() -> Iterator[Tensor]:
            for number, frame in enumerate(decode_frames(tokenizer, row), start=1):
                yield frame
                if frame_done is not None:
                    frame_done(number)

        write_video(target, frames(), row.fps, crf=_CRF)
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
