"""Reports: the scores of each clip or set, their aggregate, and everything that the figures depend on."""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from smalti.config import Config, Tuple
from smalti.metrics.codebook import CodebookUse
from smalti.metrics.features import ScoreName
from smalti.metrics.pixel import psnr
from smalti.metrics.protocols import GenerationProtocol, MediaProtocol, Protocol

if TYPE_CHECKING:
    from rich.table import Table


class Frechet(Config):
    """A Fréchet distance between the features of two sets of clips, and what it rests on."""

    former_names: ClassVar[Mapping[str, str]] = {"made": "outputs"}

    name: ScoreName
    """`rfid` and `rfvd`, `gfid` and `gfvd` are those of the published networks; others have names of their own."""
    distance: float
    means: float
    """Part of the distance that the means contribute."""
    covariances: float
    """Part of the distance that the covariances contribute."""
    originals: int
    """Samples of the originals, or of the real set: frames, or clips. 0 if a file of statistics stands for them."""
    outputs: int
    """Samples of the reconstructions, or of the generated set."""
    dim: int
    """Number of features."""
    warning: str | None = None
    """Reason why the figure should not be quoted."""
    reference: str | None = None
    """Sha256 of the file of statistics that stands for the originals."""
    interval: Tuple[float] | None = None
    """Lower and upper end of the bootstrap interval of 95 %."""
    resamples: int | None = None
    """Number of resamples of the interval."""

    @property
    def against(self) -> str:
        """The originals in words: their number, or the file that stands for them."""
        return f"{self.originals:,}" if self.reference is None else f"a file of statistics {self.reference[:8]}"


_SHOWN = 20
"""Rows of a table for the terminal."""


class ScoreReport(Config):
    """Output that all reports share: JSON, and a table for the terminal."""

    def to_json(self) -> str:
        """Return strict JSON; `parse(json.loads(text))` of the same class reads it back to an equal report."""
        return json.dumps(self.plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self, width: int = 100) -> str:
        """Return a table for the terminal, the aggregate first, then at most `_SHOWN` rows; remarks are below it."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, color_system=None)
        with console.capture() as capture:
            console.print(self._table())
            for line in self._remarks():
                console.print(line)
        return capture.get()

    def _table(self) -> "Table":
        raise NotImplementedError

    def _remarks(self) -> Iterable[str]:
        raise NotImplementedError


class ClipScores(Config):
    """The scores of one clip, each the mean over its frames."""

    key: str
    frames: int
    height: int
    width: int
    mse: float
    """Mean squared error on the protocol's 0..peak, over all pixels."""
    psnr: float
    """PSNR in dB, by the protocol's `psnr_over` and `psnr_cap`."""
    identical_frames: int
    """Frames without any difference; their PSNR counts as the cap."""
    ssim: float | None = None
    ms_ssim: float | None = None
    lpips: float | None = None
    tokens: int | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    """Reasons for scores that are None: {score: reason}."""


class Report(ScoreReport):
    """Scores of reconstructions: one row per clip in the order of keys, and the aggregate by the protocol."""

    kind: Literal["report"] = "report"
    protocol: Protocol
    """The protocol in full, with the digests of the weights that were used."""
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
    """Reasons for missing scores and clips that were left out: {name: reason}."""
    codebook: CodebookUse | None = None
    rows: Tuple[ClipScores]
    listed: int | None = None
    """Number of clips of the data, those that were left out too; None if they were passed one by one."""

    def _table(self) -> "Table":
        from rich.table import Table

        table = Table(title=title_of(self.protocol, self.clips, self.frames, self.listed))
        table.add_column("clip")
        for heading in ("frames", "PSNR dB", "SSIM", "MS-SSIM", "LPIPS"):
            table.add_column(heading, justify="right")
        table.add_row("mean", str(self.frames), *_cells(self), style="bold", end_section=True)
        for row in self.rows[:_SHOWN]:
            table.add_row(row.key, str(row.frames), *_cells(row))
        return table

    def _remarks(self) -> list[str]:
        lines = [f"{name}: {reason}" for name, reason in sorted(self.absent.items())]
        if self.identical_frames:
            lines.append(f"{self.identical_frames} identical frames count as {self.protocol.psnr_cap:g} dB")
        if self.clips > _SHOWN:
            lines.append(f"{self.clips - _SHOWN} more clips in the JSON report")
        if frechet := self.frechet:
            digest = (self.protocol.features_digest or "")[:8]
            lines.append(
                f"{frechet.name}: {frechet.distance:.4f}, {frechet.outputs:,} samples against {frechet.against}, "
                f"{frechet.dim:,} features of {self.protocol.features} {digest}"
            )
            lines += [f"{frechet.name}: {frechet.warning}"] if frechet.warning else []
        if use := self.codebook:
            rate = f", {use.bits_per_pixel:.4f} bits per pixel" if use.bits_per_pixel is not None else ""
            lines.append(
                f"codes: {use.distinct:,} of {use.codebook_size:,} used ({use.share:.2%}; {use.expected_distinct:,.0f} "
                f"expected in a uniform sample of {use.tokens:,}), perplexity {use.perplexity:,.1f}{rate}"
            )
        return lines


class GeneratedSet(Config):
    """The scores of one generated set: one folder, one seed."""

    name: str
    clips: int
    """Number of clips, or of images."""
    frechet: Frechet
    inception_score: float | None = None
    """Mean over the parts of the set."""
    inception_score_std: float | None = None
    """Standard deviation over the parts of this set, not over seeds."""
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    """Reasons for missing scores and clips that were left out: {name: reason}."""
    listed: int | None = None
    """Number of clips in the folder, those that were left out too; None if they were passed one by one."""

    def scores(self) -> dict[str, float]:
        """Return the scores that are not None by name; the distance is under its own name."""
        names = ("inception_score", "precision", "recall", "density", "coverage")
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {self.frechet.name: self.frechet.distance, **values}


class ScoreStats(Config):
    """Statistics of a score over several sets."""

    mean: float
    std: float | None
    """Standard deviation, divided by the number of sets less 1; None for one set."""
    least: float
    most: float


class GenerationReport(ScoreReport):
    """Scores of generated sets, each by itself, and the statistics of every score over the sets."""

    kind: Literal["generation-report"] = "generation-report"
    protocol: GenerationProtocol
    """The protocol in full, with the digest of the weights that were used."""
    real: int
    """Number of real clips, or images; 0 if a file of statistics stands for them."""
    absent: dict[str, str] = Field(default_factory=dict)
    """Reasons for real clips that were left out: {name: reason}."""
    sets: Tuple[GeneratedSet]
    spread: dict[str, ScoreStats]
    """Statistics of the scores that every set has."""

    def _table(self) -> "Table":
        from rich.table import Table

        media = "images" if self.protocol.media == "images" else f"clips of {self.protocol.frames} frames"
        real = f"{self.real:,} real {media}" if self.real else f"statistics of real {media}"
        table = Table(title=f"protocol {self.protocol.name}: against {real}{self._left_out()}{_cut(self.protocol)}")
        table.add_column("set", overflow="fold")
        table.add_column("generated", justify="right")
        for name in self.spread:
            heading = "Fréchet" if name == self.sets[0].frechet.name else name.replace("_", " ")
            table.add_column(heading, justify="right")
        if len(self.sets) > 1:
            table.add_row("mean", "", *(f"{stats.mean:.4f}" for stats in self.spread.values()), style="bold")
            table.add_row("std", "", *(f"{stats.std:.4f}" for stats in self.spread.values()), end_section=True)
        for generated in self.sets:
            scores = generated.scores()
            table.add_row(generated.name, f"{generated.clips:,}", *(f"{scores[name]:.4f}" for name in self.spread))
        return table

    def _left_out(self) -> str:
        """Say of how many generated clips not all were scored."""
        clips, listed = sum(one.clips for one in self.sets), sum(one.listed or one.clips for one in self.sets)
        return f", with {clips:,} of {listed:,} generated" if clips < listed else ""

    def _remarks(self) -> Iterable[str]:
        first, digest = self.sets[0].frechet, (self.protocol.features_digest or "")[:8]
        lines = [f"Fréchet: {first.name}, {first.dim:,} features of {self.protocol.features} {digest}"]
        lines += [f"real: {first.against}"] if first.reference is not None else []
        lines += [f"real {name}: {reason}" for name, reason in sorted(self.absent.items())]
        for generated in self.sets:
            if generated.frechet.interval is not None:
                low, high = generated.frechet.interval
                span = f"{low:.4f} to {high:.4f} at 95 %, of {generated.frechet.resamples} resamples"
                lines.append(f"{generated.name}: {first.name} {span}")
        for generated in self.sets:
            lines += [f"Fréchet: {generated.frechet.warning}"] if generated.frechet.warning else []
            for name, reason in sorted(generated.absent.items()):
                lines.append(f"{generated.name}: {reason}" if name == "clips" else f"{name}: {reason}")
        return dict.fromkeys(lines)  # a remark about every set appears once


def title_of(protocol: Protocol, clips: int, frames: int, listed: int | None) -> str:
    """Say in one line what was scored under a protocol: how many of the `listed` clips, and what was cut of each."""
    count = f"{clips}" if listed is None or listed <= clips else f"{clips} of {listed}"
    return f"protocol {protocol.name}: {count} clips, {frames} frames{_cut(protocol)}"


def _cut(protocol: MediaProtocol) -> str:
    """Say what of each file a protocol leaves; nothing where files are taken whole, or were passed as tensors."""
    if protocol.size is None or protocol.crop == "none":
        area = ""
    else:
        height, width = (protocol.size, protocol.size) if isinstance(protocol.size, int) else protocol.size
        area = f"{'' if protocol.resize == 'none' else 'scaled and '}cut to {height} x {width}"
    if protocol.frames is None:
        return f"; each {area}" if area else ""
    place = {"start": "from its start", "center": "from its middle", "random": "at a random place"}[protocol.sampling]
    return f"; of each {protocol.frames} frames {place}{', ' if area else ''}{area}"


def report_of_clips(
    protocol: Protocol,
    rows: Iterable[ClipScores],
    codebook: CodebookUse | None,
    frechet: Frechet | None,
    reasons: Mapping[str, str],
) -> Report:
    """Aggregate rows in any order; `reasons` say why scores that do not come from rows are None."""
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
        ssim=_mean_of_present("ssim", lambda row: row.ssim, ordered, protocol, absent),
        ms_ssim=_mean_of_present("ms_ssim", lambda row: row.ms_ssim, ordered, protocol, absent),
        lpips=_mean_of_present("lpips", lambda row: row.lpips, ordered, protocol, absent),
        frechet=frechet,
        absent=absent,
        codebook=codebook,
        rows=ordered,
    )


def capped_psnr(error: float, protocol: Protocol) -> float:
    """Compute the PSNR in dB of a mean squared error, at most `protocol.psnr_cap`, which no error gives too."""
    return min(protocol.psnr_cap, psnr(torch.tensor(error, dtype=torch.float64), protocol.data_range).item())


def _mean_of_present(
    name: str,
    score: Callable[[ClipScores], float | None],
    rows: Sequence[ClipScores],
    protocol: Protocol,
    absent: dict[str, str],
) -> float | None:
    present = [(row, value) for row in rows if (value := score(row)) is not None]
    if len(present) < len(rows):
        reason = next(row.absent.get(name, "not measured") for row in rows if score(row) is None)
        missing = len(rows) - len(present)
        absent[name] = reason if not present else f"{missing} of {len(rows)} clips left out: {reason}"
    if not present:
        return None
    return _mean([row for row, _ in present], [value for _, value in present], protocol)


def _mean(rows: Sequence[ClipScores], values: Sequence[float], protocol: Protocol) -> float:
    # fsum rounds once, so the order of the clips changes no bit.
    weights = [row.frames if protocol.mean_over == "frames" else 1 for row in rows]
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def _cells(scores: Report | ClipScores) -> list[str]:
    fourths = [f"{value:.4f}" if value is not None else "-" for value in (scores.ssim, scores.ms_ssim, scores.lpips)]
    return [f"{scores.psnr:.3f}", *fourths]
