"""Drawing from logits: noise keyed by (seed, sample, step), temperature, top-k and top-p."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.data.shuffle import mix
from smalti.errors import ConfigError
from smalti.generation.guidance import GuidanceConfig


class DrawConfig(Config):
    """How a token is drawn from its logits."""

    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Temperature of the logits; 0 takes the most likely value (greedy)."""
    top_k: int | None = Field(None, ge=1)
    """Number of most likely values to sample from; among equal logits the first ones count."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Probability mass to sample from: the fewest most likely values that reach it."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Classifier-free guidance; off by default."""


def keyed(seed: int, sample: int, step: int) -> torch.Generator:
    """The generator of one sample at one step, on the CPU: noise is the same in any batch, on any device."""
    return torch.Generator().manual_seed(mix(seed, sample, step) >> 1)


def uniforms(
    seed: int, samples: Sequence[int], step: int, shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b *shape"]:
    """Numbers in [0, 1), those of each sample from its own generator."""
    return torch.stack([torch.rand(shape, generator=keyed(seed, sample, step)) for sample in samples]).to(device)


def numbered(samples: Sequence[int] | None, count: int) -> list[int]:
    """The numbers that key the noise of each sample of a batch: 0, 1, ... if none are given."""
    if samples is not None and len(samples) != count:
        raise ConfigError(f"samples: {len(samples)} numbers for a batch of {count}; give one for each")
    return list(range(count) if samples is None else samples)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers: -log(-log(u)), with u kept above 0."""
    return -(-uniform.clamp_min(torch.finfo(torch.float32).tiny).log()).log()


def draw(logits: Float[Tensor, "r v"], uniform: Float[Tensor, "r"], config: DrawConfig) -> Int[Tensor, "r"]:
    """One index a row, by inversion: the first whose cumulative probability exceeds the uniform number.

    What has probability 0 is never drawn. Temperature 0 takes the largest logit.
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
    drawn = (cumulative <= target).sum(1)
    last = probabilities.shape[1] - 1 - (probabilities.flip(1) > 0).to(torch.uint8).argmax(1)
    return drawn.minimum(last)


def _likeliest(probabilities: Tensor, config: DrawConfig) -> Tensor:
    """True at those that top-k and top-p leave; the most likely always is."""
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if config.top_k is not None:
        kept[:, config.top_k :] = False
    if config.top_p is not None and config.top_p < 1:
        kept &= ordered.cumsum(1) - ordered < config.top_p
    return torch.zeros_like(kept).scatter(1, order, kept)
