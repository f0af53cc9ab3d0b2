"""`smalti inflate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.console import TOKENIZER_HELP, integers


def inflate_command(
    image_tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="An image tokenizer. " + TOKENIZER_HELP)],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    time_strides: Annotated[
        str | None, typer.Option(help="One time stride for each spatial one, as 1,2,2; not with --conditional.")
    ] = None,
    time: Annotated[int, typer.Option(min=1, help="Temporal kernel size of the convolutions, in frames.")] = 3,
    past: Annotated[
        Literal["full", "point"] | None,
        typer.Option(help="Kernels of past frames: full or 1x1; default: as trained."),
    ] = None,
    norm: Annotated[
        Literal["position", "frame", "clip"] | None, typer.Option(help="Other norms; clip (mindone's) is not causal.")
    ] = None,
    conditional: Annotated[
        int | None,
        typer.Option(min=1, help="Frames of a token that says what is new after the last decoded frame, as 4."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights that --conditional adds.")] = 0,
) -> None:
    """Make a video tokenizer that starts as the given image tokenizer on every frame.

    With --conditional it starts as the image tokenizer on the first frame, and
    holds it until it is trained.

    \b
    Examples:
      smalti inflate runs/image --out video-start --time-strides 4 --time 4
      smalti train video --set init=video-start --set data.path=clips
      smalti inflate smalti/tiny-image --out start --conditional 4
    """
    import torch

    from smalti.errors import ConfigError
    from smalti.families import load
    from smalti.tokenizer import inflate, start_conditional

    image = load(image_tokenizer)
    if conditional is not None:
        if time_strides is not None or past is not None or norm is not None:
            raise ConfigError("--conditional: time strides, past kernels and norms are those of its own networks")
        torch.manual_seed(seed)
        video = start_conditional(image, conditional)
    elif time_strides is None:
        raise ConfigError("give --time-strides, one for each spatial stride, or --conditional FRAMES")
    else:
        strides = integers("--time-strides", time_strides)
        video = inflate(image, strides, time_kernel=time, past_kernel=past, norm=norm)
    video.save(out)
    print(f"{out}: a video tokenizer, one token for {' x '.join(map(str, video.strides))} (time, height, width)")
