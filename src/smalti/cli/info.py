"""`smalti info`."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smalti.cli.console import print_json
from smalti.cli.options import TOKENIZER_HELP, JsonOption

if TYPE_CHECKING:
    from smalti.tokenizer import Tokenizer


def info_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP + " Or a .smt file.")],
    as_json: JsonOption = False,
) -> None:
    """Show information about a tokenizer (strides, codebook, bits per pixel, parameters, causal, tile-exact), a run,
    a token set, a token model or a compressed file.

    \b
    Examples:
      smalti info runs/tiny
      smalti info runs/tiny/step-00000300/tokenizer --json
      smalti info clip.smt
      smalti info photo-tokens
      smalti info runs/tiny-generate
    """
    from smalti.codec.codec import read_info
    from smalti.generation import Generator
    from smalti.model_folder import find_model
    from smalti.tokenizer.open import find_tokenizer, load
    from smalti.tokens.reader import describe_set, is_token_set

    path, run = Path(tokenizer), (Path(tokenizer) / "config.yaml").is_file()
    if path.is_file():
        facts = read_info(path).plain()
    elif is_token_set(path):
        facts = describe_set(path)
    elif (folder := find_model(path, "generator")) is not None:
        facts = {"generator": str(folder), **Generator.load(folder).facts()}
    else:
        facts = describe(load(tokenizer))
        if run:
            facts = {"tokenizer": str(find_tokenizer(tokenizer)), **facts}
    if run:
        facts["run"] = last_lines(path)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "config":
            print(f"{name.replace('_', ' '):<22} {_shown(value)}")


def describe(tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return the facts of a tokenizer as plain data."""
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


def last_lines(run: Path) -> dict[str, Any]:
    """Read the newest step and the newest validation in the log of a run, passing over a line cut short by a kill."""
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


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " x ".join(map(str, value)) if len(set(value)) > 1 else f"{value[0]} ^ {len(value)}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
