"""Tokenizers whose every parameter is random: those that start at zero would hide faults."""

import torch

from smalti.tokenizer import Tokenizer


@torch.no_grad()
def randomise(tokenizer: Tokenizer, rng: torch.Generator | None = None) -> None:
    """Add noise to every parameter, of a deviation that keeps the latents' size; `rng` in place of torch's own."""
    for parameter in tokenizer.parameters():
        fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 25
        parameter.add_(torch.randn(parameter.shape, generator=rng) / fan**0.5)
