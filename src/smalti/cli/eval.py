"""`smalti eval`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import TOKENIZER_HELP, DeviceOption, JsonOption, MaxBadOption, bar, end_with_bad_files

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET",
        help=f"{TOKENIZER_HELP} Several are compared. With --against: the folder of originals. With --real: sets.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N clips.")]
Real = Annotated[Path | None, typer.Option(help="Real media (as --data) to compare generated media with.")]


def eval_command(
    targets: Targets,
    data: Annotated[Path | None, typer.Option(help="A folder, list, file, tar or Parquet table of media.")] = None,
    against: Annotated[Path | None, typer.Option(help="A folder of images to compare with TARGET.")] = None,
    real: Real = None,
    protocol: Annotated[str, typer.Option(help="Evaluation protocol; docs/metrics.md lists them.")] = "smalti",
    limit: Limit = None,
    size: Annotated[
        int | None, typer.Option(min=0, help="Height and width of a clip (128); 0 keeps the file's.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip of video (17), from its middle.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the paths of a list start; default: its folder.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS weights; found automatically where installed.")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Weights of the protocol's feature network; found likewise.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="A folder that caches feature statistics of the originals, or an .npz or .pkl of them."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for intervals of distances, with --real.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write report.json and sheet.png to this folder.")] = None,
    device: DeviceOption = None,
    max_bad: MaxBadOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Evaluate tokenizers, compare two folders, or compare generated media with real media.

    \b
    PSNR, SSIM, MS-SSIM, LPIPS, Frechet distances (rFID, rFVD), codebook use and
    bits per pixel, all under a named protocol that the report holds in full:
    smalti, smalti-frechet, smalti-fid, smalti-fvd, magicmaster-psnr,
    magicmaster-fid, magicmaster-fvd, mindone-psnr, mindone-psnr-images,
    open-magvit2. Under torchrun the ranks share the clips. With --real, sets
    against a set: smalti-gfid (and inception score), smalti-gfvd,
    smalti-generation, smalti-generation-video; precision, recall, density,
    coverage. Several TARGETs, one a seed, give mean and deviation. Several
    tokenizers with --data are compared on the same clips: differences from the
    first with their errors, bits per pixel, speed, images side by side.

    \b
    Examples:
      smalti eval runs/tiny --data photos --out report
      smalti eval runs/video --data clips --size 128 --frames 17 --limit 50 --json
      smalti eval runs/tiny --data photos --protocol mindone-psnr-images
      smalti eval k600 --data val_new.txt --root val --protocol magicmaster-fvd
      smalti eval runs/image showlab/magvitv2 --data photos --out report
      smalti eval originals --against reconstructions
      smalti eval photo-tokens --data photos
      smalti eval fake-0 fake-1 --real clips --protocol smalti-generation-video
      torchrun --nproc-per-node 8 -m smalti eval runs/image --data photos
    """
    from smalti.pipeline.evaluate import evaluate

    with bar("evaluating", None) as progress:
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
            bootstrap=bootstrap,
            device=device,
            max_bad=max_bad,
            progress=progress,
        )
    if result is None:  # the first rank of torchrun prints for all
        return
    if out is not None:
        result.write(out)
    if as_json:
        print(result.report.to_json(), end="")
    else:
        print(result.report.to_text(width=min(100, shutil.get_terminal_size().columns)), end="")
    end_with_bad_files(result.bad, result.clips)
