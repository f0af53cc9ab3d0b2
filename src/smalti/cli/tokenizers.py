"""`smalti info` and `smalti inflate`, and where a tokenizer that the user names is found."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smalti.cli.terminal import print_json
from smalti.errors import ConfigError

if TYPE_CHECKING:
    from smalti.tokenizer import Tokenizer

TOKENIZER_HELP = "A tokenizer folder, a run folder, smalti/tiny-image, smalti/tiny-video, or OWNER/NAME on the hub."
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...; the best there is if not given.")]


def open_tokenizer(name: str, device: str | None = "cpu") -> "Tokenizer":
    """The tokenizer that the user names, on the device of that name, or on the best there is."""
    from smalti.tokenizer import load
    from smalti.training.distributed import pick_device

    return load(name, pick_device(device))


def info(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP + " Or a .smt file.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a tokenizer is: strides, codebook, bits per pixel, size, what it is exact in; or a token set,
    or a generator.

    \b
    Examples:
      smalti info runs/tiny
      smalti info runs/tiny/step-00000300/tokenizer --json
      smalti info film.smt
      smalti info photo-tokens
      smalti info runs/tiny-generate
    """
    from smalti.cli.generators import describe_generator, find_generator
    from smalti.cli.token_sets import describe_set
    from smalti.pipeline.evaluate import is_token_set
    from smalti.tokenizer.open import find_tokenizer

    path, run = Path(tokenizer), False
    if path.is_file():
        about = _describe_file(path)
    elif is_token_set(path):
        about = describe_set(path)
    elif find_generator(tokenizer) is not None:
        about = describe_generator(tokenizer)
    else:
        about, run = describe(open_tokenizer(tokenizer)), (path / "config.yaml").is_file()
    if run:
        about = {"tokenizer": str(find_tokenizer(tokenizer)), **about, "run": last_lines(Path(tokenizer))}
    if as_json:
        print_json(about)
        return
    for name, value in about.items():
        if name != "config":
            print(f"{name.replace('_', ' '):<22} {_shown(value)}")


def describe(tokenizer: "Tokenizer") -> dict[str, Any]:
    """Everything there is to say about a tokenizer, as plain data."""
    time, rows, columns = tokenizer.strides
    bits = math.log2(tokenizer.codebook_size)
    tensors = [*tokenizer.state_dict().values()]
    return {
        "kind": "image" if tokenizer.config.time_kernel == 1 else "video",
        "strides": {"time": time, "rows": rows, "columns": columns},
        "quantizer": tokenizer.config.quantizer.kind,
        "levels": list(tokenizer.levels),
        "codebook_size": tokenizer.codebook_size,
        "bits_per_token": bits,
        "bits_per_pixel": bits / (time * rows * columns),
        "parameters": {
            "encoder": sum(p.numel() for p in tokenizer.encoder.parameters()),
            "decoder": sum(p.numel() for p in tokenizer.decoder.parameters()),
            "all": sum(p.numel() for p in tokenizer.parameters()),
        },
        "weights_bytes": sum(tensor.nbytes for tensor in tensors),
        "is_causal": tokenizer.is_causal,
        "is_tile_exact": tokenizer.is_tile_exact,
        "reach": {"encoder_pixels": tokenizer.encoder.reach, "decoder_tokens": tokenizer.decoder.reach},
        "fingerprint": tokenizer.fingerprint,
        "config": tokenizer.config.plain(),
    }


def _describe_file(path: Path) -> dict[str, Any]:
    """What a compressed file is, by its head and its seek table."""
    from smalti.codec.codec import about

    return about(path).plain()


def last_lines(run: Path) -> dict[str, Any]:
    """The newest step and the newest validation in the log of a run; a line cut short by a kill is passed over."""
    from smalti.model_folder import checkpoints

    found: dict[str, Any] = {"checkpoint": next((p.name for p in reversed(checkpoints(run))), None)}
    log = run / "log.jsonl"
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and not any(name.startswith("samples/") for name in line):
            found["validation" if any(name.startswith("validation/") for name in line) else "last"] = line
    return found


def inflate(
    image_tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP + " Of images.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there.")],
    time_strides: Annotated[str, typer.Option(help="One time stride for each spatial one, as 1,2,2.")],
    time: Annotated[int, typer.Option(min=1, help="Frames that a convolution sees.")] = 3,
    past: Annotated[
        Literal["full", "point"] | None, typer.Option(help="Kernels of past frames: whole, or 1x1; as trained if none.")
    ] = None,
    norm: Annotated[
        Literal["position", "frame", "clip"] | None, typer.Option(help="Other norms; clip is mindone's, not causal.")
    ] = None,
) -> None:
    """Make a video tokenizer that starts as the given image tokenizer on every frame.

    \b
    Examples:
      smalti inflate runs/image --out video-start --time-strides 4 --time 4
      smalti train video --set init=video-start --set data.path=clips
    """
    from smalti.tokenizer import inflate as inflated

    strides = _numbers("--time-strides", time_strides)
    video = inflated(open_tokenizer(image_tokenizer), strides, time_kernel=time, past_kernel=past, norm=norm)
    video.save(out)
    print(f"{out}: a video tokenizer, one token for {' x '.join(map(str, video.strides))} (frames, rows, columns)")


def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of MagicMaster (.pth).")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there.")],
    levels: Annotated[
        str | None, typer.Option(help="FSQ levels, as 8,8,8,5,5,5, where the file does not say them.")
    ] = None,
    copy: Annotated[
        Literal["average", "live"], typer.Option(help="The averaged weights, which published figures use, or the live.")
    ] = "average",
    as_json: JsonOption = False,
) -> None:
    """Make a smalti tokenizer of a checkpoint of MagicMaster: 2-D, 3-D or VQGAN, FSQ or DSQ.

    \b
    Nothing in the file is run. Every tensor is accounted for: what was used, and
    what was left out and why; import.json beside the weights lists them by name.

    \b
    Examples:
      smalti import magvit_v2_fsq_k600_style2_d64_64000_128x128_4x32_ep40-1ea3cc49.pth --out k600
      smalti import stripped.pth --levels 8,8,5,4,4,3 --out imagenet-256
    """
    from smalti.families import import_checkpoint as imported
    from smalti.files import write_json

    if out.exists():
        raise ConfigError(f"{out}: is there already; give another --out")
    tokenizer, report = imported(file, levels=None if levels is None else _numbers("--levels", levels), copy=copy)
    tokenizer.save(out)
    write_json(out / "import.json", report.plain())
    if as_json:
        print_json({**report.plain(), "tokenizer": str(out), "about": describe(tokenizer)})
        return
    print(f"{out}: {report.peer}, {report.copy} weights, {len(report.used)} tensors used")
    for reason, names in report.ignored.items():
        print(f"  left out: {len(names)} tensors, {reason}")
    for note in report.notes:
        print(f"  note: {note}")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: expected whole numbers with commas, as in 1,2,2") from None


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " x ".join(map(str, value)) if len(set(value)) > 1 else f"{value[0]} ^ {len(value)}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
