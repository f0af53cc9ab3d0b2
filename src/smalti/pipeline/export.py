"""A tokenizer as programs that run without smalti: the library function behind `smalti export`."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.arguments import check_arguments, check_out_folder
from smalti.data import read_clip, read_image
from smalti.data.bundled import photos, videos
from smalti.errors import ConfigError, MachineError
from smalti.families import load
from smalti.files import new_folder, write_json
from smalti.pipeline.parity import Agreement
from smalti.pipeline.runtimes import Exported, Target, WeightType, check_packages, write_program
from smalti.text import Progress
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.graphs import programs
from smalti.tokens.finalize import DATASET
from smalti.version import __version__
from smalti.video import to_video

FORMAT = 1
_CLIP = 18
"""Frames of a clip in the comparison: one more than whole groups, so that padding is a part of it."""
_SIDE = 64
"""Tokens on a side to which a frame is cut in the comparison where it has more than 64^2 of them, as with strides of 2:
attention over all pairs of 176 x 313 positions takes 12 GB in a runtime that keeps them. With strides of 8 the shipped
media are whole."""


def export(
    tokenizer: Tokenizer | str | Path,
    out: str | Path,
    *,
    to: Target = "onnx",
    weights: WeightType = "float32",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a tokenizer as programs for ONNX Runtime, or for torch alone, and compare their ids with its own.

    `encode.onnx` takes `video`, float32 `batch 3 frames height width` in [-1, 1] of any size, and gives `ids`, int64
    `batch latents rows columns`; `decode.onnx` takes `ids` and gives `video`, which is to be cropped to the size of the
    original. One file serves all sizes.

    A causal video tokenizer has its streaming step besides. After the first chunk, of 1 + s*n frames, `encode.onnx`
    gives its past as `state_out_00`, `state_out_01`, ...; `encode_step.onnx` takes the next s*n frames as `video` and
    that past as `state_in_00`, `state_in_01`, ..., and gives `ids` and the new past, `state_out_*`. `decode_step.onnx`
    does so for `ids`. A tokenizer with a lookahead starts with `decode_start` and ends with `decode_last`. `encode` and
    `decode` of conditional tokens take the first frame alone, and their steps one group; so does a step of `pt2`.

    `config.json` has the facts of the tokenizer and every program's inputs and outputs, with their types and shapes.
    `parity.json` counts the ids of the shipped photographs and video clips that differ, and the pixels' largest
    difference; frames of more than 64^2 tokens are cut to a corner.

    Args:
        tokenizer: a tokenizer or its name, as `smalti.load` takes it.
        out: folder to write; it must not exist.
        to: `onnx`, for ONNX Runtime anywhere, a browser included, or `pt2`, AOTInductor's packages, compiled for
            processors of this kind, which torch runs without smalti.
        weights: `float16` keeps the weights in half the space, and computes with them in float32.
        progress: called after each program.

    Returns the content of parity.json. Raises ConfigError where `out` is there, MachineError where a package or a C++
    compiler is absent, and, with float32 weights, where an id differs by more than rounding: nothing is then written.
    """
    check_arguments(export, locals())
    check_out_folder("out", out)
    if Path(out).exists():
        raise ConfigError(f"{out}: already exists; choose another name")
    if not isinstance(tokenizer, Tokenizer) and (Path(tokenizer) / DATASET).is_file():
        raise ConfigError(
            f"{tokenizer}: a token set, no tokenizer; `smalti decode SET --to npy` writes its ids as .npy"
        )
    own = copy.deepcopy(tokenizer) if isinstance(tokenizer, Tokenizer) else load(tokenizer)
    check_packages(to)
    own = own.to(device="cpu", dtype=torch.float32).eval()
    with new_folder(Path(out)) as folder:
        parts, about = programs(copy.deepcopy(own), one_group=to == "pt2"), {}
        for number, program in enumerate(parts, 1):
            about[program.name] = write_program(program, folder, to, weights)
            if progress is not None:
                progress(number, len(parts), about[program.name]["file"])
        agreement = Agreement(own, Exported(folder, about, to))
        for name, video in _media(own):
            agreement.add(name, video)
        parity = {"weights": weights, "programs": agreement.counts, **_versions(to)}
        _check(agreement, to, weights)
        write_json(folder / "config.json", _config(own, to, weights, about))
        write_json(folder / "parity.json", parity)
    return parity


def _config(tokenizer: Tokenizer, to: Target, weights: WeightType, about: dict[str, Any]) -> dict[str, Any]:
    facts = tokenizer.facts()
    return {
        "format": FORMAT,
        "smalti": __version__,
        "to": to,
        "weights": weights,
        "is_stateful": "encode_step" in about,
        "programs": about,
        "tokenizer": {**tokenizer.info.plain(), **{name: facts[name] for name in _FACTS}},
    }


_FACTS = ("kind", "quantizer", "is_causal", "is_tile_exact", "lookahead", "config")


def _media(tokenizer: Tokenizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the held-out photographs, and clips for a tokenizer of video, of their own sizes or less."""
    for path in sorted(photos("heldout").glob("*.jpg")):
        yield path.name, _cut(to_video(read_image(path)), tokenizer)
    if tokenizer.config.time_kernel > 1:
        for path in sorted(videos("heldout").glob("*.mp4")):
            yield path.name, _cut(to_video(read_clip(path, _CLIP)), tokenizer)


def _cut(video: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Return a corner of a video that has many tokens, of a size that is no multiple of the strides."""
    _, h, w = tokenizer.strides
    height, width = video.shape[3:]
    if math.ceil(height / h) * math.ceil(width / w) <= _SIDE**2:
        return video
    return video[..., : _SIDE * h - 1, : _SIDE * w - 1]


def _check(agreement: Agreement, to: Target, weights: WeightType) -> None:
    differing, count = agreement.differing
    if weights == "float32" and differing > agreement.ties:
        raise MachineError(
            f"{to}: {differing - agreement.ties:,} of {count:,} ids differ from PyTorch's by more than rounding; "
            "nothing was written: try another version of the runtime"
        )


def _versions(to: Target) -> dict[str, str]:
    if to == "pt2":
        return {"torch": torch.__version__}
    import onnx
    import onnxruntime

    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
