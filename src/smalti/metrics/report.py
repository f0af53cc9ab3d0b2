"""What an evaluation found: one row per clip, the aggregate, and everything that the figures depend on."""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field

from smalti.config import Config, Tuple
from smalti.metrics.codebook import CodebookUse
from smalti.metrics.features import ScoreName
from smalti.metrics.pixel import psnr
from smalti.metrics.protocols import Protocol


class Row(Config):
    """The scores of one clip, each the mean over its frames."""

    key: str
    frames: int
    height: int
    width: int
    mse: float
    """Mean squared error on the protocol's 0..peak, over all pixels."""
    psnr: float
    """dB, by the protocol's `psnr_over` and `psnr_cap`."""
    identical_frames: int
    """Frames without any difference; their PSNR counts as the cap."""
    ssim: float | None = None
    ms_ssim: float | None = None
    lpips: float | None = None
    tokens: int | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    """Why a score is None: {score: reason}."""


class Frechet(Config):
    """A Fréchet distance between the features of originals and of reconstructions, and what it rests on."""

    name: ScoreName
    """`rfid` and `rfvd` are those of the published networks; others have names of their own."""
    distance: float
    means: float
    """The part of the means."""
    covariances: float
    """The part of the covariances."""
    originals: int
    """Samples: frames, or clips."""
    made: int
    dim: int
    warning: str | None = None
    """Why the figure should not be quoted."""


class Report(Config):
    """Rows in the order of their keys, and the aggregate over them by the protocol's `mean_over`."""

    kind: Literal["report"] = "report"
    protocol: Protocol
    """In full, with the digests of the weights that were used."""
    clips: int
    frames: int
    identical_frames: int
    mse: float
    psnr: float
    ssim: float | None = None
    ms_ssim: float | None = None
    lpips: float | None = None
    frechet: Frechet | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    """Why a score is None, or over how many clips it was taken if not over all: {score: reason}."""
    codebook: CodebookUse | None = None
    rows: Tuple[Row]

    def to_json(self) -> str:
        """Strict JSON; `Report.parse(json.loads(text))` reads it back to an equal report."""
        return json.dumps(self.plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self, rows: int = 20, width: int = 100) -> str:
        """One table for the terminal: the mean first, then the first `rows` clips; reasons for gaps below it."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"protocol {self.protocol.name}: {self.clips} clips, {self.frames} frames")
        table.add_column("clip")
        for heading in ("frames", "PSNR dB", "SSIM", "MS-SSIM", "LPIPS"):
            table.add_column(heading, justify="right")
        table.add_row("mean", str(self.frames), *_figures(self), style="bold", end_section=True)
        for row in self.rows[:rows]:
            table.add_row(row.key, str(row.frames), *_figures(row))
        console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, color_system=None)
        with console.capture() as capture:
            console.print(table)
            for line in self._remarks(rows):
                console.print(line)
        return capture.get()

    def _remarks(self, rows: int) -> list[str]:
        lines = [f"{name}: {reason}" for name, reason in sorted(self.absent.items())]
        if self.identical_frames:
            lines.append(f"{self.identical_frames} identical frames count as {self.protocol.psnr_cap:g} dB")
        if self.clips > rows:
            lines.append(f"{self.clips - rows} more clips in the JSON report")
        if found := self.frechet:
            digest = (self.protocol.features_digest or "")[:8]
            lines.append(
                f"{found.name}: {found.distance:.4f}, {found.made:,} samples against {found.originals:,}, "
                f"{found.dim:,} features of {self.protocol.features} {digest}"
            )
            lines += [f"{found.name}: {found.warning}"] if found.warning else []
        if use := self.codebook:
            rate = f", {use.bits_per_pixel:.4f} bits per pixel" if use.bits_per_pixel is not None else ""
            lines.append(
                f"codes: {use.distinct:,} of {use.codebook_size:,} used ({use.share:.2%}; {use.expected_distinct:,.0f} "
                f"expected of {use.tokens:,} even draws), perplexity {use.perplexity:,.1f}{rate}"
            )
        return lines


def summarise(
    protocol: Protocol,
    rows: Iterable[Row],
    codebook: CodebookUse | None,
    frechet: Frechet | None,
    reasons: Mapping[str, str],
) -> Report:
    """The aggregate of rows, whatever their order; `reasons` say why what is not of rows is None."""
    ordered = tuple(sorted(rows, key=lambda row: row.key))
    absent = dict(reasons)
    if protocol.psnr_over == "set":
        sizes = [row.frames * row.height * row.width for row in ordered]
        error = math.fsum(row.mse * size for row, size in zip(ordered, sizes, strict=True)) / sum(sizes)
        mean_psnr = capped_psnr(error, protocol)
    else:
        mean_psnr = _mean(ordered, [row.psnr for row in ordered], protocol)
    return Report(
        protocol=protocol,
        clips=len(ordered),
        frames=sum(row.frames for row in ordered),
        identical_frames=sum(row.identical_frames for row in ordered),
        mse=_mean(ordered, [row.mse for row in ordered], protocol),
        psnr=mean_psnr,
        ssim=_over_present("ssim", lambda row: row.ssim, ordered, protocol, absent),
        ms_ssim=_over_present("ms_ssim", lambda row: row.ms_ssim, ordered, protocol, absent),
        lpips=_over_present("lpips", lambda row: row.lpips, ordered, protocol, absent),
        frechet=frechet,
        absent=absent,
        codebook=codebook,
        rows=ordered,
    )


def capped_psnr(error: float, protocol: Protocol) -> float:
    """PSNR in dB of a mean squared error, at most `protocol.psnr_cap`, which is also the PSNR of no error."""
    return min(protocol.psnr_cap, psnr(torch.tensor(error, dtype=torch.float64), protocol.data_range).item())


def _over_present(
    name: str,
    score: Callable[[Row], float | None],
    rows: Sequence[Row],
    protocol: Protocol,
    absent: dict[str, str],
) -> float | None:
    present = [(row, value) for row in rows if (value := score(row)) is not None]
    if len(present) < len(rows):
        reason = next(row.absent.get(name, "not measured") for row in rows if score(row) is None)
        left = len(rows) - len(present)
        absent[name] = reason if not present else f"{left} of {len(rows)} clips left out: {reason}"
    if not present:
        return None
    return _mean([row for row, _ in present], [value for _, value in present], protocol)


def _mean(rows: Sequence[Row], values: Sequence[float], protocol: Protocol) -> float:
    # fsum rounds once, so the order of the clips changes no bit.
    weights = [row.frames if protocol.mean_over == "frames" else 1 for row in rows]
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def _figures(scores: Report | Row) -> list[str]:
    fourths = [f"{value:.4f}" if value is not None else "-" for value in (scores.ssim, scores.ms_ssim, scores.lpips)]
    return [f"{scores.psnr:.3f}", *fourths]
