"""Facts of a tokenizer and of a run, as plain data."""

import json
import math
from pathlib import Path
from typing import Any

from smalti.model_folder import checkpoints
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.tokenizer_info import TokenizerSource


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
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
        "is_streamable": tokenizer.is_causal,
        "lookahead": tokenizer.lookahead,
        "pixels": "[-1, 1]",
        "reach": {"encoder_pixels": tokenizer.encoder.reach, "decoder_tokens": tokenizer.decoder.reach},
        "fingerprint": tokenizer.fingerprint,
        **({} if tokenizer.source is None else {"source": _origin(tokenizer.source)}),
        "config": tokenizer.config.plain(),
    }


def _origin(source: TokenizerSource) -> dict[str, Any]:
    """Return the facts of an imported tokenizer's project, its range of the pixels in numbers."""
    plain = {name: value for name, value in source.plain().items() if value is not None}
    plain["pixels"] = "[-1, 1]" if source.pixels == "signed" else "[0, 1]"
    plain["ids"] = {name: value for name, value in plain["ids"].items() if value is not None}
    return plain


def last_lines(run: Path) -> dict[str, Any]:
    """Read the newest step and the newest validation in the log of a run, passing over a line cut short by a kill."""
    lines: dict[str, Any] = {"checkpoint": next((p.name for p in reversed(checkpoints(run))), None)}
    log = run / "log.jsonl"
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and not any(name.startswith("samples/") for name in line):
            lines["validation" if any(name.startswith("validation/") for name in line) else "last"] = line
    return lines
