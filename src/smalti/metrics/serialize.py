"""Scores as tensors, to be sent to another process or kept: what comes back merges as what was sent would."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smalti.metrics.codebook import Usage
from smalti.metrics.evaluate import Scores
from smalti.metrics.frechet import Moments
from smalti.metrics.report import Row


def text_tensor(data: Any) -> Tensor:
    """Plain data as JSON in bytes; numbers come back bit for bit."""
    return torch.from_numpy(np.frombuffer(json.dumps(data, allow_nan=False).encode(), np.uint8).copy())


def text_of(tensor: Tensor) -> Any:
    """The plain data of `text_tensor`."""
    return json.loads(tensor.numpy().tobytes())


def tensors_of(scores: Scores) -> dict[str, Tensor]:
    """All that scores hold but for the networks and the reference, which who receives them has."""
    found = {"rows": text_tensor([row.plain() for row in scores.rows.values()]), "pixels": torch.tensor(scores.pixels)}
    if scores.usage is not None:
        found |= _under("usage", scores.usage.tensors())
    if scores.moments is not None:
        found |= _under("originals", scores.moments.originals.tensors())
        found |= _under("made", scores.moments.made.tensors())
    return found


def scores_of(tensors: Mapping[str, Tensor], like: Scores) -> Scores:
    """Scores of the same protocol and networks as `like`, with what `tensors_of` gave."""
    found = like.fresh()
    found.rows = {row.key: row for row in map(Row.parse, text_of(tensors["rows"]))}
    found.pixels = int(tensors["pixels"])
    if found.usage is not None:
        found.usage = Usage.of_tensors(found.usage.levels, _below("usage", tensors))
    if found.moments is not None:
        found.moments.originals = Moments.of_tensors(_below("originals", tensors))
        found.moments.made = Moments.of_tensors(_below("made", tensors))
    return found


def _under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
