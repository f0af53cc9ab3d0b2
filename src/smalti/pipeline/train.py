"""`smalti.train`: train a tokenizer or a token model by a recipe or a config, in a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.config import load_yaml, parse_yaml
from smalti.errors import ConfigError
from smalti.families import load
from smalti.progress import Progress
from smalti.quantize.codebook import CodebookLossName
from smalti.quantize.quantizer import LossName
from smalti.recipes import AnyTraining, find
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import join_world
from smalti.training.fit import fit
from smalti.training.generator_config import GeneratorTraining
from smalti.training.generator_task import GeneratorTask
from smalti.training.task import Task
from smalti.training.tokenizer_state import architecture
from smalti.training.tokenizer_task import TokenizerTask

_YAML = (".yaml", ".yml")
_T = TypeVar("_T", bound=AnyTraining)


class TrainResult(NamedTuple):
    """A finished run."""

    run: Path
    """The run folder: config.yaml, log.jsonl, events, samples, checkpoints."""
    kind: str
    """`tokenizer` or `generator`."""
    trained: Path
    """The folder of the trained model, with its EMA weights."""
    steps: int


def train(
    recipe: str | Path | AnyTraining,
    out: str | Path | None = None,
    *,
    set: Sequence[str] = (),
    resume: bool = False,
    tiny: bool = False,
    device: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train by a recipe's name, a .yaml file or a config, in the run folder `out` (`runs/NAME` if none is given).

    `set` holds assignments to fields of the config, as `data.path=photos`; `tiny` takes a recipe's small form. With
    `resume` a stopped run continues from its newest whole checkpoint. SIGTERM and SIGINT save first. Raises
    SmaltiError.
    """
    check_arguments(train, locals(), {"recipe": "give the name of a recipe, a .yaml file or a config"})
    check_out_folder("out", out)
    check_least({"seed": (seed, 0)})
    config = find_config(recipe, tiny=tiny).override([*set, *([] if seed is None else [f"seed={seed}"])])
    if isinstance(config, TokenizerTraining) and not any(text.startswith("tokenizer") for text in set):
        config = with_architecture_of_init(config)
    folder = default_run(recipe) if out is None else Path(out)
    with join_world(device) as world:
        task: Task
        if isinstance(config, TokenizerTraining):
            task = TokenizerTask(config, world, _previous(TokenizerTraining, folder, resume))
        else:
            task = GeneratorTask(config, world, _previous(GeneratorTraining, folder, resume))
        return TrainResult(folder, config.kind, fit(task, folder, resume=resume, progress=progress), config.steps)


def _previous(kind: type[_T], folder: Path, resume: bool) -> _T | None:
    """Return the config of the run to resume, None where there is none of this kind (which `fit` refuses)."""
    path = folder / "config.yaml"
    same = resume and path.is_file() and read_kind(path) == kind.model_fields["kind"].default
    return load_yaml(kind, path) if same else None


def with_architecture_of_init(config: TokenizerTraining) -> TokenizerTraining:
    """Return the config with the architecture of the tokenizer that it starts from, if any, and with those losses of
    its quantizer that `weights` names. Raises ConfigError for an image tokenizer where the run's is one of video."""
    if config.init is None:
        return config
    own = load(str(config.init)).config
    if architecture(own) == architecture(config.tokenizer):
        return config
    if own.time_kernel == 1 < config.tokenizer.time_kernel:
        raise ConfigError(f"init: {config.init} is an image tokenizer and this run's one of video; use smalti inflate")
    given = get_args(CodebookLossName if own.quantizer.kind == "codebook" else LossName)
    losses = tuple(name for name in config.weights if name in given)
    return config.replace({"tokenizer": own.replace({"quantizer": own.quantizer.replace({"losses": losses})})})


def default_run(recipe: str | Path | AnyTraining) -> Path:
    """Return the run folder of a recipe or a .yaml file, `runs/NAME`. Raises ConfigError for a config."""
    if not isinstance(recipe, str | Path):
        raise ConfigError("a config has no name: give the run folder `out`")
    return Path("runs") / (Path(recipe).stem if str(recipe).endswith(_YAML) else str(recipe))


def find_config(recipe: str | Path | AnyTraining, *, tiny: bool = False) -> AnyTraining:
    """Return the config of a recipe's name or of a .yaml file, or the config itself. Raises ConfigError."""
    if isinstance(recipe, str | Path) and not str(recipe).endswith(_YAML):
        return find(str(recipe), tiny=tiny)
    if tiny:
        raise ConfigError(f"{recipe}: `tiny` is a form of the recipes; set the fields of a file with `set`")
    if not isinstance(recipe, str | Path):
        return recipe
    path = Path(recipe)
    return load_yaml(GeneratorTraining, path) if read_kind(path) == "generator" else load_yaml(TokenizerTraining, path)


def read_kind(path: Path) -> str:
    """Return the `kind` of a config file: a tokenizer if it has none (or cannot be read)."""
    try:
        data = parse_yaml(path.read_text(encoding="utf-8-sig"), where=str(path))
    except (OSError, UnicodeDecodeError):
        return "tokenizer"
    return str(data.get("kind", "tokenizer")) if isinstance(data, dict) else "tokenizer"
