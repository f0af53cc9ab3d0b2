"""Generators that the user names: finding, opening and describing them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smalti.errors import ConfigError, InputError

if TYPE_CHECKING:
    from smalti.generation import Generator


def find_generator(name: str) -> Path | None:
    """The folder of a generator: `name` itself, or that of a run, finished or not; None where there is none."""
    from smalti.model_folder import find_model

    return find_model(Path(name), "generator")


def open_generator(name: str, device: str | None) -> "tuple[Generator, Path]":
    """The generator that the user names, and its folder. Raises InputError where there is none."""
    from smalti.generation import Generator
    from smalti.training.distributed import pick_device

    found = find_generator(name)
    if found is None:
        what = "holds no generator" if Path(name).is_dir() else "no such folder"
        raise InputError(f"{name}: {what}; give a generator folder, or a run of `smalti train` that trains one")
    return Generator.load(found, pick_device(device)), found


def own_tokenizer(run: Path, found: Path) -> str:
    """The tokenizer that the config of the run names. Raises ConfigError where it names none."""
    from smalti.config import load_yaml
    from smalti.training.generator_config import GeneratorTraining

    for folder in (run, *found.parents[:2]):
        if (folder / "config.yaml").is_file():
            named = load_yaml(GeneratorTraining, folder / "config.yaml").tokenizer
            if named is not None:
                return str(named)
    raise ConfigError(f"{run}: does not say where its tokenizer is; give --tokenizer")


def describe_generator(name: str) -> dict[str, Any]:
    """Everything there is to say about a generator or its run, as plain data."""
    generator, found = open_generator(name, "cpu")
    config, (frames, rows, columns) = generator.model.config, generator.size
    from smalti.pipeline.info import last_lines

    run = {"run": last_lines(Path(name))} if (Path(name) / "config.yaml").is_file() else {}
    return {
        "generator": str(found),
        "kind": config.kind,
        "draws": {"frames": frames, "rows": rows, "columns": columns},
        "grid": list(config.grid),
        "parts": list(config.factorization().sizes),
        "tasks": ", ".join(config.tasks) or "any",
        "classes": config.classes,
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        "fingerprint": generator.fingerprint,
        "of_tokenizer": generator.origin.tokenizer,
        "config": config.plain(),
        **run,
    }
