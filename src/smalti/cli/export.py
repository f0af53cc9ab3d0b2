"""`smalti export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.console import TOKENIZER_HELP, JsonOption, bar, print_json


def export_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    to: Annotated[
        Literal["onnx", "pt2"],
        typer.Option(help="Runtime: ONNX Runtime anywhere, or torch on processors of this kind."),
    ] = "onnx",
    weights: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Number type in which the weights are kept; all is computed in float32."),
    ] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Write a tokenizer as programs that run without smalti: ONNX, or torch's AOTInductor.

    \b
    encode and decode take any batch, length, height and width; a video tokenizer
    has its streaming steps too. config.json says their inputs and outputs, and
    parity.json how many ids of the shipped photographs and clips differ.

    \b
    Examples:
      smalti export smalti/tiny-image --out tiny-onnx
      smalti export smalti/tiny-video --weights float16 --out tiny-video-onnx
      smalti export runs/mine --to pt2 --out mine-pt2
    """
    from smalti.pipeline.export import export

    with bar("exporting", None) as progress:
        parity = export(tokenizer, out, to=to, weights=weights, progress=progress)
    if as_json:
        print_json({"out": out, **parity})
        return
    for name, row in parity["programs"].items():
        if "ids" in row:
            count = (
                f"{row['differing']:,} of {row['ids']:,} ids differ from PyTorch's, {row['ties']:,} of them by rounding"
            )
        else:
            count = f"{row['pixels']:,} pixels, the largest difference is {row['largest_difference']:.1e}"
        print(f"{out / name}.{to}: {count}")
