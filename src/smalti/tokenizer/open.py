"""The one way to name a tokenizer: in Python, in every command and in the fields `init` and `tokenizer` of configs."""

import re
from pathlib import Path
from typing import NamedTuple

import torch

from smalti.errors import ConfigError, InputError, MachineError
from smalti.files import MANIFEST
from smalti.model_folder import CONFIG, WEIGHTS, find_model
from smalti.text import one_line
from smalti.tokenizer.tokenizer import Tokenizer

TINY_IMAGE, TINY_VIDEO = "smalti/tiny-image", "smalti/tiny-video"
"""Names of the trained tokenizers that ship with the package."""

FORMS = f"a tokenizer folder, a run folder, {TINY_IMAGE}, {TINY_VIDEO}, or OWNER/NAME[@REVISION] for the hub"
"""Names that `load` takes, for messages."""

_HUB = "hf:"
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


class HubName(NamedTuple):
    """A repository of the Hugging Face hub."""

    repository: str
    revision: str | None
    """Branch, tag or commit; None for the newest."""

    def __str__(self) -> str:
        return f"{_HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def load(
    name: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> Tokenizer:
    """Load the tokenizer of that name, for inference: on the CPU and with the number type of its file unless said.

    `name` is a tokenizer folder, a run folder (its finished tokenizer, or its newest checkpoint's), `smalti/tiny-image`
    or `smalti/tiny-video`, which ship with the package, or a repository of the Hugging Face hub, which is downloaded
    once into its cache: `owner/name`, `owner/name@revision`, or the same after `hf:`. A folder that exists comes before
    a repository of the same name; a `Path` is always a folder. `revision` says the same as `@revision`.

    Raises InputError for a name of nothing, IntegrityError for a tokenizer that has changed since it was written,
    MachineError where the hub cannot be reached. Runs no code that it loads.
    """
    place = find_tokenizer(name)
    if revision is not None:
        if not isinstance(place, HubName) or place.revision not in (None, revision):
            raise ConfigError(f"{name}: revision {revision} is that of a hub repository without another @revision")
        place = place._replace(revision=revision)
    tokenizer = Tokenizer.load(_download(place) if isinstance(place, HubName) else place)
    if dtype is None and place == shipped_folder(str(name)):
        dtype = torch.float32  # its file holds half precision, which is exact in float32
    return tokenizer.to(device=device, dtype=dtype)


def find_tokenizer(name: str | Path) -> Path | HubName:
    """Find the folder of a tokenizer, or else its name on the hub, without asking the hub. `load` has the grammar.

    Raises InputError where the name is that of no folder and cannot be one on the hub.
    """
    path, text = Path(name), str(name)
    if path.is_dir():
        folder = find_model(path, "tokenizer") or (path if (path / CONFIG).is_file() else None)
        if folder is None:
            wanted = f"a tokenizer ({CONFIG} and {WEIGHTS}) nor a run with a checkpoint (step-*/tokenizer)"
            raise InputError(f"{name}: holds neither {wanted}; give {FORMS}")
        return folder
    if isinstance(name, str):
        if (folder := shipped_folder(name)) is not None:
            return folder
        hub = _HUB_NAME.fullmatch(text.removeprefix(_HUB))
        if hub and (text.startswith(_HUB) or not path.exists()):
            return HubName(hub[1], hub[2])
    if path.exists():
        raise InputError(f"{name}: a file; give {FORMS}")
    local = isinstance(name, Path) or path.is_absolute() or text.startswith((".", "~"))
    what = "no such folder" if local else "neither a folder nor the name of a hub repository"
    raise InputError(f"{name}: {what}; give {FORMS}")


def full_name(name: str | Path) -> str:
    """Return a name of the same tokenizer that holds from any working folder. Raises as `find_tokenizer` does."""
    if not Path(name).is_dir() and shipped_folder(str(name)) is not None:
        return str(name)
    place = find_tokenizer(name)
    return str(place if isinstance(place, HubName) else place.absolute())


def shipped_folder(name: str) -> Path | None:
    """Return the folder of a tokenizer that ships with the package; None for another name.

    Its file holds half precision, of which `load` makes float32.
    """
    folder = Path(__file__).parents[1] / "weights" / name.removeprefix("smalti/")
    return folder if name in (TINY_IMAGE, TINY_VIDEO) else None


def _download(hub: HubName) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = str(hub).removeprefix(_HUB)
    try:
        return Path(
            snapshot_download(hub.repository, revision=hub.revision, allow_patterns=[CONFIG, WEIGHTS, MANIFEST])
        )
    except HFValidationError:
        raise InputError(f"{name}: neither a folder nor the name of a hub repository; give {FORMS}") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise InputError(f"{name}: no such folder, and no such repository on the hub; give {FORMS}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = one_line(error)[:160]
        raise MachineError(f"{name}: not a local folder, and the hub did not give it: {reason}; give {FORMS}") from None
