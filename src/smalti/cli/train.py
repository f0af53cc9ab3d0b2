"""`smalti train`."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.console import bar, print_json, say
from smalti.cli.info import last_lines
from smalti.cli.options import DeviceOption, JsonOption
from smalti.progress import Progress

if TYPE_CHECKING:
    from smalti.recipes import AnyTraining
    from smalti.training.fit import Made, Watch

_YAML = (".yaml", ".yml")
_LINES = 20
"""Lines of progress that a whole run writes where nobody watches a bar."""


def train_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="The name of a recipe (see `smalti recipes`), or a .yaml file.")
    ],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's small form: minutes on two cores.")] = False,
    device: DeviceOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same as --set seed=N.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer or a token model by a recipe or a config; stop and resume at any step.

    \b
    Examples:
      smalti train tiny
      smalti train image --set data.path=photos --set batch_size=64
      smalti train image --set data.path=photos --set batch_size=64 --resume
      smalti train my-run.yaml --out runs/second --seed 2 --device cuda
      smalti train tiny-generate --set data=video-tokens
      torchrun --nproc-per-node 8 -m smalti train image --set data.path=photos
    """
    from smalti.training.config import TokenizerTraining
    from smalti.training.generator_state import run_generator
    from smalti.training.tokenizer_run import run

    config = find_config(recipe, tiny).override([*(assignments or ()), *([] if seed is None else [f"seed={seed}"])])
    folder = out or Path("runs") / (Path(recipe).stem if recipe.endswith(_YAML) else recipe)
    leads = os.environ.get("RANK", "0") == "0"
    with bar("training", config.steps) if leads else nullcontext() as advance:
        watch = None if advance is None else watch_steps(config.steps, advance, quiet=as_json)
        if isinstance(config, TokenizerTraining):
            trained = run(config, folder, resume=resume, device=device, watch=watch)
        else:
            trained = run_generator(config, folder, resume=resume, device=device, watch=watch)
    if not leads:
        return
    if as_json:
        print_json({"run": folder, config.kind: trained, "steps": config.steps, **last_lines(folder)})
    else:
        print(f"{trained}: the {config.kind} after {config.steps:,} steps. See it: smalti info {folder}")


def find_config(recipe: str, tiny: bool) -> "AnyTraining":
    """The config of a recipe's name or of a .yaml file. Raises ConfigError."""
    from smalti.config import load_yaml
    from smalti.errors import ConfigError
    from smalti.recipes import find
    from smalti.training.config import TokenizerTraining
    from smalti.training.generator_config import GeneratorTraining

    if not recipe.endswith(_YAML):
        return find(recipe, tiny=tiny)
    if tiny:
        raise ConfigError(f"{recipe}: --tiny is a form of the recipes; set the fields of a file with --set")
    path = Path(recipe)
    kind = read_kind(path)
    return load_yaml(GeneratorTraining, path) if kind == "generator" else load_yaml(TokenizerTraining, path)


def read_kind(path: Path) -> str:
    """What a config file says it trains: `kind`, a tokenizer where it says nothing (or cannot be read)."""
    from smalti.config import parse_yaml

    try:
        data = parse_yaml(path.read_text(encoding="utf-8-sig"), where=str(path))
    except (OSError, UnicodeDecodeError):
        return "tokenizer"
    return str(data.get("kind", "tokenizer")) if isinstance(data, dict) else "tokenizer"


def watch_steps(steps: int, advance: Progress, quiet: bool = False) -> "Watch":
    """Moves the bar; where there is none, writes a line now and then unless `quiet`."""
    plain = not quiet and not sys.stderr.isatty()
    every = max(1, steps // _LINES)

    def watch(made: "Made") -> None:
        advance(made.step, note=made.note)
        if plain and (made.step % every == 0 or made.step == steps):
            say(f"step {made.step:,} of {steps:,}: {made.note}")

    return watch
