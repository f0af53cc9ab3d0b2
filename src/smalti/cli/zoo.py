"""`smalti zoo`."""

from typing import Annotated

import typer

from smalti.cli.console import JsonOption, print_json
from smalti.errors import ConfigError
from smalti.text import nearest


def zoo_command(
    family: Annotated[str | None, typer.Argument(metavar="FAMILY", help="Only the tokenizers of this family.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the published tokenizers of other projects that load by name, with what is known of each.

    \b
    Examples:
      smalti zoo
      smalti zoo vidtok
      smalti info showlab/magvitv2
    """
    from smalti.families import zoo

    rows = zoo()
    families = list(dict.fromkeys(row.family for row in rows))
    if family is not None and family not in families:
        raise ConfigError(f"{family}: no such family{nearest(family, families)} (there are: {', '.join(families)})")
    rows = [row for row in rows if family in (None, row.family)]
    if as_json:
        print_json([row.plain() for row in rows])
        return
    for row in rows:
        sizes = f"{'x'.join(map(str, row.strides))} pixels a token, {row.codes:,} codes, {row.parameters:,} parameters"
        labels = f"causal: {'yes' if row.is_causal else 'no'}; streams: {row.streams}; in tiles: no"
        score = f"{row.score} ({row.source})" if row.score else "none known here"
        lines = {"model": row.model, "sizes": sizes, "labels": labels, "score": score, "licence": row.licence}
        print(row.name, *(f"    {name:<8} {text}" for name, text in lines.items()), sep="\n")
