"""`smalti decompress`."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.compress import TokenizerOption, check_target
from smalti.cli.console import bar, message_line, print_json
from smalti.cli.opening import open_tokenizer
from smalti.cli.options import DeviceOption, JsonOption, OverwriteOption
from smalti.errors import ConfigError


def decompress_command(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A .smt file.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .mp4, .mkv, .mov or .png to write.")],
    tokenizer: TokenizerOption,
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only frames A to B - 1 of a video, as 100:200, 100: or :50.")
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
    from smalti.codec.codec import decompress as decompressed

    wanted = None if frames is None else frame_range(frames)
    check_target(source, target, overwrite)
    tokens = open_tokenizer(tokenizer, device)
    with bar(message_line(source.name), None) as advance:
        done = decompressed(tokens, source, target, frames=wanted, progress=advance)
    if as_json:
        print_json(done._asdict())
        return
    length = "" if done.fps is None else f", frames {done.first}:{done.first + done.frames} at {done.fps:.4g}/s"
    print(f"{message_line(target)}: {done.width}x{done.height}{length}, {done.seconds:.1f} s")


def frame_range(text: str) -> tuple[int, int | None]:
    """(first, end) of A:B, A: or :B. Raises ConfigError."""
    first, colon, end = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (first, end)):
        raise ConfigError(f"--frames {text}: expected A:B, the first frame and the one after the last, as in 100:200")
    return int(first or 0), int(end) if end else None
