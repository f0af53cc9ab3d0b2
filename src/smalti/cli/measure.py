"""`smalti eval` and `smalti reconstruct`."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from smalti.cli.terminal import bar, one_line, print_json, say
from smalti.cli.tokenizers import TOKENIZER_HELP, DeviceOption, JsonOption, open_tokenizer
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.data.list_formats import Listing
    from smalti.tokenizer import Tokenizer
    from smalti.tokenizer.reconstruct import Progress, Reconstructed


Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET",
        help=f"{TOKENIZER_HELP} With --against: the folder of originals. With --real: generated sets.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N clips.")]
Real = Annotated[Path | None, typer.Option(help="Real media, as --data takes them, to compare generated ones with.")]


def eval_command(
    targets: Targets,
    data: Annotated[Path | None, typer.Option(help="A folder, list, file, tar or Parquet table of media.")] = None,
    against: Annotated[Path | None, typer.Option(help="A folder of pictures to compare with TARGET.")] = None,
    real: Real = None,
    protocol: Annotated[str, typer.Option(help="How figures are taken; docs/metrics.md has them all.")] = "smalti",
    limit: Limit = None,
    size: Annotated[
        int | None, typer.Option(min=0, help="Rows and columns of a clip (128); 0 keeps those of the file.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip of video (17), from its middle.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the paths of a list start; its own folder if none.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS weights; found by themselves where installed.")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Weights of the protocol's feature network; found by themselves as well.")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="A folder that keeps the features' moments of the originals.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write report.json and sheet.png to this folder.")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a tokenizer, or compare two folders, or generated media with real.

    \b
    PSNR, SSIM, MS-SSIM, LPIPS, Frechet distances (rFID, rFVD), codebook use and
    bits per pixel, all under a named protocol that the report holds in full:
    smalti, smalti-frechet, smalti-fid, smalti-fvd, magicmaster-psnr,
    magicmaster-fid, magicmaster-fvd, mindone-psnr, mindone-psnr-images,
    open-magvit2. Under torchrun the ranks share the clips. With --real, sets
    against a set: smalti-gfid (and inception score), smalti-gfvd,
    smalti-generation, smalti-generation-video; precision, recall, density,
    coverage. Several TARGETs, one a seed, give mean and deviation.

    \b
    Examples:
      smalti eval runs/tiny --data photos --out report
      smalti eval runs/video --data clips --size 128 --frames 17 --limit 50 --json
      smalti eval runs/tiny --data photos --protocol mindone-psnr-images
      smalti eval k600 --data val_new.txt --root val --protocol magicmaster-fvd
      smalti eval originals --against reconstructions
      smalti eval photo-tokens --data photos
      smalti eval made-0 made-1 --real film --protocol smalti-generation-video
      torchrun --nproc-per-node 8 -m smalti eval runs/image --data photos
    """
    from smalti.pipeline.evaluate import evaluate

    with bar("evaluating", None) as advance:
        result = evaluate(
            targets,
            data,
            against=against,
            real=real,
            protocol=protocol,
            limit=limit,
            size=size,
            frames=frames,
            root=root,
            lpips=lpips,
            features=features,
            statistics=statistics,
            device=device,
            progress=advance,
        )
    if result is None:  # only the first rank prints
        return
    if out is not None:
        result.write(out)
    if as_json:
        print(result.report.to_json(), end="")
    else:
        print(result.report.to_text(width=min(100, shutil.get_terminal_size().columns)), end="")
    if result.bad:
        _say_bad(result.bad, result.clips)


def reconstruct(
    names: Annotated[
        list[str],
        typer.Argument(metavar="[TOKENIZER] INPUT...", help=f"{TOKENIZER_HELP} Then files or folders of media."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("reconstructed"),
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side/--only", help="Original and reconstruction in one, or the latter alone.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    clip: Annotated[
        int | None,
        typer.Option(min=1, help="Take every N frames as a video of their own; for tokenizers that are not causal."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put pictures and videos through a tokenizer and back, at their own size and length.

    \b
    Pictures become PNG and videos MP4 at the frame rate of the source. Videos
    are streamed: memory does not grow with their length. Without a tokenizer,
    smalti's own small ones: smalti/tiny-image for pictures, smalti/tiny-video
    for videos.

    \b
    Examples:
      smalti reconstruct photo.jpg
      smalti reconstruct runs/tiny photo.jpg --out seen
      smalti reconstruct runs/video film.mp4 clips/ --out seen --only --json
      smalti reconstruct imported-k600 film.mp4 --out seen --clip 17
    """
    tokenizer, inputs = tokenizer_and_media(names)
    jobs = plan(inputs, out, overwrite)
    from smalti.tokenizer.open import TINY_IMAGE, TINY_VIDEO

    wanted = {job: tokenizer or (TINY_VIDEO if job.is_video else TINY_IMAGE) for job in jobs}
    models = {name: open_tokenizer(name, device) for name in set(wanted.values())}
    done: list[Reconstructed] = []
    bad: list[BadFile] = []
    for number, job in enumerate(jobs, start=1):
        with bar(f"{one_line(job.source.name)} ({number} of {len(jobs)})", None) as advance:
            try:
                result = _reconstruct(models[wanted[job]], job, side_by_side, clip, advance)
            except BadFile as fault:
                bad.append(fault)
                result = None
        if result is None:
            say(f"left out: {one_line(bad[-1])}")
            continue
        done.append(result)
        if not as_json:
            print(_line(result), flush=True)
    if as_json:
        faults = [{"path": fault.path, "code": fault.code, "message": fault.message} for fault in bad]
        print_json({"listed": len(jobs), "done": [_row(result) for result in done], "bad": faults})
    if bad:
        _say_bad(bad, len(done), named=True)


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
    return f"{one_line(result.path)}: {result.width}x{result.height}{length}, {cost}, {near}"


def _row(result: "Reconstructed") -> dict[str, Any]:
    return {**result._asdict(), "source": str(result.source), "path": str(result.path)}


def _say_bad(bad: Sequence[BadFile], good: int, named: bool = False) -> None:
    """Name the files that could not be used, count them, and end with the code of bad input."""
    for fault in () if named else bad:
        say(f"left out: {one_line(fault)}")
    say(f"error: {len(bad)} of {good + len(bad)} files could not be used and are left out; the rest is done")
    raise typer.Exit(InputError.exit_code)
