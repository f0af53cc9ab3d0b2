"""A model as a folder, `config.json` + `model.safetensors`: the layout of the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from smalti.config import Config
from smalti.errors import InputError, IntegrityError
from smalti.files import (
    FORMAT_VERSION,
    MANIFEST,
    check_manifest,
    fingerprint,
    load_tensors,
    new_folder,
    read_json,
    save_tensors,
    write_json,
)
from smalti.version import __version__

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class ModelFiles(NamedTuple):
    """What a model's folder holds."""

    folder: Path
    plain: dict[str, Any]
    """The sections of config.json that describe the model."""
    tensors: dict[str, Tensor]
    fingerprint: str

    def check(self, sections: Mapping[str, Config]) -> None:
        """Raise IntegrityError unless these sections, as parsed, and the weights are those that were written."""
        if described(sections, self.tensors) != self.fingerprint:
            raise IntegrityError(f"{self.folder}: the weights or the config have changed since they were written")

    @property
    def config_path(self) -> Path:
        """For messages."""
        return self.folder / CONFIG

    def fill(self, model: nn.Module) -> None:
        """Load the weights into a model, which must have them all and no others (`load_strictly`)."""
        load_strictly(model, self.tensors, self.folder / WEIGHTS)


def described(sections: Mapping[str, Config], tensors: Mapping[str, Tensor]) -> str:
    """The fingerprint of a model: of its one section itself, or of all its sections by name, and of its weights."""
    found = {name: config.essence() for name, config in sections.items()}
    (first, *others) = found.values()
    return fingerprint(found if others else first, tensors)


def write_model(path: Path, model: nn.Module, sections: Mapping[str, Config], *, replace: bool = False) -> None:
    """Write the folder with these sections in config.json, whole or not at all."""
    tensors = model.state_dict()
    with new_folder(path, replace=replace) as folder:
        save_tensors(folder / WEIGHTS, tensors)
        about = {"format": FORMAT_VERSION, "smalti": __version__, "fingerprint": described(sections, tensors)}
        write_json(folder / CONFIG, about | {name: config.plain() for name, config in sections.items()})


def read_model(path: Path, kind: str, sections: tuple[str, ...]) -> ModelFiles:
    """Read a folder that `write_model` wrote. Runs no code from it.

    Raises InputError if it is not there, IntegrityError if one bit of it differs from what was written. Other files may
    lie beside it (a model card); without a manifest, the fingerprint alone is to be checked (`ModelFiles.check`).
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; a {kind} is a folder with {CONFIG} and {WEIGHTS}")
    about = read_json(path / CONFIG)
    if not isinstance(about, dict) or any(name not in about for name in sections):
        raise IntegrityError(f"{path / CONFIG}: not the config of a smalti {kind}")
    if about.get("format") != FORMAT_VERSION:
        raise IntegrityError(
            f"{path / CONFIG}: format {about.get('format')} by smalti {about.get('smalti')}; "
            f"this is smalti {__version__}, which reads format {FORMAT_VERSION}: update smalti"
        )
    tensors = load_tensors(path / WEIGHTS)
    if (path / MANIFEST).is_file():
        check_manifest(path, extra=True)
    return ModelFiles(path, {name: about[name] for name in sections}, tensors, str(about.get("fingerprint")))


def precision(tensors: Mapping[str, Tensor], apart: str | None = None) -> torch.dtype:
    """The number type of the tensors, but for names that begin with `apart`; float32 where they have several."""
    chosen = [t for name, t in tensors.items() if apart is None or not name.startswith(apart)]
    found = {t.dtype for t in chosen if t.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights; IntegrityError with counts and first names of what is missing, unexpected, of another shape or
    type."""
    wanted = model.state_dict()
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape),
        "of another type": sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].dtype != tensors[n].dtype),
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {what} ({', '.join(names[:5])})" for what, names in faults.items() if names)
        raise IntegrityError(f"{path}: does not fit its config: {told}")
    model.load_state_dict(dict(tensors))
