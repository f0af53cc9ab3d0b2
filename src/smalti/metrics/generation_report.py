"""Named conventions for scores of generated sets, and what such a score found."""

import io
import json
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from smalti.config import Config, Tuple
from smalti.errors import ConfigError
from smalti.metrics.features import FeatureName
from smalti.metrics.pixel import Rounding
from smalti.metrics.report import Frechet


class GenerationProtocol(Config):
    """Everything that a score of a generated set depends on besides the two sets."""

    kind: Literal["generation-protocol"] = "generation-protocol"
    name: str
    """Name of the protocol."""
    media: Literal["images", "videos"]
    """Media of both sets."""
    reader: str = "rgb24"
    """Decoder of the files. From here to `sampling`, fields are declarations if clips are passed as tensors."""
    resize: Literal["none", "lanczos"] = "none"
    """Filter that scales a frame to `size`: Pillow's, antialiased. Frames of that size are not scaled."""
    crop: Literal["none", "center"] = "none"
    """Crop of a frame: none, or the middle in the aspect of `size`."""
    size: Tuple[int] | None = None
    """Height and width of every frame of both sets."""
    frames: int | None = Field(default=None, ge=1)
    """Frames of every clip of both sets; null for images."""
    stride: int = Field(default=1, ge=1)
    """Distance between the frames of a clip."""
    sampling: Literal["center"] = "center"
    """Position of the clip in its video."""
    samples: int | None = Field(default=None, ge=1)
    """Number of generated clips that are scored, the first ones; fewer are refused. Null is any number."""
    rounding: Rounding = "round"
    """Conversion of both sets from [-1, 1] to 0..255; features see uint8 pixels."""
    features: FeatureName
    """Network whose features are compared."""
    features_digest: str | None = None
    """Sha256 of the weight file of `features`; null accepts any, and the report states it."""
    inception_splits: int | None = Field(default=None, ge=1)
    """Parts of the inception score, consecutive by key; logits have no bias, as in the authors' code. Null: none."""
    precision_recall: int | None = Field(default=3, ge=1)
    """Nearest neighbour k of precision and recall; balls include their edge. Null takes neither."""
    density_coverage: int | None = Field(default=5, ge=1)
    """Nearest neighbour k of density and coverage; balls exclude their edge. Null takes neither."""

    @model_validator(mode="after")
    def _consistent(self) -> "GenerationProtocol":
        if self.rounding == "none":
            raise ValueError("features are taken of uint8 pixels: set rounding to round or floor")
        if self.inception_splits is not None and self.features != "inception":
            raise ValueError("the inception score is of the features of inception: set inception_splits to null")
        return self


SMALTI_GFID = GenerationProtocol(name="smalti-gfid", media="images", features="inception", inception_splits=10)
"""gFID and the inception score, of any number of pictures; precision and the others of the same 2,048 features."""

SMALTI_GFVD = GenerationProtocol(name="smalti-gfvd", media="videos", frames=16, features="i3d")
"""gFVD of any number of clips, 16 frames as StyleGAN-V takes, another number may be asked for."""

SMALTI_GENERATION = GenerationProtocol(name="smalti-generation", media="images", features="efficientnet-lite0")
"""With a network that a package installs. No FID."""

SMALTI_GENERATION_VIDEO = GenerationProtocol(
    name="smalti-generation-video", media="videos", frames=16, features="efficientnet-lite0-video"
)
"""The same for clips, half what they show and half how they move. No FVD."""

NAMED_GENERATION = (SMALTI_GFID, SMALTI_GFVD, SMALTI_GENERATION, SMALTI_GENERATION_VIDEO)
"""All that have a name on the command line."""


def generation_by_name(name: str) -> GenerationProtocol:
    """The protocol of that name. Raises ConfigError that lists the names."""
    for protocol in NAMED_GENERATION:
        if protocol.name == name:
            return protocol
    listed = ", ".join(protocol.name for protocol in NAMED_GENERATION)
    raise ConfigError(f"no protocol for generated sets is called {name!r}; there are: {listed}")


class GeneratedSet(Config):
    """The scores of one generated set: one folder, one seed."""

    name: str
    clips: int
    """Clips, or pictures."""
    frechet: Frechet
    inception_score: float | None = None
    """The mean over the parts."""
    inception_score_std: float | None = None
    """Over the parts of this set, not over seeds."""
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    """Why a score is None, or what was left out: {name: reason}."""

    def scores(self) -> dict[str, float]:
        """Those that could be taken, by name; the distance under its own."""
        names = ("inception_score", "precision", "recall", "density", "coverage")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {self.frechet.name: self.frechet.distance, **found}


class Spread(Config):
    """A score over several sets."""

    mean: float
    std: float | None
    """Standard deviation of one set, divided by their number less 1; None of one set."""
    least: float
    most: float


class GenerationReport(Config):
    """Each set by itself, and the spread of every score over the sets."""

    kind: Literal["generation-report"] = "generation-report"
    protocol: GenerationProtocol
    """In full, with the digest of the weights that were used."""
    real: int
    """Real clips, or pictures."""
    absent: dict[str, str] = Field(default_factory=dict)
    """What was left out of the real ones: {name: reason}."""
    sets: Tuple[GeneratedSet]
    spread: dict[str, Spread]
    """Of the scores that every set has."""

    def to_json(self) -> str:
        """Strict JSON; `GenerationReport.parse(json.loads(text))` reads it back to an equal report."""
        return json.dumps(self.plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self, width: int = 100) -> str:
        """One table for the terminal: the spread first, then the sets; reasons for gaps below it."""
        from rich.console import Console
        from rich.table import Table

        what = "pictures" if self.protocol.media == "images" else f"clips of {self.protocol.frames} frames"
        table = Table(title=f"protocol {self.protocol.name}: against {self.real:,} real {what}")
        table.add_column("set", overflow="fold")
        table.add_column("made", justify="right")
        for name in self.spread:
            heading = "Fréchet" if name == self.sets[0].frechet.name else name.replace("_", " ")
            table.add_column(heading, justify="right")
        if len(self.sets) > 1:
            table.add_row("mean", "", *(f"{one.mean:.4f}" for one in self.spread.values()), style="bold")
            table.add_row("std", "", *(f"{one.std:.4f}" for one in self.spread.values()), end_section=True)
        for one in self.sets:
            scores = one.scores()
            table.add_row(one.name, f"{one.clips:,}", *(f"{scores[name]:.4f}" for name in self.spread))
        console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, color_system=None)
        with console.capture() as capture:
            console.print(table)
            for line in self._remarks():
                console.print(line)
        return capture.get()

    def _remarks(self) -> Iterable[str]:
        first, digest = self.sets[0].frechet, (self.protocol.features_digest or "")[:8]
        lines = [f"Fréchet: {first.name}, {first.dim:,} features of {self.protocol.features} {digest}"]
        lines += [f"real {name}: {reason}" for name, reason in sorted(self.absent.items())]
        for one in self.sets:
            lines += [f"Fréchet: {one.frechet.warning}"] if one.frechet.warning else []
            for name, reason in sorted(one.absent.items()):
                lines.append(f"{one.name}: {reason}" if name == "clips" else f"{name}: {reason}")
        return dict.fromkeys(lines)  # what is so of every set is said once
