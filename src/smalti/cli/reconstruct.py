"""`smalti reconstruct`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from smalti.cli.console import bad_as_json, bar, end_with_bad_files, message_line, print_json, say
from smalti.cli.opening import open_tokenizer
from smalti.cli.options import TOKENIZER_HELP, DeviceOption, JsonOption, OverwriteOption
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.data.list_formats import Listing
    from smalti.tokenizer import Tokenizer
    from smalti.tokenizer.reconstruct import Progress, Reconstructed


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
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode and decode images and videos, at their own size and length.

    \b
    Images become PNG and videos MP4 at the frame rate of the source. Videos
    are streamed: memory does not grow with their length. Without a tokenizer,
    smalti's own small ones: smalti/tiny-image for images, smalti/tiny-video
    for videos.

    \b
    Examples:
      smalti reconstruct photo.jpg
      smalti reconstruct runs/tiny photo.jpg --out decoded
      smalti reconstruct runs/video clip.mp4 clips/ --out decoded --only --json
      smalti reconstruct imported-k600 clip.mp4 --out decoded --clip 17
    """
    tokenizer, inputs = tokenizer_and_media(names)
    jobs = plan(inputs, out, overwrite)
    from smalti.tokenizer.open import TINY_IMAGE, TINY_VIDEO

    wanted = {job: tokenizer or (TINY_VIDEO if job.is_video else TINY_IMAGE) for job in jobs}
    models = {name: open_tokenizer(name, device) for name in set(wanted.values())}
    done: list[Reconstructed] = []
    bad: list[BadFile] = []
    for number, job in enumerate(jobs, start=1):
        with bar(f"{message_line(job.source.name)} ({number} of {len(jobs)})", None) as advance:
            try:
                result = _reconstruct(models[wanted[job]], job, side_by_side, clip, advance)
            except BadFile as fault:
                bad.append(fault)
                result = None
        if result is None:
            say(f"left out: {message_line(bad[-1])}")
            continue
        done.append(result)
        if not as_json:
            print(_line(result), flush=True)
    if as_json:
        print_json({"listed": len(jobs), "done": [_row(result) for result in done], "bad": bad_as_json(bad)})
    end_with_bad_files(bad, len(done), named=True)


def tokenizer_and_media(names: Sequence[str]) -> tuple[str | None, list[Path]]:
    """Take `[TOKENIZER] INPUT...` apart: the first name is media if it is a picture, a video or a folder of some.

    Raises InputError where it is neither that nor a tokenizer, or where nothing follows a tokenizer.
    """
    from smalti.tokenizer.open import find_tokenizer

    first, *others = names
    media = [Path(name) for name in others]
    try:
        find_tokenizer(first)
    except InputError as fault:
        if others and not _holds_media(Path(first)):
            raise fault from None
        return None, [Path(first), *media]
    if not others:
        raise InputError(f"{first}: is a tokenizer; name the pictures and videos to put through it after it")
    return first, media


def _holds_media(path: Path) -> bool:
    try:
        return bool(_media(path).files)
    except InputError:
        return False


def _media(path: Path) -> "Listing":
    from smalti.data.files import IMAGE_SUFFIXES as PICTURES
    from smalti.data.files import VIDEO_SUFFIXES as VIDEOS
    from smalti.data.files import list_files

    return list_files(path, (*PICTURES, *VIDEOS))


class Job(NamedTuple):
    """One file to reconstruct."""

    source: Path
    target: Path
    is_video: bool


def plan(inputs: Sequence[Path], out: Path, overwrite: bool) -> list[Job]:
    """Which file becomes which, checked before any work: below `out`, by the name in its folder, as PNG or MP4.

    Raises InputError where an input gives nothing, ConfigError where two inputs would make one file, or a file is
    there already and is an input or may not be replaced.
    """
    from smalti.data.files import VIDEO_SUFFIXES as VIDEOS

    jobs: dict[Path, Job] = {}
    for given in inputs:
        listing = _media(given)
        for file in listing.files:
            source = listing.root / file
            is_video = source.suffix.lower() in VIDEOS
            name = Path(file).name if Path(file).is_absolute() else file
            target = out / Path(name).with_suffix(".mp4" if is_video else ".png")
            if target in jobs:
                raise ConfigError(f"{source} and {jobs[target].source} would both become {target}; take them in turn")
            jobs[target] = Job(source, target, is_video)
    sources = {job.source.resolve() for job in jobs.values()}
    for target in jobs:
        if target.resolve() in sources:
            raise ConfigError(f"{target}: is an input and would be written over; give another --out")
        if target.exists() and not overwrite:
            raise ConfigError(f"{target}: is there already; give --overwrite or another --out")
    return list(jobs.values())


def _reconstruct(
    model: "Tokenizer", job: Job, side_by_side: bool, clip: int | None, progress: "Progress"
) -> "Reconstructed":
    from smalti.tokenizer.reconstruct import reconstruct_image, reconstruct_video

    if job.is_video:
        return reconstruct_video(model, job.source, job.target, side_by_side=side_by_side, clip=clip, progress=progress)
    return reconstruct_image(model, job.source, job.target, side_by_side=side_by_side)


def _line(result: "Reconstructed") -> str:
    length = "" if result.fps is None else f", {result.frames:,} frames at {result.fps:.4g}/s"
    cost = f"{result.tokens:,} tokens, {result.bits_per_pixel:.4f} bits per pixel"
    near = f"PSNR {result.psnr:.2f} dB, {result.seconds:.1f} s"
    return f"{message_line(result.path)}: {result.width}x{result.height}{length}, {cost}, {near}"


def _row(result: "Reconstructed") -> dict[str, Any]:
    return {**result._asdict(), "source": str(result.source), "path": str(result.path)}
