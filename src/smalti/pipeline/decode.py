"""Turn rows of a token set back into files, or into .npy files: the library function behind `smalti decode`."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from smalti.arguments import check_arguments, check_out_folder
from smalti.data.video_writer import write_media
from smalti.devices import Precision
from smalti.errors import ConfigError, InputError
from smalti.families.checkpoint import as_tokenizer
from smalti.files import naming_os_errors, new_folder, write_bytes, write_json
from smalti.pipeline.outputs import check_targets
from smalti.text import Progress
from smalti.tokenizer import Tokenizer
from smalti.tokens.plan import PROVENANCE, read_provenance
from smalti.tokens.reader import TokenSet, decode_row
from smalti.tokens.shard import id_type


class DecodedRow(NamedTuple):
    """A file that was written."""

    key: str
    path: Path
    frames: int
    height: int
    width: int
    fps: float | None
    """Frame rate of a video; None for an image."""
    row: int
    """Number of the row."""


def decode(
    tokens: TokenSet | str | Path,
    out: str | Path,
    *,
    to: Literal["media", "npy"] = "media",
    rows: str | Sequence[int] | None = None,
    key: Sequence[str] = (),
    tokenizer: Tokenizer | str | Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    precision: Precision | None = None,
    progress: Progress | None = None,
    on_row: Callable[[DecodedRow], None] | None = None,
) -> list[DecodedRow]:
    """Write rows of a token set below `out`, images as PNG and videos as MP4 at their frame rate.

    With `to="npy"` their ids are written as they are, as files that can be mapped into memory; `out` must not exist,
    and `tokenizer`, `precision` and `overwrite` are refused.
    `ids.npy` holds all ids, one row after the other, in the type of the set; row i is `ids[offsets[i]:offsets[i + 1]]`
    in the shape `shapes[i]`. Where all rows have one shape, metadata.json has `shape`, `rows t h w`, to which `ids` can
    be reshaped. `labels.npy` has -1 for a row without a class; `keys.txt` has one key a line.

    Args:
        tokens: the token set.
        out: folder to write to.
        to: `media`, or `npy`.
        rows: numbers of rows, or text as `0:10`, `-5:` or `7`; None takes all, or those of `key` alone.
        key: keys of rows.
        tokenizer: a tokenizer or its name; None takes the one that the set was made with.
        overwrite: replace files that are there.
        device: device of a tokenizer that is loaded here; None takes the best there is.
        precision: number format of its networks; None is that of its file.
        progress: called after each row.
        on_row: called with each file that was written.

    Raises ConfigError where a file exists already, or an argument would do nothing, InputError for keys that the set
    does not have, IntegrityError for another tokenizer than the set's.
    """
    check_arguments(decode, locals())
    check_out_folder("out", out)
    tokens = tokens if isinstance(tokens, TokenSet) else TokenSet(tokens)
    if to == "npy":
        for name, value in (("tokenizer", tokenizer), ("precision", precision), ("overwrite", overwrite or None)):
            if value is not None:
                raise ConfigError(f"`{name}` does nothing where ids are written as they are (to npy); take it out")
        return _write_arrays(tokens, Path(out), choose_rows(tokens, rows, key))
    targets = row_targets(tokens, choose_rows(tokens, rows, key), Path(out))
    check_targets(targets.values(), overwrite=overwrite)
    model = open_set_tokenizer(tokens, tokenizer, device, precision)
    tokens.check(model)
    written = []
    for index, target in targets.items():
        row = tokens.row(index)
        aspect = None if row.pixel_aspect is None else Fraction(row.pixel_aspect)
        write_media(target, decode_row(model, row), row.fps, aspect)
        written.append(DecodedRow(row.key, target, *row.size, row.fps, index))
        if progress is not None:
            progress(len(written), len(targets), row.key)
        if on_row is not None:
            on_row(written[-1])
    return written


def _write_arrays(tokens: TokenSet, out: Path, rows: Sequence[int]) -> list[DecodedRow]:
    """Write the folder of .npy files with a manifest, whole or not at all."""
    count, written = len(rows), []
    shapes, offsets, labels = np.zeros((count, 3), np.int32), np.zeros(count + 1, np.int64), np.full(count, -1)
    for place, index in enumerate(rows):
        row = tokens.row(index)
        offsets[place + 1] = offsets[place] + row.ids.size
        shapes[place], labels[place] = row.ids.shape, -1 if row.label is None else row.label
        written.append(DecodedRow(row.key, out / "ids.npy", *row.size, row.fps, index))
    total, kind = int(offsets[-1]), id_type(tokens.tokenizer_info.codebook_size)
    with new_folder(out) as folder, naming_os_errors(out):
        ids: Any = open_memmap(folder / "ids.npy", "w+", kind, (total,)) if total else np.empty(0, kind)
        for place, index in enumerate(rows):
            ids[offsets[place] : offsets[place + 1]] = tokens.row(index).ids.reshape(-1)
        if total:
            ids.flush()
        else:
            np.save(folder / "ids.npy", ids)
        for name, array in (("offsets", offsets), ("shapes", shapes), ("labels", labels)):
            np.save(folder / f"{name}.npy", array)
        keys = "".join(f"{row.key}\n" for row in written)
        write_bytes(folder / "keys.txt", keys.encode("utf-8", "backslashreplace"))
        same = count > 0 and bool((shapes == shapes[0]).all())
        metadata = {
            "tokenizer": tokens.tokenizer_info.plain(),
            "rows": count,
            "tokens": total,
            "type": str(kind),
            "shape": [count, *shapes[0].tolist()] if same else None,
            "classes": list(tokens.classes),
        }
        write_json(folder / "metadata.json", metadata)
    return written


def open_set_tokenizer(
    tokens: TokenSet,
    tokenizer: Tokenizer | str | Path | None = None,
    device: str | None = None,
    precision: Precision | None = None,
) -> Tokenizer:
    """Load a tokenizer, by default the one that the set says it was made with. Raises InputError where it does not
    say."""
    tokenizer = read_provenance(tokens.path).get("tokenizer") if tokenizer is None else tokenizer
    if tokenizer is None:
        raise InputError(f"{tokens.path}: no {PROVENANCE} says where its tokenizer is; give `tokenizer`")
    return as_tokenizer(tokenizer, device, precision)


def choose_rows(tokens: TokenSet, rows: str | Sequence[int] | None, keys: Sequence[str]) -> list[int]:
    """Return the numbers of the rows that are asked for, all where nothing is. Raises ConfigError, InputError."""
    by_key = [tokens.find(key) for key in keys]
    if rows is None:
        return by_key or list(range(len(tokens)))
    if not isinstance(rows, str):
        return [*by_key, *(_row_number(tokens, number) for number in rows)]
    start, colon, stop = rows.partition(":")
    try:
        numbers = [int(text) if text else None for text in (start, stop)]
    except ValueError:
        raise ConfigError(f"`rows` {rows}: expected START:STOP or one number, as in 0:10") from None
    if colon:
        return [*by_key, *range(len(tokens))[slice(*numbers)]]
    if numbers[0] is None:
        raise ConfigError("`rows`: expected START:STOP or one number, as in 0:10")
    return [*by_key, _row_number(tokens, numbers[0])]


def _row_number(tokens: TokenSet, number: int) -> int:
    if not -len(tokens) <= number < len(tokens):
        raise ConfigError(f"`rows` {number}: the set has the rows 0 to {len(tokens) - 1}")
    return number % len(tokens)


def row_targets(tokens: TokenSet, rows: Sequence[int], out: Path) -> dict[int, Path]:
    """Return the file below `out` for each row. Raises ConfigError where two rows would become one."""
    rows_of: dict[Path, int] = {}
    for index in rows:
        row = tokens.row(index)
        path = out / target_name(row.key, is_video=row.fps is not None)
        if rows_of.setdefault(path, index) != index:
            raise ConfigError(f"rows {rows_of[path]} and {index} would both become {path}; decode them in turn")
    return {index: path for path, index in rows_of.items()}


def target_name(key: str, *, is_video: bool) -> Path:
    """Return a path below the folder of results for any key, which never leads out of it: `tar/a.jpg` becomes
    `tar/a.png`, `video.mp4#000017` becomes `video#000017.mp4`."""
    name, hash_, clip = key.rpartition("#") if "#" in key and key.rpartition("#")[2].isdigit() else (key, "", "")
    parts = [part for part in PurePosixPath(name.replace("\0", "")).parts if part not in ("/", "..", ".")]
    stem = Path(parts[-1] if parts else "row").stem or "row"
    return Path(*parts[:-1], f"{stem}{hash_}{clip}{'.mp4' if is_video else '.png'}")
