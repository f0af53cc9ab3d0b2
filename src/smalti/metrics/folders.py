"""Score two folders of files against each other: originals, and what somebody made of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from smalti.errors import InputError
from smalti.metrics.evaluate import Scores
from smalti.metrics.features import Features
from smalti.metrics.perceptual import Perceptual
from smalti.metrics.protocols import Protocol
from smalti.metrics.report import Report, Row


def compare_folders(
    originals: Path,
    reconstructions: Path,
    read: Callable[[Path], Tensor],
    protocol: Protocol,
    *,
    lpips: Perceptual | None = None,
    features: Features | None = None,
    progress: Callable[[Row], None] | None = None,
) -> Report:
    """The report on files paired by relative path without suffix; `read` gives a video `1 3 t h w` in [-1, 1].

    Raises InputError that names files without a partner, or two that differ in their suffix alone.
    """
    scores = Scores(protocol, lpips=lpips, features=features)
    for key, original, made in pairs(originals, reconstructions):
        row = scores.add(key, read(original), read(made))
        if progress is not None:
            progress(row)
    return scores.report()


def pairs(originals: Path, reconstructions: Path) -> Iterator[tuple[str, Path, Path]]:
    """(key, original, reconstruction) in the order of keys; hidden files are passed over."""
    left, right = _by_stem(originals), _by_stem(reconstructions)
    for here, there, folder in ((left, right, reconstructions), (right, left, originals)):
        if alone := sorted(here.keys() - there.keys()):
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            raise InputError(f"{folder}: no partner for {', '.join(alone[:3])}{more}; both folders need the same names")
    return ((key, left[key], right[key]) for key in sorted(left))


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        key = relative.with_suffix("").as_posix()
        if key in files:
            raise InputError(f"{folder}: {files[key].name} and {path.name} have the same name but for the suffix")
        files[key] = path
    return files
