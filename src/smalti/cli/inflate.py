"""`smalti inflate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.options import TOKENIZER_HELP, integers


def inflate_command(
    image_tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="An image tokenizer. " + TOKENIZER_HELP)],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    time_strides: Annotated[str, typer.Option(help="One time stride for each spatial one, as 1,2,2.")],
    time: Annotated[int, typer.Option(min=1, help="Temporal kernel size of the convolutions, in frames.")] = 3,
    past: Annotated[
        Literal["full", "point"] | None,
        typer.Option(help="Kernels of past frames: full or 1x1; default: as trained."),
    ] = None,
    norm: Annotated[
        Literal["position", "frame", "clip"] | None, typer.Option(help="Other norms; clip (mindone's) is not causal.")
    ] = None,
) -> None:
    """Make a video tokenizer that starts as the given image tokenizer on every frame.

    \b
    Examples:
      smalti inflate runs/image --out video-start --time-strides 4 --time 4
      smalti train video --set init=video-start --set data.path=clips
    """
    from smalti.families import load
    from smalti.tokenizer import inflate

    strides = integers("--time-strides", time_strides)
    video = inflate(load(image_tokenizer), strides, time_kernel=time, past_kernel=past, norm=norm)
    video.save(out)
    print(f"{out}: a video tokenizer, one token for {' x '.join(map(str, video.strides))} (time, height, width)")
