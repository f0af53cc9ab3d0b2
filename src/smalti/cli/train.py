"""`smalti train`."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.console import DeviceOption, JsonOption, bar, is_watched, print_json, say
from smalti.text import Progress

_LINES = 20
"""Lines of progress that a whole run writes where nobody watches a bar."""


def train_command(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe's name (see `smalti recipes`), a .yaml file, or a run folder."),
    ],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's small form: minutes on two cores.")] = False,
    quantizer: Annotated[
        str | None, typer.Option(help="Another quantizer, with fitting losses: lfq18, fsq64000, dsq15360, vq8192.")
    ] = None,
    device: DeviceOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same as --set seed=N.")] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(help="The same as --set precision=...; auto: the format that is faster here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer or a token model by a recipe or a config; stop and resume at any step.

    \b
    Examples:
      smalti train tiny
      smalti train image --set data.path=photos --set batch_size=64
      smalti train tiny --quantizer lfq18 --out runs/lfq18
      smalti train runs/image --resume
      smalti train finetune-image --set init=showlab/magvitv2
      smalti train my-run.yaml --out runs/second --seed 2 --device cuda
      smalti train tiny-generate --set data=video-tokens
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
            quantizer=quantizer,
            device=device,
            seed=seed,
            precision=precision,
            progress=None if advance is None else show_steps(advance, quiet=as_json),
        )
    if not leads:
        return
    if as_json:
        from smalti.pipeline.info import last_lines

        print_json({"run": result.run, result.kind: result.trained, "steps": result.steps, **last_lines(result.run)})
    else:
        print(f"{result.trained}: the {result.kind} after {result.steps:,} steps. See it: smalti info {result.run}")


def show_steps(advance: Progress, quiet: bool = False) -> Progress:
    """Return a callback that moves the bar, and writes a line now and then if there is none, unless `quiet`."""
    plain = not quiet and not is_watched()

    def progress(done: int, total: int | None = None, note: str = "") -> None:
        advance(done, total, note)
        if plain and total is not None and (done % max(1, total // _LINES) == 0 or done == total):
            say(f"step {done:,} of {total:,}: {note}")

    return progress
