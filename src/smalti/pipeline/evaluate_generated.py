"""Compare generated sets with real media: the files behind `smalti.evaluate(..., real=...)`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from smalti.data import evaluation, source_of
from smalti.data.clips import ClipConfig
from smalti.data.source import Medium, Subset
from smalti.errors import BadFile, InputError
from smalti.metrics import Features, GenerationProtocol, GenerationReport, score_generated
from smalti.metrics.statistics import STATISTICS_SUFFIXES, read_published_statistics
from smalti.text import Progress
from smalti.video import to_uint8

_PREVIEWS = 8
"""Clips of each set whose middle frame is shown."""


class _MediaSet:
    """The clips of one set, the files that cannot be read, and the middle frames of the first clips."""

    def __init__(self, source: Subset, previews: int) -> None:
        self.source = source
        self.bad: list[BadFile] = []
        self.previews: list[Tensor] = []
        self._most = previews

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for batch in evaluation(self.source, on_bad=self.bad.append):
            if len(self.previews) < self._most:
                self.previews.append(to_uint8(batch.video)[0, batch.video.shape[2] // 2])
            yield batch.keys[0], batch.video

    @property
    def absent(self) -> dict[str, str]:
        """Reason for the report why clips were left out."""
        if not self.bad:
            return {}
        count = f"{len(self.bad)} of {len(self.source)} left out, which cannot be read"
        return {"clips": f"{count}; the first: {self.bad[0]}"}


class GenerationResult(NamedTuple):
    """The result of `evaluate_generated`."""

    report: GenerationReport
    bad: list[BadFile]
    """Files that could not be read."""
    previews: dict[str, list[Tensor]]
    """Middle frames of the first clips of each set and of the real one, uint8 `h w 3`."""


def evaluate_generated(
    folders: Mapping[str, Path],
    real: Path,
    protocol: GenerationProtocol,
    features: Features,
    *,
    limit: int | None = None,
    root: Path | None = None,
    bootstrap: int = 0,
    progress: Progress | None = None,
) -> GenerationResult:
    """Score the first `limit` clips of generated sets, by name, against real media; a list of these starts at `root`.

    Real media are brought to the size of the protocol, or else of the first generated clip. A file of statistics may
    stand for them; `bootstrap` resamples give each distance an interval.
    """
    size = protocol.size or _size_of_first(next(iter(folders.values())), protocol)
    protocol = protocol.replace({"size": size})
    sets = {name: _MediaSet(_source(path, protocol, limit=limit), _PREVIEWS) for name, path in folders.items()}
    is_statistics = real.suffix.lower() in STATISTICS_SUFFIXES and not real.is_dir()
    originals = None if is_statistics else _MediaSet(_source(real, protocol, root=root), _PREVIEWS)
    every = sets if originals is None else {"real": originals, **sets}
    total = sum(len(media.source) for media in every.values())

    def note(done: int) -> None:
        if progress is not None:
            progress(done, total)

    declared = protocol.replace({"resize": "lanczos", "crop": "center"})
    reference = read_published_statistics(real, features.network.dim) if originals is None else originals
    report = score_generated(sets, reference, declared, features, bootstrap=bootstrap, progress=note)
    rows = [
        row.model_copy(
            update={"absent": {**row.absent, **sets[row.name].absent}, "listed": len(sets[row.name].source.source)}
        )
        for row in report.sets
    ]
    report = report.model_copy(update={"sets": tuple(rows), "absent": {} if originals is None else originals.absent})
    bad = [fault for media in every.values() for fault in media.bad]
    return GenerationResult(report, bad, {name: media.previews for name, media in every.items()})


def _source(path: Path, protocol: GenerationProtocol, *, root: Path | None = None, limit: int | None = None) -> Subset:
    """Open the clips of a set. Raises InputError if it holds none of the protocol's kind."""
    size = (protocol.size[0], protocol.size[1]) if protocol.size is not None else None
    config = source_of(path, size=size, frames=protocol.frames, prefer=protocol.media, root=root)
    medium: Medium = "videos" if isinstance(config, ClipConfig) else "images"
    if medium != protocol.media:
        raise InputError(f"{path}: holds {medium}, protocol {protocol.name} is for {protocol.media}")
    source = config.build()
    return Subset(source, range(len(source))[:limit])


def _size_of_first(path: Path, protocol: GenerationProtocol) -> tuple[int, int]:
    """Return height and width of the first clip that can be read: both sets are brought to them."""
    first = next(evaluation(_source(path, protocol)))
    return first.video.shape[3], first.video.shape[4]
