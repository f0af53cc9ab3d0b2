"""Files that a command writes: which input becomes which file, what may be replaced, and what came of each."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from smalti.arguments import check_out_folder
from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_files
from smalti.errors import BadFile, ConfigError

R = TypeVar("R")


class MediaJob(NamedTuple):
    """One image or video to read, and the file to write."""

    source: Path
    target: Path
    is_video: bool


@dataclass
class Outputs(Generic[R]):
    """Results of a command over many files, a named tuple for each. Files that cannot be read are left out."""

    listed: int
    """Files to read."""
    done: list[R]
    bad: list[BadFile]
    """Faults of the files that were left out."""

    def plain(self) -> dict[str, Any]:
        """Return all results as plain data."""
        records: list[Any] = list(self.done)
        faults = [fault.plain() for fault in self.bad]
        return {"listed": self.listed, "done": [record._asdict() for record in records], "bad": faults}


def list_media(path: Path) -> list[tuple[Path, Path]]:
    """List (file, its path below the folder or list) of the images and videos at `path`.

    Raises InputError where there are none.
    """
    listing = list_files(path, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
    return [
        (listing.root / file, Path(Path(file).name if Path(file).is_absolute() else file)) for file in listing.files
    ]


def media_jobs(inputs: Sequence[Path], out: Path, *, overwrite: bool) -> list[MediaJob]:
    """Plan which file becomes which, before any work: below `out`, by the name in its folder, as PNG or MP4.

    Raises InputError where an input has no media, ConfigError where two inputs would become one file, and as
    `check_targets` does.
    """
    jobs: dict[Path, MediaJob] = {}
    for path in inputs:
        for source, name in list_media(path):
            is_video = source.suffix.lower() in VIDEO_SUFFIXES
            target = out / name.with_suffix(".mp4" if is_video else ".png")
            if target in jobs:
                raise ConfigError(f"{source} and {jobs[target].source} would both become {target}; take them in turn")
            jobs[target] = MediaJob(source, target, is_video)
    check_targets(jobs, (job.source for job in jobs.values()), overwrite=overwrite)
    return list(jobs.values())


def check_targets(
    targets: Iterable[Path], sources: Iterable[Path] = (), *, overwrite: bool, other: str = "another `out`"
) -> None:
    """Raise ConfigError where a file to write is one of the inputs, or exists and may not be replaced.

    `other` is what to give instead, for the message.
    """
    inputs = {os.path.realpath(source) for source in sources}  # `Path.resolve` raises for a link to itself
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise ConfigError(f"{target}: is an input and would be written over; give {other}")
        check_out_folder(str(target), target.parent)
        if target.is_dir():
            raise ConfigError(f"{target}: is a folder; give the file to write")
        if target.exists() and not overwrite:
            raise ConfigError(f"{target}: already exists; pass `overwrite` or choose {other}")
