"""`smalti eval` and `smalti reconstruct`."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from smalti.cli.terminal import bar, one_line, print_json, say
from smalti.cli.tokenizers import TOKENIZER_HELP, DeviceOption, JsonOption
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.cli.evaluation import Answer
    from smalti.cli.generated import GenerationAnswer
    from smalti.cli.listing import Question
    from smalti.pipeline.reconstruct import Reconstructed


Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET",
        help=f"{TOKENIZER_HELP} With --against: the folder of originals. With --real: generated sets.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N clips.")]
Real = Annotated[Path | None, typer.Option(help="Real media, as --data takes them, to compare generated ones with.")]


def evaluate(
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
    from smalti.cli.listing import Question

    question = Question(protocol, limit, size, frames, root, lpips, features, statistics, device)
    answer = _measure(targets, Sides(data, against, real), question)
    if answer is None:  # a rank that the leading one speaks for
        return
    if out is not None:
        answer.write(out)
    if as_json:
        print(answer.report.to_json(), end="")
    else:
        print(answer.report.to_text(width=min(100, shutil.get_terminal_size().columns)), end="")
    if answer.bad:
        _say_bad(answer.bad, answer.good)


class Sides(NamedTuple):
    """With what the targets are measured or compared; one is given."""

    data: Path | None
    against: Path | None
    real: Path | None


def _measure(targets: list[str], sides: Sides, question: "Question") -> "Answer | GenerationAnswer | None":
    from smalti.cli.evaluation import measure
    from smalti.cli.generated import measure_generated
    from smalti.cli.token_sets import is_token_set, measure_set

    if sides.real is not None:
        if sides.data is not None or sides.against is not None:
            raise ConfigError("eval: --real is the other side already; leave out --data and --against")
        return measure_generated(targets, sides.real, question)
    target = targets[0]
    if len(targets) > 1:
        raise ConfigError(f"eval: {len(targets)} targets ({' '.join(targets)}); several go with --real alone")
    if sides.data is None or sides.against is not None or not is_token_set(Path(target)):
        return measure(target, sides.data, sides.against, question)
    return measure_set(Path(target), sides.data, question)


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
    from smalti.pipeline.reconstruct import reconstruct as reconstruct_media

    tokenizer, inputs = tokenizer_and_media(names)

    def on_file(result: "Reconstructed | BadFile") -> None:
        if isinstance(result, BadFile):
            say(f"left out: {one_line(result)}")
        elif not as_json:
            print(_line(result), flush=True)

    with bar("reconstructing", None) as advance:
        outputs = reconstruct_media(
            tokenizer,
            inputs,
            out,
            side_by_side=side_by_side,
            overwrite=overwrite,
            clip=clip,
            device=device,
            progress=advance,
            on_file=on_file,
        )
    if as_json:
        print_json(outputs.plain())
    if outputs.bad:
        _say_bad(outputs.bad, len(outputs.done), named=True)


def tokenizer_and_media(names: Sequence[str]) -> tuple[str | None, list[Path]]:
    """Take `[TOKENIZER] INPUT...` apart: the first name is media if it is a picture, a video or a folder of some.

    Raises InputError where it is neither that nor a tokenizer, or where nothing follows a tokenizer.
    """
    from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from smalti.tokenizer.open import find_tokenizer

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
        raise InputError(f"{first}: is a tokenizer; name the pictures and videos to put through it after it")
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
    return f"{one_line(result.path)}: {result.width}x{result.height}{length}, {cost}, {near}"


def _say_bad(bad: Sequence[BadFile], good: int, named: bool = False) -> None:
    """Name the files that could not be used, count them, and end with the code of bad input."""
    for fault in () if named else bad:
        say(f"left out: {one_line(fault)}")
    say(f"error: {len(bad)} of {good + len(bad)} files could not be used and are left out; the rest is done")
    raise typer.Exit(InputError.exit_code)
