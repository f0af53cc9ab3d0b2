"""Tokenizers whose every parameter is random: those that start at zero would hide faults."""

import torch

from smalti.tokenizer import AnyTokenizerConfig, Tokenizer


def random_tokenizer(config: AnyTokenizerConfig, seed: int = 0) -> Tokenizer:
    """A float32 tokenizer with noise on every parameter, of a deviation that keeps the latents' size; the same weights
    after any other tests."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        tokenizer = Tokenizer(config)
        for parameter in tokenizer.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 25
            parameter.add_(torch.randn(parameter.shape) / fan**0.5)
    return tokenizer.eval()
