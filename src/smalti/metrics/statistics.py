"""Moments of originals that are kept: the key names all that they depend on, and what has another key is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from pydantic import Field
from safetensors import SafetensorError, safe_open

from smalti.config import Config
from smalti.errors import ConfigError, IntegrityError
from smalti.files import naming_os_errors, write_bytes
from smalti.metrics.features import FeatureName
from smalti.metrics.frechet import Moments

FORMAT = 1


class StatisticsKey(Config):
    """Everything that moments of originals depend on."""

    kind: Literal["statistics"] = "statistics"
    format: int = FORMAT
    features: FeatureName
    features_digest: str
    """sha256 of the file of the network's weights."""
    rounding: str
    """How the originals went from [-1, 1] to 0..255."""
    data: dict[str, Any]
    """The config of the source: how files became pixels, without their place on this machine."""
    listed: str
    """sha256 of the names and sizes of the files, in their order."""
    count: int = Field(ge=1)
    """How many files are listed."""

    @property
    def digest(self) -> str:
        """sha256 of the key."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()

    def path(self, folder: Path) -> Path:
        """The file of this key in a folder."""
        return folder / f"{self.features}-{self.digest[:16]}.safetensors"


def save_statistics(folder: Path, key: StatisticsKey, moments: Moments) -> Path:
    """Keep moments under their key, whole or not at all; gives the file."""
    tensors = {name: tensor.contiguous() for name, tensor in moments.tensors().items()}
    about = {"key": json.dumps(key.plain(), sort_keys=True), "sha256": _digest(moments)}
    path = key.path(folder)
    write_bytes(path, safetensors.torch.save(tensors, metadata=about))
    return path


def load_statistics(folder: Path, key: StatisticsKey) -> Moments | None:
    """The moments under a key, None if there are none. Raises IntegrityError for a damaged or wrong file."""
    path = key.path(folder)
    if not path.exists():
        return None
    try:
        with naming_os_errors(path), safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            moments = Moments.of_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        kept = StatisticsKey.parse(json.loads(about["key"]))
    except (SafetensorError, ConfigError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise IntegrityError(f"{path}: not whole statistics ({reason}); delete it, and it is made again") from None
    if kept != key:
        changed = [name for name in type(key).model_fields if getattr(kept, name) != getattr(key, name)]
        raise IntegrityError(f"{path}: statistics of something else ({', '.join(changed)} differ); delete it")
    if about.get("sha256") != _digest(moments):
        raise IntegrityError(f"{path}: its numbers have changed since they were written; delete it")
    return moments


def _digest(moments: Moments) -> str:
    state = hashlib.sha256(str(moments.n).encode())
    for tensor in (moments.mean, moments.scatter):
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()
