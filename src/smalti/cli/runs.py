"""`smalti train`, `smalti recipes` and `smalti demo`."""

import os
import shlex
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.terminal import Advance, bar, print_json, say
from smalti.cli.tokenizers import DeviceOption, JsonOption, last_lines

if TYPE_CHECKING:
    from smalti.recipes import AnyTraining
    from smalti.training.fit import Made, Watch

_YAML = (".yaml", ".yml")
_LINES = 20
"""Lines of progress that a whole run writes where nobody watches a bar."""


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="The name of a recipe (see `smalti recipes`), or a .yaml file.")
    ],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's small form, minutes on two cores.")] = False,
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
      smalti train tiny-generate --set data=film-tokens
      torchrun --nproc-per-node 8 -m smalti train image --set data.path=photos
    """
    from smalti.training.config import TokenizerTraining
    from smalti.training.generator_state import run_generator
    from smalti.training.tokenizer_run import run

    config = find_config(recipe, tiny).override([*(assignments or ()), *([] if seed is None else [f"seed={seed}"])])
    folder = out or Path("runs") / (Path(recipe).stem if recipe.endswith(_YAML) else recipe)
    leads = os.environ.get("RANK", "0") == "0"
    with bar("training", config.steps) if leads else nullcontext() as advance:
        watch = None if advance is None else _watch(config.steps, advance, quiet=as_json)
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


def _watch(steps: int, advance: Advance, quiet: bool = False) -> "Watch":
    """Moves the bar; where there is none, writes a line now and then unless `quiet`."""
    plain = not quiet and not sys.stderr.isatty()
    every = max(1, steps // _LINES)

    def watch(made: "Made") -> None:
        advance(made.step, note=made.note)
        if plain and (made.step % every == 0 or made.step == steps):
            say(f"step {made.step:,} of {steps:,}: {made.note}")

    return watch


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print the whole config of this one.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Its small form.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the training recipes with their published scores, or print the config of one.

    \b
    Examples:
      smalti recipes
      smalti recipes image > mine.yaml
      smalti train mine.yaml --set data.path=photos
    """
    from smalti.recipes import catalogue, find

    if name is not None:
        config = find(name, tiny=tiny)
        if as_json:
            print_json(config.plain())
        else:
            print(config.to_yaml(), end="")
        return
    rows = catalogue()
    if as_json:
        shown = ("name", "about", "data", "score", "before", "command", "theirs", "as_theirs")
        print_json([{field: getattr(row, field) for field in shown} for row in rows])
        return
    for row in rows:
        lines = {"data": row.data, "score": row.score, "before": row.before, "run": row.command, "theirs": row.theirs}
        lines["as theirs"] = " ".join(f"--set {shlex.quote(setting)}" for setting in row.as_theirs)
        print(row.name, f"    {row.about}", *(f"    {n:<10} {text}" for n, text in lines.items() if text), sep="\n")


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("smalti-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps: a minute.")] = False,
) -> None:
    """Train a small tokenizer on the pictures that come along, measure it, and show what it does.

    \b
    Examples:
      smalti demo
      smalti demo --quick --out first-look
    """
    # Two unbound threads on two shared cores wait for each other a clock tick at a time: here the demo's small kernels
    # take up to 80 times as long. Must be set before torch is loaded; wrong where several processes share the cores.
    os.environ.setdefault("OMP_PROC_BIND", "true")
    from smalti.app.demo import run_demo

    with ExitStack() as shown:

        def watch(name: str, steps: int) -> "Watch":
            shown.close()  # one bar at a time
            return _watch(steps, shown.enter_context(bar(f"training: {name}", steps)))

        page = run_demo(out, quick=quick, say=say, watch=watch)
    print(f"{page}: open this page to see it all")
