"""A generator as a folder, what the ids that it was trained on mean, and whole samples from either model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config, Triple, Tuple
from smalti.data.source import mix
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.generation.autoregressive import AutoregressiveConfig, AutoregressiveTransformer, sample_autoregressive
from smalti.generation.blocks import Condition
from smalti.generation.masked import MaskedConfig, MaskedTransformer, SamplingConfig, sample
from smalti.generation.prompt import Prompt, prefix_prompt
from smalti.model_folder import dtype_of, find_model, fingerprint_of, read_model, write_model
from smalti.text import nearest
from smalti.tokenizer_info import check_fingerprint
from smalti.version import __version__

TokenModel = MaskedTransformer | AutoregressiveTransformer


def complete(
    model: TokenModel,
    prompt: Prompt,
    config: SamplingConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Int[Tensor, "b t h w"]:
    """Fill every cell of a prompt: in parallel (`sample`), or token by token (`sample_autoregressive`)."""
    if isinstance(model, MaskedTransformer):
        return sample(model, prompt, config, seed=seed, samples=samples)
    return sample_autoregressive(model, prompt, config, seed=seed, samples=samples)


def extend(
    model: TokenModel,
    first: Int[Tensor, "b t h w"],
    condition: Condition,
    config: SamplingConfig,
    *,
    keep: int,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    reencode: Callable[[Int[Tensor, "b t h w"]], Int[Tensor, "b k h w"]] | None = None,
) -> Iterator[Int[Tensor, "b t h w"]]:
    """Yield endless windows of the shape of `first`, each beginning with the last `keep` latent frames of the last one.

    Without `reencode`, the new frames of all windows are the ids of one long video, which a causal tokenizer decodes as
    a stream. But the first latent frame of a clip holds one frame and the others hold several, and the model knows it
    at the first position of a window only; so `reencode` may make the known tokens from a window: decode it, encode its
    last 1 + s (keep - 1) frames as a clip. Each window is then decoded by itself.
    """
    number = 0
    window = first
    while True:
        number += 1
        prefix = window[:, -keep:] if reencode is None else reencode(window)
        if prefix.shape[1] != keep:
            raise ConfigError(f"keep: {keep} latent frames should be known (found {prefix.shape[1]})")
        prompt = prefix_prompt(prefix, (first.shape[1], first.shape[2], first.shape[3]), condition)
        window = complete(model, prompt, config, seed=mix(seed, number), samples=samples)
        yield window


class Origin(Config):
    """Facts of the token set that a generator was trained on."""

    tokenizer: str
    """Fingerprint of the tokenizer that made it."""
    strides: Triple[int]
    """Frames, height and width of a token in pixels."""
    classes: Tuple[str] = ()
    """Names of the classes, if the set has them."""
    fps: float | None = None
    """Frames a second; null for images."""

    def check(self, tokenizer: str, where: object) -> None:
        """Raise IntegrityError unless `tokenizer` is the fingerprint of the one whose ids the generator makes."""
        check_fingerprint(self.tokenizer, tokenizer, where)

    def label(self, name: str, count: int) -> int:
        """Find the number of a class by its name or number. Raises ConfigError with the nearest name."""
        if name in self.classes:
            return self.classes.index(name)
        if name.isdigit() and int(name) < count:
            return int(name)
        if count == 0:
            raise ConfigError(f"class {name}: this model was trained without any; leave it out")
        raise ConfigError(f"class {name}: this model has the classes 0 to {count - 1}{nearest(name, self.classes)}")


class _Sections(Config):
    """Sections of config.json, so that an error in them is named by its place in the file."""

    generator: MaskedConfig | AutoregressiveConfig = Field(discriminator="kind")
    origin: Origin


class Generator(NamedTuple):
    """A token model and where its ids come from."""

    model: MaskedTransformer | AutoregressiveTransformer
    origin: Origin

    @property
    def sections(self) -> dict[str, Config]:
        """Sections of config.json."""
        return {"generator": self.model.config, "origin": self.origin}

    @property
    def fingerprint(self) -> str:
        """Sha256 of config, origin and weights."""
        return fingerprint_of(self.sections, self.model.state_dict())

    @property
    def hints(self) -> bool:
        """Whether the model takes tokens of a condition that are not known."""
        return isinstance(self.model, MaskedTransformer) and self.model.config.hints

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of its samples."""
        (t, h, w), (time, height, width) = self.model.config.grid, self.origin.strides
        return 1 + (t - 1) * time, h * height, w * width

    def facts(self) -> dict[str, Any]:
        """Return everything there is to say about it, as plain data."""
        config, (frames, height, width) = self.model.config, self.size
        return {
            "kind": config.kind,
            "size": {"frames": frames, "height": height, "width": width},
            "grid": list(config.grid),
            "subtokens": list(config.factorization().sizes),
            "tasks": ", ".join(config.tasks) or "any",
            "classes": config.classes,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fingerprint": self.fingerprint,
            "of_tokenizer": self.origin.tokenizer,
            "config": config.plain(),
        }

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the folder `config.json` + `model.safetensors`, whole or not at all."""
        write_model(Path(path), self.model, self.sections, replace=replace)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Generator":
        """Read a folder that `save` wrote. Raises InputError if it is not there, IntegrityError on any change."""
        files = read_model(Path(path), "generator", ("generator", "origin"))
        try:
            sections = _Sections.parse(files.plain, where=str(files.config_path))
        except ConfigError as error:
            raise IntegrityError(f"{error}: not a config that this smalti {__version__} has written") from None
        files.check({"generator": sections.generator, "origin": sections.origin})
        files.check_network(sections.generator.build)
        model = sections.generator.build().to(dtype_of(files.tensors))
        files.load_into(model)
        return cls(model.to(device).eval(), sections.origin)


def find_generator(name: str | Path) -> Path:
    """Find the folder of a generator: `name` itself, or that of a run, finished or not. Raises InputError for none."""
    folder = find_model(Path(name), "generator")
    if folder is None:
        what = "holds no generator" if Path(name).is_dir() else "no such folder"
        raise InputError(f"{name}: {what}; give a generator folder, or a run of `smalti train` that trains one")
    return folder
