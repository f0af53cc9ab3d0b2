"""The tokenizer that the user names, on the device that the user names."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smalti.tokenizer import Tokenizer


def open_tokenizer(name: str, device: str | None = "cpu") -> "Tokenizer":
    """Load a tokenizer on the device of that name, or on the best there is. Raises what `smalti.load` raises."""
    from smalti.tokenizer import load
    from smalti.training.distributed import pick_device

    return load(name, pick_device(device))
