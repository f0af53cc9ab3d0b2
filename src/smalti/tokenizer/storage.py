"""A tokenizer as a folder, `config.json` + `model.safetensors`: the layout of the Hugging Face hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from smalti import __version__
from smalti.config import Config
from smalti.errors import ConfigError, EnvironmentFault, InputError, IntegrityError
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
from smalti.tokenizer.config import AnyTokenizerConfig

S = TypeVar("S", bound="Stored")


class _Named(Config):
    """The part of config.json that says what to build, so that a fault in it is named by its place in the file."""

    tokenizer: AnyTokenizerConfig


class Stored(nn.Module):
    """The part of a tokenizer that knows files."""

    config: AnyTokenizerConfig

    @property
    def fingerprint(self) -> str:
        """The sha256 of config and weights: token sets name it, and a file is checked against it when it is read."""
        return fingerprint(self.config.essence(), self.state_dict())

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the folder `config.json` + `model.safetensors` (the hub's layout), whole or not at all."""
        with new_folder(Path(path), replace=replace) as folder:
            save_tensors(folder / "model.safetensors", self.state_dict())
            about = {"format": FORMAT_VERSION, "smalti": __version__, "fingerprint": self.fingerprint}
            write_json(folder / "config.json", about | {"tokenizer": self.config.plain()})

    @classmethod
    def load(cls: type[S], path: str | Path, device: str | torch.device = "cpu") -> S:
        """Read a folder that `save` wrote, with the number type that it had. Runs no code from it.

        Raises InputError if it is not there, IntegrityError if one bit of it differs from what was written. Other files
        may lie beside it (a model card); without a manifest, the fingerprint alone is checked.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; a tokenizer is a folder with config.json and model.safetensors"
            )
        about = read_json(folder / "config.json")
        if not isinstance(about, dict) or "tokenizer" not in about:
            raise IntegrityError(f"{folder / 'config.json'}: not the config of a smalti tokenizer")
        if about.get("format") != FORMAT_VERSION:
            raise IntegrityError(
                f"{folder / 'config.json'}: format {about.get('format')} by smalti {about.get('smalti')}; "
                f"this is smalti {__version__}, which reads format {FORMAT_VERSION}: update smalti"
            )
        tensors = load_tensors(folder / "model.safetensors")
        if (folder / MANIFEST).is_file():
            check_manifest(folder, extra=True)
        try:
            config = _Named.parse({"tokenizer": about["tokenizer"]}, where=str(folder / "config.json")).tokenizer
        except ConfigError as error:
            raise IntegrityError(f"{error}: not a config that this smalti {__version__} has written") from None
        if fingerprint(config.essence(), tensors) != about.get("fingerprint"):
            raise IntegrityError(f"{folder}: the weights or the config have changed since they were written")
        tokenizer = cls(config).to(_precision(tensors))
        _load_strictly(tokenizer, tensors, folder / "model.safetensors")
        return tokenizer.to(device).eval()

    @classmethod
    def from_pretrained(
        cls: type[S], name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> S:
        """Load from a folder, or from a repository of the Hugging Face hub (downloaded once into its cache)."""
        if isinstance(name, Path) or Path(name).is_dir() or Path(name).is_absolute() or name.startswith("."):
            return cls.load(name, device)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                name, revision=revision, allow_patterns=["config.json", "model.safetensors", MANIFEST]
            )
        except HFValidationError:
            raise InputError(f"{name}: neither a folder nor the name of a hub repository (owner/name)") from None
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise EnvironmentFault(f"{name}: not a local folder, and the hub did not give it: {reason}") from None
        return cls.load(folder, device)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to a repository of the Hugging Face hub, made if need be; gives its address."""
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            self.save(Path(scratch) / "tokenizer")
            return str(hub.upload_folder(repo_id=repository, folder_path=Path(scratch) / "tokenizer"))


def _precision(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The number type of the networks; a quantizer may have another (see `ScalarQuantizer._apply`)."""
    found = {t.dtype for name, t in tensors.items() if t.is_floating_point() and not name.startswith("quantizer.")}
    return found.pop() if len(found) == 1 else torch.float32


def _load_strictly(tokenizer: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights; IntegrityError with counts and first names of what is missing, unexpected, of another shape or
    type."""
    wanted = tokenizer.state_dict()
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape),
        "of another type": sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].dtype != tensors[n].dtype),
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {what} ({', '.join(names[:5])})" for what, names in faults.items() if names)
        raise IntegrityError(f"{path}: does not fit its config: {told}")
    tokenizer.load_state_dict(dict(tensors))
