"""The tokenizer that a command works with."""

from pathlib import Path

from smalti.families import load
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.training.distributed import pick_device


def as_tokenizer(tokenizer: Tokenizer | str | Path, device: str | None = None) -> Tokenizer:
    """Return a tokenizer as it is, or load it by a name as `smalti.load` takes it, on `device` or the best there is."""
    return tokenizer if isinstance(tokenizer, Tokenizer) else load(tokenizer, pick_device(device))
