"""`smalti decompress`."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import DeviceOption, JsonOption, OverwriteOption, TokenizerOption, bar, message_line, print_json
from smalti.errors import ConfigError


def decompress_command(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A .smt file.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .mp4, .mkv, .mov or .png to write.")],
    tokenizer: TokenizerOption,
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only frames A to B - 1 of a video, as 100:200, 100: or :50.")
    ] = None,
    prior: Annotated[
        Path | None, typer.Option(help="The prior that it was coded with, if that is a file of your own.")
    ] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the image or the video that a compressed file holds.

    \b
    An image becomes PNG, a video H.264 at the frame rate of its source.

    \b
    Examples:
      smalti decompress clip.smt clip.mp4 --tokenizer runs/video
      smalti decompress clip.smt part.mp4 --tokenizer runs/video --frames 100:200
      smalti decompress photo.smt photo.png --tokenizer runs/image
    """
    from smalti.pipeline.compress import decompress

    part = None if frames is None else _frame_range(frames)
    with bar(message_line(source.name), None) as progress:
        file = decompress(
            source,
            target,
            tokenizer,
            frames=part,
            prior=prior,
            overwrite=overwrite,
            device=device,
            progress=progress,
        )
    if as_json:
        print_json(file._asdict())
        return
    length = "" if file.fps is None else f", frames {file.first}:{file.first + file.frames} at {file.fps:.4g}/s"
    print(f"{message_line(target)}: {file.width}x{file.height}{length}, {file.seconds:.1f} s")


def _frame_range(text: str) -> tuple[int, int | None]:
    """Read (first, end) of A:B, A: or :B. Raises ConfigError."""
    first, colon, end = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (first, end)):
        raise ConfigError(f"--frames {text}: expected A:B, the first frame and the one after the last, as in 100:200")
    return int(first or 0), int(end) if end else None
