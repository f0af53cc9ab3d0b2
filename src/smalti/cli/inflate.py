"""`smalti inflate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.console import TOKENIZER_HELP, integers


def inflate_command(
    image_tokenizer: Annotated[
        str,
        typer.Argument(metavar="TOKENIZER", help="An image tokenizer; with --quarters a video one. " + TOKENIZER_HELP),
    ],
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
    quarters: Annotated[
        bool,
        typer.Option("--quarters", help="Let conditional tokens of a trained tokenizer code quarters of still scenes."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the weights that --conditional adds.")] = 0,
) -> None:
    """Make a video tokenizer that starts as the given image tokenizer on every frame.

    With --conditional it starts as the image tokenizer on the first frame, and
    holds it until it is trained. With --quarters a trained one of that kind gets
    modes for scenes that stand still; its weights stay.

    \b
    Examples:
      smalti inflate runs/image --out video-start --time-strides 4 --time 4
      smalti train video --set init=video-start --set data.path=clips
      smalti inflate smalti/tiny-image --out start --conditional 4
      smalti inflate runs/conditional --out conditional --quarters
    """
    import torch

    from smalti.errors import ConfigError
    from smalti.families import load
    from smalti.tokenizer import inflate, start_conditional, with_quarters

    ways = {"--time-strides": time_strides, "--conditional": conditional, "--quarters": quarters or None}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            "give one of --time-strides, one for each spatial stride, --conditional FRAMES and --quarters"
        )
    if time_strides is None and (past is not None or norm is not None):
        raise ConfigError(f"{given[0]}: past kernels and norms are those of its own networks")
    image = load(image_tokenizer)
    if time_strides is not None:
        strides = integers("--time-strides", time_strides)
        video = inflate(image, strides, time_kernel=time, past_kernel=past, norm=norm)
    elif conditional is not None:
        torch.manual_seed(seed)
        video = start_conditional(image, conditional)
    else:
        video = with_quarters(image)
    video.save(out)
    print(f"{out}: a video tokenizer, one token for {' x '.join(map(str, video.strides))} (time, height, width)")
