"""A generator as a folder: its model, and what the ids that it was trained on mean."""

from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field

from smalti.config import Config, Triple, Tuple
from smalti.errors import ConfigError, IntegrityError
from smalti.generation.autoregressive import AutoregressiveConfig, AutoregressiveTransformer
from smalti.generation.transformer import MaskedConfig, MaskedTransformer
from smalti.model_folder import dtype_of, fingerprint_of, read_model, write_model
from smalti.text import nearest
from smalti.tokenizer_info import check_fingerprint
from smalti.version import __version__


class Origin(Config):
    """Where ids come from: facts of the token set that a generator was trained on."""

    tokenizer: str
    """The fingerprint of the tokenizer that made it."""
    strides: Triple[int]
    """Frames, rows and columns per token."""
    classes: Tuple[str] = ()
    """Names of the labels, where the set has such."""
    fps: float | None = None
    """Frames a second; null for pictures."""

    def check(self, tokenizer: str, where: object) -> None:
        """Raise IntegrityError unless `tokenizer` is the fingerprint of the one whose ids the generator draws."""
        check_fingerprint(self.tokenizer, tokenizer, where)

    def label(self, name: str, count: int) -> int:
        """The number of a class, by name or number. Raises ConfigError with the nearest name."""
        if name in self.classes:
            return self.classes.index(name)
        if name.isdigit() and int(name) < count:
            return int(name)
        if count == 0:
            raise ConfigError(f"class {name}: this model was trained without any; leave it out")
        raise ConfigError(f"class {name}: this model has the classes 0 to {count - 1}{nearest(name, self.classes)}")


class _Named(Config):
    """The sections of config.json, so that a fault in them is named by its place in the file."""

    generator: MaskedConfig | AutoregressiveConfig = Field(discriminator="kind")
    origin: Origin


class Generator(NamedTuple):
    """A token model and where its ids come from."""

    model: MaskedTransformer | AutoregressiveTransformer
    origin: Origin

    @property
    def sections(self) -> dict[str, Config]:
        """What config.json says of it."""
        return {"generator": self.model.config, "origin": self.origin}

    @property
    def fingerprint(self) -> str:
        """The sha256 of config, origin and weights."""
        return fingerprint_of(self.sections, self.model.state_dict())

    @property
    def hints(self) -> bool:
        """Whether the model may be shown tokens of a condition that are not known."""
        return isinstance(self.model, MaskedTransformer) and self.model.config.hints

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of what it draws."""
        (t, h, w), (time, rows, columns) = self.model.config.grid, self.origin.strides
        return 1 + (t - 1) * time, h * rows, w * columns

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the folder `config.json` + `model.safetensors`, whole or not at all."""
        write_model(Path(path), self.model, self.sections, replace=replace)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Generator":
        """Read a folder that `save` wrote. Raises InputError if it is not there, IntegrityError on any change."""
        found = read_model(Path(path), "generator", ("generator", "origin"))
        try:
            named = _Named.parse(found.plain, where=str(found.config_path))
        except ConfigError as error:
            raise IntegrityError(f"{error}: not a config that this smalti {__version__} has written") from None
        found.check({"generator": named.generator, "origin": named.origin})
        model = named.generator.build().to(dtype_of(found.tensors))
        found.load_into(model)
        return cls(model.to(device).eval(), named.origin)
