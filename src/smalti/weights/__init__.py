"""The trained tokenizers that come with smalti, a folder each with a model card, and their names."""

from pathlib import Path

IMAGE, VIDEO = "smalti/tiny-image", "smalti/tiny-video"


def shipped(name: str) -> Path | None:
    """The folder of the tokenizer of that name; None where smalti ships none so named.

    Its file holds half precision. `Tokenizer.from_pretrained` makes float32 of it, which changes no value.
    """
    return Path(__file__).parent / name.removeprefix("smalti/") if name in (IMAGE, VIDEO) else None
