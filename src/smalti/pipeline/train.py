"""`smalti.train`: train a tokenizer or a token model by a recipe or a config, in a run folder."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.config import load_yaml, parse_yaml
from smalti.devices import Precision, faster_precision, measure_precisions
from smalti.errors import ConfigError, InputError
from smalti.families import load
from smalti.quantize.codebook import CodebookLossName
from smalti.quantize.quantizer import LossName
from smalti.recipes import AnyTraining, find
from smalti.recipes.quantizers import CODEBOOK_WEIGHTS, QUANTIZER_LOSSES, with_quantizer
from smalti.text import Progress
from smalti.training.config import RunConfig, TokenizerTraining
from smalti.training.distributed import World, join_world
from smalti.training.fit import fit
from smalti.training.generator_config import GeneratorTraining
from smalti.training.generator_task import GeneratorTask
from smalti.training.task import Task
from smalti.training.tokenizer_state import architecture, is_image_part
from smalti.training.tokenizer_task import TokenizerTask

_YAML = (".yaml", ".yml")
_CONFIG = "config.yaml"
"""Config of a run, in its folder."""
_T = TypeVar("_T", bound=AnyTraining)
_R = TypeVar("_R", bound=RunConfig)


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
    quantizer: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    precision: Precision | Literal["auto"] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train by a recipe's name, a .yaml file or a config, in the run folder `out` (`runs/NAME` if none is given).

    `set` holds assignments to fields of the config, as `data.path=photos`; `tiny` takes a recipe's small form.
    `quantizer` takes another one by name, as `lfq18` or `vq8192`, with losses and weights that fit it. `precision`
    is the field of the config; `auto` takes the format that a convolution is faster in on this device, and the run's
    own when it is resumed. With `resume` a stopped run continues from its newest whole checkpoint; its folder alone
    says its config, `recipe` then. A run that torchrun starts again (`--max-restarts`) resumes by itself. SIGTERM and
    SIGINT save first. Raises SmaltiError.
    """
    check_arguments(train, locals(), {"recipe": "give the name of a recipe, a .yaml file, a config or a run folder"})
    check_out_folder("out", out)
    check_least({"seed": (seed, 0)})
    seeds = [] if seed is None else [f"seed={seed}"]
    config = settle_config(find_config(recipe, tiny=tiny), [*set, *seeds], quantizer)
    folder = default_run(recipe) if out is None else Path(out)
    resume = resume or (_is_restarted() and is_run(folder))
    with join_world(device, timeout=timedelta(seconds=config.rank_timeout)) as world:
        task: Task
        if isinstance(config, TokenizerTraining):
            before = _previous(TokenizerTraining, folder, resume)
            task = TokenizerTask(settle_precision(config, precision, before, world), world, before)
        else:
            previous = _previous(GeneratorTraining, folder, resume)
            task = GeneratorTask(settle_precision(config, precision, previous, world), world, previous)
        return TrainResult(folder, config.kind, fit(task, folder, resume=resume, progress=progress), config.steps)


def settle_config(config: AnyTraining, set: Sequence[str], quantizer: str | None) -> AnyTraining:
    """Return the config with another quantizer if one is named, assignments to its fields, and the architecture of
    `init`, as `train` runs it. Raises ConfigError, and InputError where there is no `init` of that name."""
    if quantizer is not None:
        if not isinstance(config, TokenizerTraining):
            raise ConfigError(f"quantizer: {config.kind} runs have none; their tokens are those of a tokenizer")
        config = with_quantizer(config, quantizer)
    config = config.override(set)
    if (
        isinstance(config, TokenizerTraining)
        and quantizer is None
        and not any(text.startswith("tokenizer") for text in set)
    ):
        config = with_architecture_of_init(config, keep_weights=any(text.startswith("weights") for text in set))
    return config


def settle_precision(
    config: _R, precision: Precision | Literal["auto"] | None, previous: _R | None, world: World
) -> _R:
    """Return the config in that number format; `auto` is that of the run to resume, `previous`, or bfloat16 where every
    rank is faster in it."""
    if precision == "auto":
        own = faster_precision(measure_precisions(world.device)) if previous is None else previous.precision
        precision = "bfloat16" if world.min(int(own == "bfloat16")) else "float32"
    return config if precision is None else config.replace({"precision": precision})


def _is_restarted() -> bool:
    """Return whether torchrun has started these processes again after one of them failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def _previous(kind: type[_T], folder: Path, resume: bool) -> _T | None:
    """Return the config of the run to resume, None where there is none of this kind (which `fit` refuses)."""
    path = folder / _CONFIG
    same = resume and path.is_file() and read_kind(path) == kind.model_fields["kind"].default
    return load_yaml(kind, path) if same else None


def with_architecture_of_init(config: TokenizerTraining, *, keep_weights: bool = False) -> TokenizerTraining:
    """Return the config with the architecture of the tokenizer that it starts from, if any, and with losses that its
    quantizer has: those that `weights` names.

    A recipe's weights are of losses of its own quantizer. Unless they are kept, those that this one does not have are
    left out, and a table of codes, which would stand still, gets the weights of VQGAN where it has none. Raises
    ConfigError for an image tokenizer where the run's is one of video, InputError where there is none of that name.
    """
    if config.init is None:
        return config
    try:
        own = architecture(load(str(config.init)).config)
    except InputError as error:
        raise InputError(f"init: {error}") from None
    if own == architecture(config.tokenizer) or is_image_part(own, config.tokenizer):
        return config
    if own.time_kernel == 1 < config.tokenizer.time_kernel:
        raise ConfigError(f"init: {config.init} is an image tokenizer and this run's one of video; use smalti inflate")
    names = get_args(CodebookLossName if own.quantizer.kind == "codebook" else LossName)
    weights = config.weights if keep_weights else _fitting_weights(config.weights, names)
    losses = tuple(name for name in weights if name in names)
    tokenizer = own.with_quantizer(own.quantizer.replace({"losses": losses}))
    return config.replace({"tokenizer": tokenizer, "weights": weights})


def _fitting_weights(weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Return weights without those of losses that only other quantizers than that of the losses `names` have."""
    others = QUANTIZER_LOSSES - {*names}
    fitting = {name: weight for name, weight in weights.items() if name not in others}
    if "codebook" in names and not fitting.keys() & {*names}:
        fitting |= CODEBOOK_WEIGHTS
    return fitting


def is_run(path: str | Path) -> bool:
    """Return whether a path is a run folder, and not a recipe's name or a file."""
    return (Path(path) / _CONFIG).is_file()


def default_run(recipe: str | Path | AnyTraining) -> Path:
    """Return the run folder of a recipe or a .yaml file, `runs/NAME`, or the folder itself. Raises ConfigError for a
    config."""
    if not isinstance(recipe, str | Path):
        raise ConfigError("a config has no name: give the run folder `out`")
    if is_run(recipe):
        return Path(recipe)
    return Path("runs") / (Path(recipe).stem if str(recipe).endswith(_YAML) else str(recipe))


def find_config(recipe: str | Path | AnyTraining, *, tiny: bool = False) -> AnyTraining:
    """Return the config of a recipe's name, of a .yaml file or of a run folder, or the config itself. Raises
    ConfigError."""
    if isinstance(recipe, str | Path) and is_run(recipe):
        recipe = Path(recipe) / _CONFIG
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
