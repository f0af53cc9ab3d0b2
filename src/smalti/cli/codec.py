"""`smalti compress` and `smalti decompress`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.terminal import bar, one_line, print_json
from smalti.cli.tokenizers import TOKENIZER_HELP, DeviceOption, JsonOption, open_tokenizer
from smalti.errors import ConfigError

if TYPE_CHECKING:
    from smalti.codec.codec import Compressed

SUFFIX = ".smt"
TokenizerOption = Annotated[str, typer.Option(metavar="TOKENIZER", help=TOKENIZER_HELP)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]


def compress(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A picture or a video.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .smt file to write.")],
    tokenizer: TokenizerOption,
    model: Annotated[
        Literal["adaptive", "static", "uniform"], typer.Option(help="How ids are coded; see docs/codec.md.")
    ] = "adaptive",
    group: Annotated[
        int | None,
        typer.Option(min=1, help="Every N frames are a video of their own, at which decoding can start."),
    ] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a picture or a video as a small file of entropy-coded tokens.

    \b
    The file says what it is, holds a seek table, and a digest over every byte.
    Reading it back needs the same tokenizer. Sound is left out.

    \b
    Examples:
      smalti compress film.mp4 film.smt --tokenizer runs/video
      smalti compress film.mp4 film.smt --tokenizer runs/video --group 49
      smalti compress photo.jpg photo.smt --tokenizer runs/image --model static
    """
    from smalti.codec.codec import compress_image, compress_video
    from smalti.data.files import VIDEO_SUFFIXES as VIDEOS

    _check_target(source, target, overwrite)
    if target.suffix.lower() != SUFFIX:
        raise ConfigError(f"{target}: compressed files are written as {SUFFIX}")
    is_video = source.suffix.lower() in VIDEOS
    if group is not None and not is_video:
        raise ConfigError(f"{source}: --group cuts videos, and this is a picture")
    tokens = open_tokenizer(tokenizer, device)
    if is_video:
        with bar(one_line(source.name), None) as advance:
            done = compress_video(tokens, source, target, model=model, group=group, progress=advance)
    else:
        done = compress_image(tokens, source, target, model=model)
    if as_json:
        print_json(done._asdict())
    else:
        print(_line(done))


def decompress(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A .smt file.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .mp4, .mkv, .mov or .png to write.")],
    tokenizer: TokenizerOption,
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="Frames A to B - 1 of a video alone, as 100:200, 100: or :50.")
    ] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the picture or the video that a compressed file holds.

    \b
    A picture becomes PNG, a video H.264 at the frame rate of its source.

    \b
    Examples:
      smalti decompress film.smt film.mp4 --tokenizer runs/video
      smalti decompress film.smt part.mp4 --tokenizer runs/video --frames 100:200
      smalti decompress photo.smt photo.png --tokenizer runs/image
    """
    from smalti.codec.codec import decompress as decompressed

    wanted = None if frames is None else frame_range(frames)
    _check_target(source, target, overwrite)
    tokens = open_tokenizer(tokenizer, device)
    with bar(one_line(source.name), None) as advance:
        done = decompressed(tokens, source, target, frames=wanted, progress=advance)
    if as_json:
        print_json(done._asdict())
        return
    length = "" if done.fps is None else f", frames {done.first}:{done.first + done.frames} at {done.fps:.4g}/s"
    print(f"{one_line(target)}: {done.width}x{done.height}{length}, {done.seconds:.1f} s")


def frame_range(text: str) -> tuple[int, int | None]:
    """(first, end) of A:B, A: or :B. Raises ConfigError."""
    first, colon, end = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (first, end)):
        raise ConfigError(f"--frames {text}: expected A:B, the first frame and the one after the last, as in 100:200")
    return int(first or 0), int(end) if end else None


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: is the input and would be written over; give another name")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: is there already; give --overwrite or another name")


def _line(done: "Compressed") -> str:
    length = "" if done.fps is None else f", {done.frames:,} frames at {done.fps:.4g}/s"
    size = f"{done.bytes:,} bytes, ideal {done.ideal_bytes:,.0f}, uniform {done.uniform_bytes:,.0f}"
    cost = f"{done.bits_per_pixel:.4f} bits per pixel, 1/{done.ratio:.3g} of the source"
    tokens = f"{done.tokens:,} tokens"
    return f"{one_line(done.path)}: {done.width}x{done.height}{length}, {tokens}, {size}, {cost}, {done.seconds:.1f} s"
