"""Where a tokenizer that the user names is found."""

from pathlib import Path
from typing import TYPE_CHECKING

from smalti.errors import InputError
from smalti.weights import IMAGE, VIDEO, shipped

if TYPE_CHECKING:
    from smalti.tokenizer import Tokenizer

HUB = "hf:"


def find_tokenizer(name: str) -> Path:
    """The folder of a tokenizer: `name` itself, or that of a run, finished or not (its newest checkpoint's).

    Raises InputError where there is none.
    """
    from smalti.training.checkpoints import tokenizer_folder

    folder = Path(name)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        known = f"a tokenizer folder, a run folder, {IMAGE}, {VIDEO}, or {HUB}OWNER/NAME for the hub"
        raise InputError(f"{name}: {what}; give {known}")
    return tokenizer_folder(folder)


def pretrained_name(name: str) -> str:
    """The tokenizer that the user names as `Tokenizer.from_pretrained` takes it, from any working folder."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    return name if shipped(name) else str(find_tokenizer(name).absolute())


def open_tokenizer(name: str, device: str | None = "cpu") -> "Tokenizer":
    """The tokenizer that the user names, on the device of that name, or on the best there is."""
    from smalti.tokenizer import Tokenizer
    from smalti.training.distributed import pick_device

    return Tokenizer.from_pretrained(pretrained_name(name), device=pick_device(device))
