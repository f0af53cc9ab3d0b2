"""A tokenizer as a folder, `config.json` + `model.safetensors`: the layout of the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from smalti.config import Config
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError
from smalti.files import MANIFEST
from smalti.model_folder import described, precision, read_model, write_model
from smalti.tokenizer.config import AnyTokenizerConfig
from smalti.version import __version__
from smalti.weights import shipped

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
        return described({"tokenizer": self.config}, self.state_dict())

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the folder `config.json` + `model.safetensors` (the hub's layout), whole or not at all."""
        write_model(Path(path), self, {"tokenizer": self.config}, replace=replace)

    @classmethod
    def load(cls: type[S], path: str | Path, device: str | torch.device = "cpu") -> S:
        """Read a folder that `save` wrote, with the number type that it had. Runs no code from it.

        Raises InputError if it is not there, IntegrityError if one bit of it differs from what was written. Other files
        may lie beside it (a model card); without a manifest, the fingerprint alone is checked.
        """
        found = read_model(Path(path), "tokenizer", ("tokenizer",))
        try:
            config = _Named.parse(found.plain, where=str(found.config_path)).tokenizer
        except ConfigError as error:
            raise IntegrityError(f"{error}: not a config that this smalti {__version__} has written") from None
        found.check({"tokenizer": config})
        # A quantizer may have a number type of its own (see `ScalarQuantizer._apply`).
        tokenizer = cls(config).to(precision(found.tensors, apart="quantizer."))
        found.fill(tokenizer)
        return tokenizer.to(device).eval()

    @classmethod
    def from_pretrained(
        cls: type[S], name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> S:
        """Load from a folder, a tokenizer that smalti ships (`smalti/tiny-image`, `smalti/tiny-video`), or a repository
        of the Hugging Face hub (downloaded once into its cache)."""
        if isinstance(name, Path) or Path(name).is_dir() or Path(name).is_absolute() or name.startswith("."):
            return cls.load(name, device)
        if (ours := shipped(name)) is not None:
            return cls.load(ours).float().to(device)
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
            raise MachineError(f"{name}: not a local folder, and the hub did not give it: {reason}") from None
        return cls.load(folder, device)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to a repository of the Hugging Face hub, made if need be; gives its address."""
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            self.save(Path(scratch) / "tokenizer")
            return str(hub.upload_folder(repo_id=repository, folder_path=Path(scratch) / "tokenizer"))
