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
    from smalti.progress import Progress

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
    from smalti.pipeline.train import default_run, find_config
    from smalti.pipeline.train import train as train_run

    config = find_config(recipe, tiny=tiny)
    leads = os.environ.get("RANK", "0") == "0"
    with bar("training", None) if leads else nullcontext() as advance:
        result = train_run(
            config,
            out or default_run(recipe),
            set=assignments or (),
            resume=resume,
            device=device,
            seed=seed,
            progress=None if advance is None else _progress(advance, quiet=as_json),
        )
    if not leads:
        return
    if as_json:
        print_json({"run": result.run, result.kind: result.trained, "steps": result.steps, **last_lines(result.run)})
    else:
        print(f"{result.trained}: the {result.kind} after {result.steps:,} steps. See it: smalti info {result.run}")


def _progress(advance: Advance, quiet: bool = False) -> "Progress":
    """Return a callback that moves the bar, and writes a line now and then if there is none, unless `quiet`."""
    plain = not quiet and not sys.stderr.isatty()

    def progress(done: int, total: int | None = None, note: str = "") -> None:
        advance(done, total, note)
        if plain and total is not None and (done % max(1, total // _LINES) == 0 or done == total):
            say(f"step {done:,} of {total:,}: {note}")

    return progress


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

        def progress(name: str) -> "Progress":
            shown.close()  # one bar at a time
            return _progress(shown.enter_context(bar(f"training: {name}", None)))

        page = run_demo(out, quick=quick, say=say, progress=progress)
    print(f"{page}: open this page to see it all")
