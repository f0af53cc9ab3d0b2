"""The work of `smalti eval --real`: generated sets against a real one. Heavy; imported when it is needed."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from smalti.cli.listing import Question
from smalti.cli.terminal import bar
from smalti.data import evaluation, source_of
from smalti.data.clips import ClipConfig
from smalti.data.detect import Medium
from smalti.data.source import Subset
from smalti.errors import BadFile, ConfigError, InputError
from smalti.files import write_bytes
from smalti.metrics import (
    GenerationProtocol,
    GenerationReport,
    contact_sheet,
    find_features,
    generation_by_name,
    score_generated,
)
from smalti.training.distributed import pick_device
from smalti.video import to_uint8

_SHOWN = 8
"""Clips of each set on a contact sheet, each by its middle frame."""


class GenerationAnswer(NamedTuple):
    """What was measured, what could not be read, and pictures of every set."""

    report: GenerationReport
    bad: list[BadFile]
    shown: dict[str, list[Tensor]]
    """uint8 `h w 3`."""

    @property
    def good(self) -> int:
        """Clips that were scored or compared with."""
        return self.report.real + sum(one.clips for one in self.report.sets)

    def write(self, folder: Path) -> None:
        """Write report.json and sheet.png, each whole or not at all."""
        write_bytes(folder / "report.json", self.report.to_json().encode())
        rows = [[picture.numpy() for picture in row] for row in zip(*self.shown.values(), strict=False)]
        sheet = io.BytesIO()
        contact_sheet(rows, list(self.shown)).save(sheet, "PNG")
        write_bytes(folder / "sheet.png", sheet.getvalue())


class Reading:
    """The clips of one set, and what cannot be read of it."""

    def __init__(self, source: Subset) -> None:
        self.source = source
        self.bad: list[BadFile] = []
        self.shown: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for batch in evaluation(self.source, on_bad=self.bad.append):
            if len(self.shown) < _SHOWN:
                self.shown.append(to_uint8(batch.video)[0, batch.video.shape[2] // 2])
            yield batch.keys[0], batch.video

    @property
    def absent(self) -> dict[str, str]:
        """The reason for the report."""
        if not self.bad:
            return {}
        count = f"{len(self.bad)} of {len(self.source)} left out, which cannot be read"
        return {"clips": f"{count}; the first: {self.bad[0]}"}


def measure_generated(targets: Sequence[str], real: Path, question: Question) -> GenerationAnswer | None:
    """Score generated sets against real clips; under torchrun one rank does it all, and the others give None."""
    if os.environ.get("RANK", "0") != "0":
        return None
    protocol = _asked(question)
    folders = {target: Path(target) for target in targets}
    if len(folders) < len(targets):
        raise ConfigError(f"{targets[0]}: a set is given twice; give each once")
    features = find_features(protocol.features, question.features).to(pick_device(question.device))
    size = (question.size, question.size) if question.size else _size_of_first(folders[targets[0]], protocol)
    sets = {name: Reading(_source(path, protocol, size, limit=question.limit)) for name, path in folders.items()}
    originals = Reading(_source(real, protocol, size, root=question.root))
    every = {"real": originals, **sets}
    with bar("comparing", sum(len(one.source) for one in every.values())) as advance:
        declared = protocol.replace({"resize": "lanczos", "crop": "center", "size": size})
        report = score_generated(sets, originals, declared, features, progress=advance)
    rows = [one.model_copy(update={"absent": {**one.absent, **sets[one.name].absent}}) for one in report.sets]
    report = report.model_copy(update={"sets": tuple(rows), "absent": originals.absent})
    bad = [fault for reading in every.values() for fault in reading.bad]
    return GenerationAnswer(report, bad, {name: reading.shown for name, reading in every.items()})


def _asked(question: Question) -> GenerationProtocol:
    """The protocol, with the options that it leaves open. Raises ConfigError for those that contradict it."""
    protocol = generation_by_name(question.protocol)
    for option, value in (("lpips", question.lpips), ("statistics", question.statistics)):
        if value is not None:
            raise ConfigError(f"--{option} {value}: protocol {protocol.name} takes none; leave it out")
    if question.frames is None:
        return protocol
    if protocol.media == "images":
        raise ConfigError(f"--frames {question.frames}: protocol {protocol.name} is for pictures; leave it out")
    return protocol.replace({"frames": question.frames})


def _source(
    path: Path,
    protocol: GenerationProtocol,
    size: tuple[int, int] | None,
    *,
    root: Path | None = None,
    limit: int | None = None,
) -> Subset:
    """The clips of a set. Raises InputError where it holds none of the protocol's kind."""
    config = source_of(path, size=size, frames=protocol.frames, prefer=protocol.media, root=root)
    medium: Medium = "videos" if isinstance(config, ClipConfig) else "images"
    if medium != protocol.media:
        raise InputError(f"{path}: holds {medium}, protocol {protocol.name} is for {protocol.media}")
    source = config.build()
    return Subset(source, range(len(source))[:limit])


def _size_of_first(path: Path, protocol: GenerationProtocol) -> tuple[int, int]:
    """Rows and columns of the first clip that can be read: both sets are brought to them."""
    first = next(evaluation(_source(path, protocol, None)))
    return first.video.shape[3], first.video.shape[4]
