"""A model as a folder, `config.json` + `model.safetensors`, which is the layout of the Hugging Face hub.

A run folder has its finished model in a folder named by its kind (`tokenizer`, `generator`), and one in each
checkpoint `step-*`.
"""

import math
import re
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from smalti.config import Config
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError
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
from smalti.hub import hub_fault, is_hub_fault
from smalti.text import shorten
from smalti.version import __version__

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class ModelFiles(NamedTuple):
    """Contents of a model's folder."""

    folder: Path
    plain: dict[str, Any]
    """Sections of config.json that describe the model."""
    tensors: dict[str, Tensor]
    fingerprint: str

    def check(self, sections: Mapping[str, Config]) -> None:
        """Raise IntegrityError unless these sections, as parsed, and the weights are those that were written."""
        if fingerprint_of(sections, self.tensors) != self.fingerprint:
            raise IntegrityError(f"{self.folder}: the weights or the config have changed since they were written")

    @property
    def config_path(self) -> Path:
        """Path of config.json, for messages."""
        return self.folder / CONFIG

    def check_network(self, build: Callable[[], nn.Module]) -> None:
        """Raise IntegrityError unless the network that the config names has the tensors of the file.

        It is built without memory for its weights, and no further than its tensors can fit: one number of a config can
        name a network that no memory holds, or of a hundred thousand layers.
        """
        most, count, thread = 2 * len(self.tensors) + 1000, 0, threading.get_ident()

        def counted(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
            nonlocal count
            count += threading.get_ident() == thread
            if count > most:
                raise IntegrityError(
                    f"{self.folder / WEIGHTS}: does not fit its config: has {len(self.tensors):,} tensors, and the "
                    f"network of the config more than {most:,}"
                )

        hook = register_module_parameter_registration_hook(counted)
        try:
            with torch.device("meta"):
                own = build().state_dict()
        finally:
            hook.remove()
        faults = _unfitting(own, self.tensors)
        faults.pop("of another type")  # the number type follows from the tensors
        _raise_unfitting(faults, self.folder / WEIGHTS)

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into a model, which must have them all and no others (`load_strictly`)."""
        load_strictly(model, self.tensors, self.folder / WEIGHTS)


def fingerprint_of(sections: Mapping[str, Config], tensors: Mapping[str, Tensor]) -> str:
    """Compute the fingerprint of a model: of its one section itself, or of all sections by name, and of its weights."""
    essences = {name: config.essence() for name, config in sections.items()}
    (first, *others) = essences.values()
    return fingerprint(essences if others else first, tensors)


def write_model(
    path: Path,
    model: nn.Module,
    sections: Mapping[str, Config],
    *,
    replace: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder with these sections in config.json, whole or not at all; `facts` stand beside them and are no
    part of the fingerprint."""
    tensors = model.state_dict()
    with new_folder(path, replace=replace) as folder:
        save_tensors(folder / WEIGHTS, tensors)
        head = {"format": FORMAT_VERSION, "smalti": __version__, "fingerprint": fingerprint_of(sections, tensors)}
        plain = {name: config.plain() for name, config in sections.items()}
        write_json(folder / CONFIG, {**head, **plain, **(facts or {})})


def read_model(path: Path, kind: str, sections: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> ModelFiles:
    """Read a folder that `write_model` wrote, with the `optional` sections that it has. Runs no code from it.

    Raises InputError if it is not there, IntegrityError if one bit of it differs from what was written. Other files may
    lie beside it (a model card); without a manifest, the fingerprint alone is to be checked (`ModelFiles.check`).
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; a {kind} is a folder with {CONFIG} and {WEIGHTS}")
    facts = read_json(path / CONFIG)
    if not isinstance(facts, dict) or any(name not in facts for name in sections):
        raise IntegrityError(f"{path / CONFIG}: not the config of a smalti {kind}")
    if facts.get("format") != FORMAT_VERSION:
        raise IntegrityError(
            f"{path / CONFIG}: format {facts.get('format')} by smalti {facts.get('smalti')}; "
            f"this is smalti {__version__}, which reads format {FORMAT_VERSION}: update smalti"
        )
    tensors = load_tensors(path / WEIGHTS)
    if (path / MANIFEST).is_file():
        check_manifest(path, extra=True)
    names = (*sections, *(name for name in optional if name in facts))
    return ModelFiles(path, {name: facts[name] for name in names}, tensors, str(facts.get("fingerprint")))


def checkpoints(run: Path) -> list[Path]:
    """List the checkpoints in a run folder, oldest first."""
    return sorted(path for path in run.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def find_model(path: Path, kind: str) -> Path | None:
    """Find the folder of a model of a kind: `path` itself, or in a run folder the finished one or the newest
    checkpoint's. Returns None where there is none."""
    inside = [checkpoint / kind for checkpoint in reversed(checkpoints(path))]
    for folder in (path, path / kind, *inside):
        if (folder / CONFIG).is_file() and (folder != path or _is_of_kind(folder, kind)):
            return folder
    return None


def _is_of_kind(folder: Path, kind: str) -> bool:
    facts = read_json(folder / CONFIG)
    return isinstance(facts, dict) and kind in facts


def dtype_of(tensors: Mapping[str, Tensor], apart: str | None = None) -> torch.dtype:
    """Return the number type of the tensors, without names that begin with `apart`; float32 where they have several."""
    chosen = [t for name, t in tensors.items() if apart is None or not name.startswith(apart)]
    dtypes = {t.dtype for t in chosen if t.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights; IntegrityError with counts and first names of those missing, unexpected, of another shape or
    type, and with the name of one that is not finite."""
    _raise_unfitting(_unfitting(model.state_dict(), tensors), path)
    check_finite(tensors, path)
    model.load_state_dict(dict(tensors))


def _unfitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names of tensors that a network does not have, or that are not there, or not as it has them."""
    return {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape),
        "of another type": sorted(n for n in own.keys() & tensors.keys() if own[n].dtype != tensors[n].dtype),
    }


def _raise_unfitting(faults: Mapping[str, list[str]], path: Path) -> None:
    if any(faults.values()):
        first = {what: ", ".join(map(shorten, names[:5])) for what, names in faults.items() if names}
        text = "; ".join(f"{len(faults[what])} {what} ({names})" for what, names in first.items())
        raise IntegrityError(f"{path}: does not fit its config: {text}")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise IntegrityError where a tensor has values that are not finite, with its name and their number.

    Without this check, NaN in weights is blamed on each image that is encoded.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and tensor.numel()):
            continue
        low, high = (float(value) for value in tensor.float().aminmax())  # NaN if there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            count = int((~tensor.isfinite()).sum())
            what = f"{count:,} of {tensor.numel():,} values of {name} are not finite (NaN or infinite)"
            raise IntegrityError(f"{path}: {what}; take weights from before their training diverged")


def upload_model(save: Callable[[Path], None], repository: str, card: str, *, private: bool = False) -> str:
    """Upload the folder that `save` writes, with `card` as its README.md, to a repository of the Hugging Face hub,
    created if need be.

    Returns its address. Raises MachineError where the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    hub = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=repository, folder_path=folder))
        except HFValidationError as error:
            raise ConfigError(f"repository: {error}") from None
        except Exception as error:
            if not is_hub_fault(error):
                raise
            raise MachineError(f"{repository}: the hub {hub_fault(error)}") from None
