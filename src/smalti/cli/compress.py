"""`smalti compress`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.console import bar, message_line, print_json
from smalti.cli.opening import open_tokenizer
from smalti.cli.options import TOKENIZER_HELP, DeviceOption, JsonOption, OverwriteOption
from smalti.errors import ConfigError

if TYPE_CHECKING:
    from smalti.codec.codec import Compressed

SUFFIX = ".smt"
TokenizerOption = Annotated[str, typer.Option(metavar="TOKENIZER", help=TOKENIZER_HELP)]


def compress_command(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An image or a video.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .smt file to write.")],
    tokenizer: TokenizerOption,
    model: Annotated[
        Literal["adaptive", "static", "uniform"], typer.Option(help="How ids are coded; see docs/codec.md.")
    ] = "adaptive",
    group: Annotated[
        int | None,
        typer.Option(min=1, help="Start a new group every N frames, where decoding can start."),
    ] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an image or a video as a small file of entropy-coded tokens.

    \b
    The file says what it is, holds a seek table, and a digest over every byte.
    Reading it back needs the same tokenizer. Sound is left out.

    \b
    Examples:
      smalti compress clip.mp4 clip.smt --tokenizer runs/video
      smalti compress clip.mp4 clip.smt --tokenizer runs/video --group 49
      smalti compress photo.jpg photo.smt --tokenizer runs/image --model static
    """
    from smalti.codec.codec import compress_image, compress_video
    from smalti.data.files import VIDEO_SUFFIXES as VIDEOS

    check_target(source, target, overwrite)
    if target.suffix.lower() != SUFFIX:
        raise ConfigError(f"{target}: compressed files are written as {SUFFIX}")
    is_video = source.suffix.lower() in VIDEOS
    if group is not None and not is_video:
        raise ConfigError(f"{source}: --group cuts videos, and this is an image")
    tokens = open_tokenizer(tokenizer, device)
    if is_video:
        with bar(message_line(source.name), None) as advance:
            done = compress_video(tokens, source, target, model=model, group=group, progress=advance)
    else:
        done = compress_image(tokens, source, target, model=model)
    if as_json:
        print_json(done._asdict())
    else:
        print(_line(done))


def check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raise ConfigError if writing `target` would replace the input or, without `overwrite`, any file."""
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: is the input and would be written over; give another name")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: is there already; give --overwrite or another name")


def _line(done: "Compressed") -> str:
    length = "" if done.fps is None else f", {done.frames:,} frames at {done.fps:.4g}/s"
    size = f"{done.bytes:,} bytes, ideal {done.ideal_bytes:,.0f}, uniform {done.uniform_bytes:,.0f}"
    cost = f"{done.bits_per_pixel:.4f} bits per pixel, 1/{done.ratio:.3g} of the source"
    shape = f"{done.width}x{done.height}{length}, {done.tokens:,} tokens"
    return f"{message_line(done.path)}: {shape}, {size}, {cost}, {done.seconds:.1f} s"
