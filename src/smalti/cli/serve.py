"""`smalti serve`."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import TOKENIZER_HELP, DeviceOption, bar, print_line


def serve_command(
    tokenizers: Annotated[
        list[str] | None,
        typer.Argument(metavar="TOKENIZER", help=f"{TOKENIZER_HELP} Or the run of a token model."),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the page to this folder, tokenizers inside.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port at 127.0.0.1; 0 for any.")] = 8000,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of an image or a clip.")] = 2**22,
    device: DeviceOption = None,
) -> None:
    """Open the page: see the tokens of an image, a clip or the camera, change them, decode them.

    \b
    Served, the tokenizers run here, by torch, for this machine alone.
    With --save, the page is a folder for any web host, and the browser runs
    the tokenizers: no pixel leaves it. --save needs the extra `export`.

    \b
    Examples:
      smalti serve
      smalti serve runs/mine showlab/magvitv2 --port 8080
      smalti serve runs/clips                a token model: generate, continue
      smalti serve --save page && python3 -m http.server --directory page
      smalti serve runs/mine --save page
    """
    from smalti.app.serve import SHIPPED, serve

    def show(address: str) -> None:
        print_line(f"{address}: open this page; Ctrl-C stops")

    with bar("exporting", None) as progress:
        serve(
            tokenizers or SHIPPED,
            save=save,
            port=port,
            max_pixels=max_pixels,
            device=device,
            on_ready=show,
            progress=progress,
        )
    if save is not None:
        print_line(f"{save}: put this folder on any web host, or: python3 -m http.server --directory {save}")
