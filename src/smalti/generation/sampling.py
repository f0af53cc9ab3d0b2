"""Sampling of one token value from its logits: keyed noise, temperature, top-k, top-p, classifier-free guidance."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.data.source import mix
from smalti.errors import ConfigError, SmaltiError
from smalti.generation.blocks import Condition, Vocabulary


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
        """Return the scale at a progress in [0, 1): the share of the steps that are done."""
        if self.schedule == "constant":
            return self.scale
        share = (1 - math.cos(math.pi * progress**self.power)) / 2
        return self.scale * share if share >= self.negligible else 0.0

    def check(self, classes: int, condition: Condition) -> None:
        """Raise ConfigError if there is no class to be guided towards."""
        if self.scale > 0 and (classes == 0 or condition.labels is None):
            lacks = "the model was trained without classes" if classes == 0 else "the prompt has no class"
            raise ConfigError(
                f"guidance.scale {self.scale:g}: {lacks}, so there is nothing to guide towards; set it to 0"
            )


def guide(
    conditional: Float[Tensor, "r v"], unconditional: Float[Tensor, "r v"], scale: Float[Tensor, "r 1"]
) -> Float[Tensor, "r v"]:
    """Compute conditional + scale * (conditional - unconditional)."""
    return conditional + scale * (conditional - unconditional)


class GuidedBatch(NamedTuple):
    """Guided samples of a batch, and their scales."""

    samples: Int[Tensor, "q"]
    """Indices of the samples whose scale is not 0."""
    scales: Float[Tensor, "b"]
    """Scale of every sample."""

    @classmethod
    def of(cls, scales: Sequence[float], device: torch.device) -> "GuidedBatch":
        """Make one from a scale for each sample."""
        all_ = torch.tensor(scales, device=device)
        return cls(all_.nonzero()[:, 0], all_)

    def scaled(self, scale: float) -> "GuidedBatch":
        """Return the same samples at another scale."""
        return self._replace(scales=torch.full_like(self.scales, scale))

    def conditions(self, condition: Condition, classes: int) -> Condition:
        """Return the condition of all samples, and then of the guided ones again without their class; tasks stay."""
        if condition.labels is None or not len(self.samples):
            return condition
        free = torch.full_like(condition.labels[self.samples], classes)
        tasks = None if condition.tasks is None else self.twice(condition.tasks)
        return Condition(torch.cat([condition.labels, free]), tasks)

    def twice(self, x: Tensor) -> Tensor:
        """Return the rows of all samples, and then those of the guided ones again."""
        return torch.cat([x, x[self.samples]]) if len(self.samples) else x


class GuidedHeads:
    """Guided logits, computed at some cells only."""

    def __init__(
        self, vocabulary: Vocabulary, features: Float[Tensor, "b2 n d"], cells: Bool[Tensor, "b n"], guided: GuidedBatch
    ) -> None:
        """Take the features of all samples, and then of the guided ones without their class."""
        self._vocabulary = vocabulary
        self._features = features[guided.twice(cells)]
        sample_of = cells.nonzero()[:, 0]
        self._guided = torch.isin(sample_of, guided.samples)
        self._scales = guided.scales[sample_of[self._guided], None]

    def __call__(self, g: int, subtokens: Int[Tensor, "r g"]) -> Float[Tensor, "r v"]:
        """Compute the logits of sub-token g given those before it, in float32 or better.

        Raises SmaltiError if they are not finite.
        """
        logits = self._vocabulary.logits_at(g, self._features, torch.cat([subtokens, subtokens[self._guided]]))
        if not bool(torch.isfinite(logits).all()):
            raise SmaltiError(
                "generate: the model gave logits that are not finite; its weights are damaged or diverged"
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        conditional, free = logits[: len(subtokens)], logits[len(subtokens) :]
        if len(free):
            conditional[self._guided] = guide(conditional[self._guided], free, self._scales.to(free.dtype))
        return conditional


class TokenSamplingConfig(Config):
    """Sampling of a token from its logits."""

    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Temperature of the logits; 0 takes the most likely value (greedy)."""
    top_k: int | None = Field(None, ge=1)
    """Number of most likely values to sample from; among equal logits the first ones count."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Probability mass to sample from: the fewest most likely values that reach it."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Classifier-free guidance; off by default."""


def sample_generator(seed: int, sample: int, step: int) -> torch.Generator:
    """Return the generator of one sample at one step, on the CPU: noise is the same in any batch, on any device."""
    return torch.Generator().manual_seed(mix(seed, sample, step) >> 1)


def uniform_noise(
    seed: int, samples: Sequence[int], step: int, shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b *shape"]:
    """Return uniform numbers in [0, 1), those of each sample from its own generator."""
    return torch.stack([torch.rand(shape, generator=sample_generator(seed, sample, step)) for sample in samples]).to(
        device
    )


def sample_numbers(samples: Sequence[int] | None, count: int) -> list[int]:
    """Return the numbers that key the noise of each sample of a batch: 0, 1, ... for None."""
    if samples is not None and len(samples) != count:
        raise ConfigError(f"samples: {len(samples)} numbers for a batch of {count}; give one for each")
    return list(range(count) if samples is None else samples)


def gumbel(uniform: Tensor) -> Tensor:
    """Turn uniform numbers into standard Gumbel noise: -log(-log(u)), with u clamped above 0."""
    return -(-uniform.clamp_min(torch.finfo(torch.float32).tiny).log()).log()


def sample_logits(
    logits: Float[Tensor, "r v"], uniform: Float[Tensor, "r"], config: TokenSamplingConfig
) -> Int[Tensor, "r"]:
    """Sample one index a row, by inversion: the first whose cumulative probability exceeds the uniform number.

    An index of probability 0 is never sampled. Temperature 0 takes the largest logit.
    """
    if config.temperature == 0:
        return logits.argmax(1)
    # From the largest down, so that a small temperature makes -inf of the others and nothing else.
    temperature = max(config.temperature, torch.finfo(logits.dtype).tiny)
    scaled = (logits - logits.amax(1, keepdim=True)) / temperature
    probabilities = scaled.softmax(1)
    if config.top_k is not None or (config.top_p is not None and config.top_p < 1):
        probabilities = probabilities * _likeliest(probabilities, config)
    cumulative = probabilities.cumsum(1)
    target = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    index = (cumulative <= target).sum(1)
    last = probabilities.shape[1] - 1 - (probabilities.flip(1) > 0).to(torch.uint8).argmax(1)
    return index.minimum(last)


def _likeliest(probabilities: Tensor, config: TokenSamplingConfig) -> Tensor:
    """Return True at the values that top-k and top-p leave; the most likely always is."""
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    allowed = torch.ones_like(ordered, dtype=torch.bool)
    if config.top_k is not None:
        allowed[:, config.top_k :] = False
    if config.top_p is not None and config.top_p < 1:
        allowed &= ordered.cumsum(1) - ordered < config.top_p
    return torch.zeros_like(allowed).scatter(1, order, allowed)
