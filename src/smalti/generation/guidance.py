"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) in one convention."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.errors import ConfigError, SmaltiError
from smalti.generation.blocks import Condition
from smalti.generation.vocabulary import Vocabulary


class GuidanceConfig(Config):
    """logits = conditional + scale * (conditional - unconditional). Scale 0 is the conditional model.

    This is the convention of MAGVIT and MaskBit; where scale 1 is the conditional model (Open-MAGVIT2, LlamaGen), a
    scale s is s - 1 here.
    """

    scale: float = Field(0.0, ge=0, le=1e4)
    """Guidance scale: conditional + scale * (conditional - unconditional). 0 is the conditional model."""
    schedule: Literal["constant", "power_cosine"] = "constant"
    """Scale over the steps: constant, or scale * (1 - cos(pi * progress^power)) / 2."""
    power: float = Field(2.5, gt=0, le=100)
    """Exponent of `power_cosine`; the larger, the later guidance begins."""
    negligible: float = Field(0.01, ge=0, lt=1)
    """Share of `scale` below which the schedule counts as 0 and the unconditional half is not computed."""

    def at(self, progress: float) -> float:
        """The scale at a progress in [0, 1): the share of steps already made."""
        if self.schedule == "constant":
            return self.scale
        share = (1 - math.cos(math.pi * progress**self.power)) / 2
        return self.scale * share if share >= self.negligible else 0.0

    def check(self, classes: int, condition: Condition) -> None:
        """Raises ConfigError if there is no class to be guided towards."""
        if self.scale > 0 and (classes == 0 or condition.labels is None):
            lacks = "the model was trained without classes" if classes == 0 else "no class is asked for"
            raise ConfigError(
                f"guidance.scale {self.scale:g}: {lacks}, so there is nothing to guide towards; set it to 0"
            )


def guide(
    conditional: Float[Tensor, "r v"], unconditional: Float[Tensor, "r v"], scale: Float[Tensor, "r 1"]
) -> Float[Tensor, "r v"]:
    """Conditional + scale * (conditional - unconditional)."""
    return conditional + scale * (conditional - unconditional)


class Guided(NamedTuple):
    """Which samples of a batch are guided, and how much."""

    samples: Int[Tensor, "q"]
    """Those whose scale is not 0."""
    scales: Float[Tensor, "b"]
    """Of every sample."""

    @classmethod
    def of(cls, scales: Sequence[float], device: torch.device) -> "Guided":
        """From a scale for each sample."""
        all_ = torch.tensor(scales, device=device)
        return cls(all_.nonzero()[:, 0], all_)

    def scaled(self, scale: float) -> "Guided":
        """The same samples at another scale."""
        return self._replace(scales=torch.full_like(self.scales, scale))

    def conditions(self, condition: Condition, classes: int) -> Condition:
        """Of all samples, and then of the guided ones once more without their class; a task stays."""
        if condition.labels is None or not len(self.samples):
            return condition
        free = torch.full_like(condition.labels[self.samples], classes)
        tasks = None if condition.tasks is None else self.twice(condition.tasks)
        return Condition(torch.cat([condition.labels, free]), tasks)

    def twice(self, x: Tensor) -> Tensor:
        """The rows of all samples, and then those of the guided ones once more."""
        return torch.cat([x, x[self.samples]]) if len(self.samples) else x


class Heads:
    """Guided logits at some cells alone."""

    def __init__(
        self, vocabulary: Vocabulary, features: Float[Tensor, "b2 n d"], cells: Bool[Tensor, "b n"], guided: Guided
    ) -> None:
        """`features` are those of all samples and then of the guided ones without their class."""
        self._vocabulary = vocabulary
        self._features = features[guided.twice(cells)]
        sample_of = cells.nonzero()[:, 0]
        self._guided = torch.isin(sample_of, guided.samples)
        self._scales = guided.scales[sample_of[self._guided], None]

    def __call__(self, g: int, parts: Int[Tensor, "r g"]) -> Float[Tensor, "r v"]:
        """Logits of part g given the parts before it, float32 at least. Raises SmaltiError if they are not finite."""
        logits = self._vocabulary.logits_at(g, self._features, torch.cat([parts, parts[self._guided]]))
        if not bool(torch.isfinite(logits).all()):
            raise SmaltiError(
                "generate: the model gave logits that are not finite; its weights are damaged or diverged"
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        conditional, free = logits[: len(parts)], logits[len(parts) :]
        if len(free):
            conditional[self._guided] = guide(conditional[self._guided], free, self._scales.to(free.dtype))
        return conditional
