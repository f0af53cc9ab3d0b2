"""`smalti export`."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import print_json
from smalti.cli.decode import SetArgument
from smalti.cli.options import JsonOption


def export_command(
    tokens: SetArgument,
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Write a token set as .npy files that can be mapped into memory.

    \b
    ids.npy, offsets.npy, shapes.npy, labels.npy, keys.txt and metadata.json.

    \b
    Examples:
      smalti export photo-tokens --out photo-npy
    """
    from smalti.pipeline.export import export

    metadata = export(tokens, out)
    if as_json:
        print_json({"out": out, **metadata})
    else:
        print(f"{out}: {metadata['rows']:,} rows, {metadata['tokens']:,} tokens as {metadata['type']}")
