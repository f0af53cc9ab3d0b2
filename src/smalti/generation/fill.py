"""Either model drawing whole samples, and long video window after window."""

from collections.abc import Callable, Iterator, Sequence

from jaxtyping import Int
from torch import Tensor

from smalti.data.shuffle import mix
from smalti.errors import ConfigError
from smalti.generation.autoregressive import AutoregressiveTransformer, sample_autoregressive
from smalti.generation.blocks import Condition
from smalti.generation.prompt import Prompt, beginning
from smalti.generation.sample import SamplingConfig, sample
from smalti.generation.transformer import MaskedTransformer

TokenModel = MaskedTransformer | AutoregressiveTransformer


def complete(
    model: TokenModel,
    prompt: Prompt,
    config: SamplingConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Int[Tensor, "b t h w"]:
    """The prompt with every cell filled: in parallel (`sample`), or token by token (`sample_autoregressive`)."""
    if isinstance(model, MaskedTransformer):
        return sample(model, prompt, config, seed=seed, samples=samples)
    return sample_autoregressive(model, prompt, config, seed=seed, samples=samples)


def extend(
    model: TokenModel,
    first: Int[Tensor, "b t h w"],
    condition: Condition,
    config: SamplingConfig,
    *,
    keep: int,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    renew: Callable[[Int[Tensor, "b t h w"]], Int[Tensor, "b k h w"]] | None = None,
) -> Iterator[Int[Tensor, "b t h w"]]:
    """Endless windows of the shape of `first`, each beginning with the last `keep` latent frames of the one before.

    Left as they are, the new frames of all windows, one after the other, are the ids of one long video, that a causal
    tokenizer decodes as a stream. But the first latent frame of a clip holds one picture and the others hold several,
    and the model knows it at the first place of a window alone; so `renew` may make the known tokens anew from a
    window: decode it, encode its last 1 + s (keep - 1) pictures as a clip. Each window is then decoded by itself.
    """
    number = 0
    window = first
    while True:
        number += 1
        prefix = window[:, -keep:] if renew is None else renew(window)
        if prefix.shape[1] != keep:
            raise ConfigError(f"keep: {keep} latent frames were to be known, and {prefix.shape[1]} were given")
        prompt = beginning(prefix, (first.shape[1], first.shape[2], first.shape[3]), condition)
        window = complete(model, prompt, config, seed=mix(seed, number), samples=samples)
        yield window
