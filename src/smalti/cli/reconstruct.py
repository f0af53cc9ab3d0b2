"""`smalti reconstruct`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.console import (
    TOKENIZER_HELP,
    DeviceOption,
    JsonOption,
    MaxBadOption,
    OverwriteOption,
    PrecisionOption,
    bar,
    end_with_bad_files,
    message_line,
    parse_size,
    print_json,
    say,
)
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.pipeline.reconstruct import Reconstructed


def reconstruct_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="[TOKENIZER] INPUT...", help=f"{TOKENIZER_HELP} Then files or folders of media."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("reconstructed"),
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side/--only", help="Original and reconstruction in one file, or only the latter.")
    ] = True,
    overwrite: OverwriteOption = False,
    clip: Annotated[
        int | None,
        typer.Option(min=1, help="Cut video into clips of N frames; for non-causal tokenizers."),
    ] = None,
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="Frames A up to B (not included) of every video, as 0:48 or 48:.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Center crop at height x width, as 256 or 144x256; default: as it is.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of video, by time; default: all frames.")] = None,
    device: DeviceOption = None,
    max_bad: MaxBadOption = 1.0,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode and decode images and videos, at their own size and length unless said.

    \b
    Images become PNG and videos MP4 at the frame rate of the source. Videos
    are streamed: memory does not grow with their length. Without a tokenizer,
    smalti's own small ones: smalti/tiny-image-2 for images,
    smalti/tiny-video-2 for videos.

    \b
    Examples:
      smalti reconstruct photo.jpg
      smalti reconstruct runs/tiny photo.jpg --out decoded
      smalti reconstruct runs/video clip.mp4 clips/ --out decoded --only --json
      smalti reconstruct runs/video clip.mp4 --frames 0:48 --size 144x256
      smalti reconstruct imported-k600 clip.mp4 --out decoded --clip 17
    """
    from smalti.pipeline.reconstruct import reconstruct

    tokenizer, inputs = tokenizer_and_media(names)

    def on_file(result: "Reconstructed | BadFile") -> None:
        if isinstance(result, BadFile):
            say(f"left out: {message_line(result)}")
            return
        for note in result.notes:
            say(f"{message_line(result.source)}: {note}")
        if not as_json:
            print(_line(result), flush=True)

    with bar("reconstructing", None) as progress:
        outputs = reconstruct(
            tokenizer,
            inputs,
            out,
            side_by_side=side_by_side,
            overwrite=overwrite,
            clip=clip,
            frames=None if frames is None else _parse_frames(frames),
            size=None if size is None else parse_size(size),
            fps=fps,
            device=device,
            max_bad=max_bad,
            precision=precision,
            progress=progress,
            on_file=on_file,
        )
    if as_json:
        print_json(outputs.plain())
    end_with_bad_files(outputs.bad, len(outputs.done), named=True)


def _parse_frames(text: str) -> tuple[int, int | None]:
    """Return the first frame of `--frames A:B` and the one after the last."""
    first, colon, end = text.partition(":")
    try:
        if colon:
            return int(first or 0), int(end) if end else None
    except ValueError:
        pass
    raise ConfigError(f"--frames {text}: expected A:B, as in 0:48 or 48:")


def tokenizer_and_media(names: Sequence[str]) -> tuple[str | None, list[Path]]:
    """Take `[TOKENIZER] INPUT...` apart: the first name is media if it is an image, a video or a folder of some.

    Raises InputError where it is neither that nor a tokenizer, or where nothing follows a tokenizer.
    """
    from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from smalti.families.names import find_tokenizer

    first, *others = names
    media = [Path(name) for name in others]
    if Path(first).suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and not Path(first).is_dir():
        return None, [Path(first), *media]
    try:
        find_tokenizer(first)
    except InputError as fault:
        if others and not _holds_media(Path(first)):
            raise fault from None
        return None, [Path(first), *media]
    if not others:
        raise InputError(f"{first}: is a tokenizer; name the images and videos to reconstruct after it")
    return first, media


def _holds_media(path: Path) -> bool:
    from smalti.pipeline.outputs import list_media

    try:
        return bool(list_media(path))
    except InputError:
        return False


def _line(result: "Reconstructed") -> str:
    length = "" if result.fps is None else f", {result.frames:,} frames at {result.fps:.4g}/s"
    cost = f"{result.tokens:,} tokens, {result.bits_per_pixel:.4f} bits per pixel"
    near = f"PSNR {result.psnr:.2f} dB, {result.seconds:.1f} s"
    return f"{message_line(result.path)}: {result.width}x{result.height}{length}, {cost}, {near}"
