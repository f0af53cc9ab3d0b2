"""What the switches of a training step give: seconds of a step, and the most memory that it held, against none of them.

    python -m benchmarks training_memory

Steps take turns in one process; memory is that of a fresh process for each (on a GPU, of its allocator).
"""

import json
import os
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.measure import CPU, TINY, child, fastest, growth_mb
from benchmarks.speed import video
from smalti.allocator import keep_freed_memory
from smalti.recipes import find
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.memory import SavedBytes
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.training.tokenizer_step import step

CASES = {"image": (4, 1, 256, 256), "tiny-video": (8, 17, 128, 128)}
"""Recipes; rows, frames, height and width of a batch."""
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "none": {},
    "checkpoint_activations": {"checkpoint_activations": True},
    "fast_kernels": {"fast_kernels": True},
}
"""Fields of the config; the last is for a GPU alone."""


def shape_of(name: str) -> tuple[int, ...]:
    """Rows, frames, height and width of a batch."""
    return (1, 1, 32, 32) if os.environ.get(TINY) else CASES[name]


def started(name: str, switch: str, device: torch.device) -> tuple[TrainState, Tensor]:
    """The start of a recipe, without LPIPS and discriminator, with a switch; a batch."""
    config = find(name)
    assert isinstance(config, TokenizerTraining)
    weights = {loss: weight for loss, weight in config.weights.items() if loss != "lpips"}
    plain = {"lpips": None, "gan": None, "weights": weights, "precision": "float32", "held_out": 0}
    state = start_tokenizer(config.replace({**plain, **SWITCHES[switch]}), World(0, 1, device))
    rows, *size = shape_of(name)
    pixels = video(*size).expand(rows, -1, -1, -1, -1).contiguous().to(device)
    return state, pixels


def held_mb(name: str, switch: str, device: torch.device) -> float:
    """What a step holds for the way back."""
    state, pixels = started(name, switch, device)
    with SavedBytes([state.tokenizer]) as saved:
        step(state, pixels)
    return saved.peak / 1e6


def memory_mb(name: str, switch: str, device: torch.device) -> float:
    """The most memory that the first step held above what was held before it: gradients and moments, too."""
    begun = started(name, switch, device)
    return growth_mb(lambda: step(*begun), device)


def measure(device: torch.device = CPU) -> tuple[str, list[dict[str, object]]]:
    """A row for each recipe and switch."""
    keep_freed_memory()
    rows: list[dict[str, object]] = []
    on_cpu = device.type == "cpu"
    switches = [switch for switch in SWITCHES if not on_cpu or switch != "fast_kernels"]
    for name in list(CASES)[: 1 if os.environ.get(TINY) else None]:
        begun = {switch: started(name, switch, device) for switch in switches}
        steps = {switch: lambda one=one: step(*one) for switch, one in begun.items()}
        seconds = fastest(steps, rounds=2, device=device)
        for switch in switches:
            most = child(__name__, name, switch)["mb"] if on_cpu else memory_mb(name, switch, device)
            row = {"step": f"{name}, {' x '.join(map(str, shape_of(name)))}", "switch": switch, "s": seconds[switch]}
            row |= {"times as long": seconds[switch] / seconds["none"], "held, MB": held_mb(name, switch, device)}
            rows.append(row | {"peak, MB": most})
    note = "training steps in float32 without LPIPS and discriminator; what a step holds for the way back, and the most"
    return f"{note} memory that the first step took", rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"mb": memory_mb(sys.argv[1], sys.argv[2], CPU)}))
