"""`smalti recipes`."""

import shlex
from typing import Annotated

import typer

from smalti.cli.console import JsonOption, print_json


def recipes_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print the whole config of this recipe.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's small form.")] = False,
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
            differs = () if tiny else next((recipe.differs for recipe in catalogue() if recipe.name == name), ())
            print(*(f"# differs, {difference}\n" for difference in differs), sep="", end="")
            print(config.to_yaml(), end="")
        return
    rows = catalogue()
    if as_json:
        fields = ("name", "about", "data", "score", "prepare", "command", "original", "exact", "differs")
        print_json([{field: getattr(row, field) for field in fields} for row in rows])
        return
    for row in rows:
        lines = {"data": row.data, "score": row.score, "prepare": row.prepare, "run": row.command}
        lines["original"] = row.original
        lines["exact"] = " ".join(f"--set {shlex.quote(setting)}" for setting in row.exact)
        print(row.name, f"    {row.about}", *(f"    {n:<10} {text}" for n, text in lines.items() if text), sep="\n")
        if row.differs:
            print(f"    {'differs':<10} in {len(row.differs)} ways: smalti recipes {row.name}")
