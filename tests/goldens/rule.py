"""The weight rule of the goldens: every number follows from a salt, a key and a shape.

A golden holds inputs and outputs of a public network; its weights are made anew by `fill`, so that no weights are
stored. Keys are the peer's: a test maps our names to theirs with a function.
"""

import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

SALT = "gold-v1/"
FOLDER = Path(__file__).parent


class Golden(NamedTuple):
    """The tensors and the metadata (each value as JSON where it is JSON, else as text) of one golden."""

    tensors: dict[str, Tensor]
    metadata: dict


def load(name):
    """The golden `name` (without suffix) of this folder."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        return Golden(tensors, {key: _plain(value) for key, value in (file.metadata() or {}).items()})


def randn(name, shape, salt=SALT):
    """Standard normal float32 numbers named by `name`."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32((salt + name).encode())))


def pixels(name, shape, salt=SALT):
    """Noise `uint8` named by `name`: the highest bytes of splitmix64, in whole numbers, so the same on any machine."""
    with np.errstate(over="ignore"):
        state = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state += np.uint64(zlib.crc32((salt + name).encode("utf-8", "surrogateescape")))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ state >> np.uint64(shift)) * np.uint64(factor)
    return ((state ^ state >> np.uint64(31)) >> np.uint64(56)).astype(np.uint8).reshape(shape)


def rule(key, shape, salt=SALT):
    """The value of the state_dict entry `key`, or None where the architecture's own constant stays."""
    name, numbers = key.rsplit(".", 1)[-1], randn(key, shape, salt)
    if name in ("num_batches_tracked", "kernel", "codebook_used") or key.startswith("scaling_layer."):
        return None
    if name == "running_mean":
        return 0.1 * numbers
    if name == "running_var":
        return 1 + 0.2 * numbers.abs()
    if name == "weight_orig":  # equalised learning rate
        return numbers
    if name == "start":  # DSQ
        return -1 + 0.02 * numbers
    if name == "a" and len(shape) == 2:  # DSQ
        return (2.0 / shape[1]) * (1 + 0.2 * numbers)
    if name in ("scale1", "scale2"):  # DSQ
        return 1 + 0.1 * numbers
    if name == "mix_factor":  # VidTok
        return 0.5 * numbers
    if name.endswith("bias"):
        return 0.05 * numbers
    if len(shape) < 2:  # norms
        return 1 + 0.1 * numbers
    return numbers * (_gain(key) / math.sqrt(math.prod(shape[1:])))


def fill(module: nn.Module, peer_key: Callable[[str], str] = lambda key: key, salt=SALT) -> None:
    """Set every floating-point entry of `module` by the rule under the peer's name for it."""
    with torch.no_grad():
        for key, entry in module.state_dict().items():
            value = rule(peer_key(key), entry.shape, salt) if entry.is_floating_point() else None
            if value is not None:
                entry.copy_(value)


def key_hash(shapes: dict) -> str:
    """The golden's `key_hash` of a mapping from peer key to shape."""
    lines = "\n".join(sorted(f"{key}\t{list(shape)}" for key, shape in shapes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def grad_stats(gradients: dict, salt=SALT) -> Tensor:
    """Rows in sorted key order: L2 norm of a gradient, and its product with randn("probe." + key); `n 2` float64."""
    rows = []
    for key in sorted(gradients):
        gradient = gradients[key].double()
        rows.append((gradient.norm().item(), (gradient * randn(f"probe.{key}", gradient.shape, salt)).sum().item()))
    return torch.tensor(rows, dtype=torch.float64)


def _gain(key):
    if re.match(r"(features[.]|Conv2d_|Conv3d_|Mixed_)", key):  # LPIPS, Inception, I3D
        return 2**0.5
    if key.endswith("project_in.weight"):
        return 0.3
    return 5.0 if key.startswith("post_encoder.") else 1.0


def _plain(text):
    try:
        return json.loads(text)
    except ValueError:
        return text
