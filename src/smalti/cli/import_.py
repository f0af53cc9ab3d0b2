"""`smalti import`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.console import JsonOption, integers, print_json
from smalti.errors import ConfigError


def import_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A checkpoint of another project: a file, a folder, or OWNER/NAME.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    levels: Annotated[
        str | None, typer.Option(help="FSQ levels, as 8,8,8,5,5,5, if the file does not have them.")
    ] = None,
    copy: Annotated[
        Literal["average", "live"] | None,
        typer.Option(help="EMA weights (average, the default; published figures use them), or the live ones."),
    ] = None,
    lookup: Annotated[
        Literal["euclidean", "cosine", "inner"] | None,
        typer.Option(help="The law by which a codebook's row is found, if the file does not say it."),
    ] = None,
    pixels: Annotated[
        Literal["signed", "unit"] | None,
        typer.Option(help="Range of the pixels of its training, if not said: [-1, 1], or [0, 1] (unit)."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint of another project to a smalti tokenizer; its family is recognised by its tensors.

    \b
    Nothing in the file is run. Every tensor is accounted for: what was used, and
    what was left out and why; import.json beside the weights lists them by name.

    \b
    Examples:
      smalti import magvit_v2_fsq_k600_style2_d64_64000.pth --out k600
      smalti import stripped.pth --levels 8,8,5,4,4,3 --out imagenet-256
    """
    from smalti.families import import_checkpoint

    if out.exists():
        raise ConfigError(f"{out}: already exists; choose another --out")
    model = import_checkpoint(
        name,
        levels=None if levels is None else integers("--levels", levels),
        copy=copy,
        lookup=lookup,
        pixels=pixels,
        revision=revision,
    )
    model.save(out)
    report = model.report
    if as_json:
        print_json({**report.plain(), "tokenizer": str(out), "about": model.tokenizer.facts()})
        return
    print(f"{out}: {report.peer}, {report.copy} weights, {len(report.used)} tensors used")
    for reason, names in report.ignored.items():
        print(f"  left out: {len(names)} tensors, {reason}")
    for note in report.notes:
        print(f"  note: {note}")
