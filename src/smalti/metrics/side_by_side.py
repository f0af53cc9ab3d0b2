"""Several tokenizers on the same clips: scores side by side, and their differences clip by clip with errors."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from smalti.config import Config, Triple, Tuple
from smalti.errors import ConfigError
from smalti.metrics.protocols import Protocol
from smalti.metrics.report import Frechet, Report, ScoreReport, title_of

if TYPE_CHECKING:
    from rich.table import Table

PAIRED = ("psnr", "ssim", "ms_ssim", "lpips")
"""Scores of each clip, of which differences are taken."""


class PairedDifference(Config):
    """Difference of a score from that of the first tokenizer, clip by clip."""

    mean: float
    error: float | None
    """Standard error of the mean: the deviation over the clips by the root of their number. None for one clip."""
    clips: int


class Contender(NamedTuple):
    """One tokenizer with its report."""

    name: str
    report: Report
    strides: tuple[int, int, int]
    parameters: int
    speed: float
    """Megapixels per second, encoded and decoded."""


class Standing(Config):
    """The scores of one tokenizer."""

    name: str
    strides: Triple[int]
    """Frames, height and width in pixels of one token."""
    codes: int | None
    parameters: int
    bits_per_pixel: float | None
    """Bits of a fixed-length code, by the pixels that were encoded."""
    perplexity: float | None
    psnr: float
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None
    frechet: Frechet | None
    megapixels_per_second: float
    """Encoded and decoded, on this machine, of the first clip: the median of three runs."""
    differences: dict[str, PairedDifference]
    """Differences from the first tokenizer by score; none for the first."""


class Leaderboard(ScoreReport):
    """Scores of several tokenizers on the same clips under one protocol."""

    kind: Literal["leaderboard"] = "leaderboard"
    protocol: Protocol
    clips: int
    frames: int
    absent: dict[str, str]
    """Reasons for missing scores and clips that were left out: {name: reason}."""
    standings: Tuple[Standing]
    listed: int | None = None
    """Number of clips of the data, those that were left out too; None if they were passed one by one."""

    def _table(self) -> "Table":
        from rich.table import Table

        table = Table(title=title_of(self.protocol, self.clips, self.frames, self.listed))
        table.add_column("tokenizer", overflow="fold")
        table.add_column("bits/px", justify="right")
        names = [name for name in PAIRED if any(getattr(row, name) is not None for row in self.standings)]
        for name in names:
            table.add_column(name.upper().replace("_", "-"), justify="right")
        distances = [row.frechet.name for row in self.standings if row.frechet is not None]
        if distances:
            table.add_column(distances[0], justify="right")
        table.add_column("Mpx/s", justify="right")
        for row in self.standings:
            size = f"{row.name}\n{'x'.join(map(str, row.strides))}, {row.parameters / 1e6:.1f} M"
            rate = "-" if row.bits_per_pixel is None else f"{row.bits_per_pixel:.4f}"
            cells = [_cell(row, name) for name in names]
            cells += ["-" if row.frechet is None else f"{row.frechet.distance:.4f}"] if distances else []
            table.add_row(size, rate, *cells, f"{row.megapixels_per_second:.2f}")
        return table

    def _remarks(self) -> Iterable[str]:
        lines = [f"{name}: {reason}" for name, reason in sorted(self.absent.items())]
        lines.append(f"below a score: its difference from {self.standings[0].name}, clip by clip, ± standard error")
        return lines


def leaderboard(contenders: Sequence[Contender]) -> Leaderboard:
    """Set reports on the same clips side by side, the first as the reference of the differences.

    Raises ConfigError if they are not of the same clips under the same protocol.
    """
    first = contenders[0].report
    keys = [row.key for row in first.rows]
    sizes = [(row.frames, row.height, row.width) for row in first.rows]
    for other in contenders[1:]:
        rows = other.report.rows
        same = [row.key for row in rows] == keys and [(r.frames, r.height, r.width) for r in rows] == sizes
        if not same or other.report.protocol != first.protocol:
            raise ConfigError(
                f"eval: {contenders[0].name} and {other.name} were not scored on the same clips, as an image and a"
                " video tokenizer are not on a folder of both; give media of one kind"
            )
    return Leaderboard(
        protocol=first.protocol,
        clips=first.clips,
        frames=first.frames,
        absent=first.absent,
        standings=tuple(_standing(contender, first) for contender in contenders),
        listed=first.listed,
    )


def _standing(contender: Contender, first: Report) -> Standing:
    report, use = contender.report, contender.report.codebook
    return Standing(
        name=contender.name,
        strides=contender.strides,
        codes=None if use is None else use.codebook_size,
        parameters=contender.parameters,
        bits_per_pixel=None if use is None else use.bits_per_pixel,
        perplexity=None if use is None else use.perplexity,
        psnr=report.psnr,
        ssim=report.ssim,
        ms_ssim=report.ms_ssim,
        lpips=report.lpips,
        frechet=report.frechet,
        megapixels_per_second=contender.speed,
        differences={} if report is first else _differences(report, first),
    )


def _differences(report: Report, first: Report) -> dict[str, PairedDifference]:
    differences = {}
    for name in PAIRED:
        pairs = [(getattr(b, name), getattr(a, name)) for b, a in zip(report.rows, first.rows, strict=True)]
        values = [b - a for b, a in pairs if a is not None and b is not None]
        if not values:
            continue
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        error = math.sqrt(squares / (len(values) - 1) / len(values)) if len(values) > 1 else None
        differences[name] = PairedDifference(mean=mean, error=error, clips=len(values))
    return differences


def _cell(row: Standing, name: str) -> str:
    value, digits = getattr(row, name), 2 if name == "psnr" else 4
    if value is None:
        return "-"
    change = row.differences.get(name)
    if change is None:
        return f"{value:.{digits}f}"
    error = "" if change.error is None else f" ± {change.error:.{digits}f}"
    return f"{value:.{digits}f}\n{change.mean:+.{digits}f}{error}"
