"""`smalti compress`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.console import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PrecisionOption,
    TokenizerOption,
    bar,
    message_line,
    print_json,
    say,
)

if TYPE_CHECKING:
    from smalti.codec.codec import Compressed


def compress_command(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An image or a video.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .smt file to write.")],
    tokenizer: TokenizerOption,
    model: Annotated[
        Literal["prior", "adaptive", "static", "uniform"] | None,
        typer.Option(help="How ids are coded; default: prior where there is one, else adaptive."),
    ] = None,
    prior: Annotated[
        Path | None, typer.Option(help="A file of smalti prior; default: the one that ships for TOKENIZER.")
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(min=1, help="Start a new group every N frames, where decoding can start."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--lambda", min=0.0, help="Search ids: the squared error that a bit is worth; 0: quality alone."),
    ] = None,
    bits: Annotated[
        float | None, typer.Option(min=0.0, help="Search ids: the best quality at so many bits per pixel.")
    ] = None,
    psnr: Annotated[
        float | None, typer.Option(min=0.0, metavar="DB", help="Search ids: the smallest file with so many dB.")
    ] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an image or a video as a small file of entropy-coded tokens.

    \b
    The file says what it is, holds a seek table, and a digest over every byte.
    Reading it back needs the same tokenizer. Sound is left out. With --lambda,
    --bits or --psnr ids are searched for, which takes some hundred times as long;
    tokens of smalti/tiny-video-2 and its kind may then be held: they are left
    out, and their pixels stay those of the frame before.

    \b
    Examples:
      smalti compress clip.mp4 clip.smt --tokenizer runs/video
      smalti compress clip.mp4 clip.smt --tokenizer runs/video --group 49
      smalti compress photo.jpg photo.smt --tokenizer runs/image --model static
      smalti compress photo.jpg x.smt --tokenizer smalti/tiny-image --lambda 1600
      smalti compress photo.jpg x.smt --tokenizer smalti/tiny-image --psnr 24
    """
    from smalti.pipeline.compress import compress

    with bar(message_line(source.name), None) as progress:
        written = compress(
            source,
            target,
            tokenizer,
            model=model,
            prior=prior,
            group=group,
            price=price,
            bits=bits,
            psnr=psnr,
            overwrite=overwrite,
            device=device,
            precision=precision,
            progress=progress,
        )
    for note in written.notes:
        say(f"{message_line(written.source)}: {note}")
    if as_json:
        print_json(written._asdict())
    else:
        print(_line(written))


def _line(file: "Compressed") -> str:
    length = "" if file.fps is None else f", {file.frames:,} frames at {file.fps:.4g}/s"
    size = f"{file.bytes:,} bytes, ideal {file.ideal_bytes:,.0f}, uniform {file.uniform_bytes:,.0f}"
    cost = f"{file.bits_per_pixel:.4f} bits per pixel, 1/{file.ratio:.3g} of the source"
    held = f", {file.held:,} held" if file.held else ""
    shape = f"{file.width}x{file.height}{length}, {file.tokens:,} tokens{held}"
    quality = "" if file.psnr is None else f", {file.psnr:.2f} dB at --lambda {file.price:.4g}"
    return f"{message_line(file.path)}: {shape}, {size}, {cost}{quality}, {file.seconds:.1f} s"
