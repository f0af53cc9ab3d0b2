"""A short training run with its curves: the recipe `image`, with its discriminator, on the bundled photographs.

Without LPIPS, whose weights may be absent. It says that training works and how fast, not what a long run reaches.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from smalti.data.bundled import photos
from smalti.files import read_rows
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.config import TokenizerTraining

STEPS = 400
CURVES = ("total", "psnr", "validation/psnr", "validation/ssim")


def config(*, tiny: bool) -> TokenizerTraining:
    """The run; `tiny`, the recipe's small form of 20 steps."""
    if tiny:
        return find("magicmaster-imagenet-style2-64000-128-8x8-ep20", tiny=True).replace(
            {"steps": 20, "eval_every": 10}
        )
    full = find("image")
    assert full.gan is not None
    changes: dict[str, object] = {
        "data": full.data.replace({"path": photos("train"), "scale": (0.35, 0.7), "in_memory": 64}),
        "validation": find("tiny").validation,
        "held_out": 0,
        "steps": STEPS,
        "batch_size": 64,
        "weights": {"l1": 1.0},
        "lpips": None,
        "gan": full.gan.replace({"start": STEPS // 2, "ramp": STEPS // 8}),
        "optimizer": full.optimizer.replace({"warmup": STEPS // 8}),
        "workers": 8,
        "log_every": STEPS // 40,
        "save_every": STEPS,
        "sample_every": STEPS,
        "eval_every": STEPS // 8,
    }
    return full.replace(changes)


def measure(device: torch.device, *, tiny: bool = False) -> dict[str, object]:
    """Train, and give the curves: for each name the steps and the values."""
    settings = config(tiny=tiny)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(settings, out, device=str(device))
        lines = list(read_rows(out / "log.jsonl"))
    return {
        "steps": settings.steps,
        "batch": settings.batch_size,
        "size": settings.data.plain()["size"],
        "precision": settings.precision,
        "seconds": time.monotonic() - began,
        "steps_per_second": [n["steps_per_second"] for n in lines if "steps_per_second" in n][-1],
        "skipped": sum(bool(n.get("skipped")) for n in lines),
        "curves": curves_of(lines, CURVES),
    }


def curves_of(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """The steps and the values of each name in the lines of a log."""
    having = {name: [line for line in lines if name in line] for name in names}
    return {name: {"step": [n["step"] for n in own], "value": [n[name] for n in own]} for name, own in having.items()}


def draw(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """A picture of the curves, one beside the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.plot(curve["step"], curve["value"], marker=".")
        axes.set(title=name, xlabel="step")
    figure.savefig(path)
