"""Token models: MAGVIT-v2's (arXiv 2310.05737, section 4), and a small one for two cores."""

from pathlib import Path
from typing import NamedTuple

from smalti.generate import (
    GenerationTask,
    GuidanceConfig,
    MaskedConfig,
    PredictionTask,
    SamplingConfig,
    TaskConfig,
)
from smalti.recipes.data import IMAGENET, KINETICS_600, UCF_101
from smalti.train.config import OptimizerConfig
from smalti.train.generator_config import GeneratorTraining, TaskShare

TOKENS = Path("data/tokens")
"""Where a recipe looks unless `data` says otherwise."""


class Paper(NamedTuple):
    """A row of the paper's tables."""

    grid: tuple[int, int, int]
    classes: int
    samples: int
    epochs: int
    batch: int
    task: TaskConfig
    sampling: SamplingConfig
    data: str


_GUIDED = GuidanceConfig(scale=25.0, schedule="power_cosine")
PAPER = {
    "imagenet-256": Paper(
        (1, 16, 16), 1000, IMAGENET, 1080, 1024, GenerationTask(),
        SamplingConfig(steps=64, noise=15.0, guidance=_GUIDED), "ImageNet-1k, batch 1024, 1080 epochs",
    ),
    "imagenet-512": Paper(
        (1, 16, 16), 1000, IMAGENET, 1080, 1024, GenerationTask(),
        SamplingConfig(steps=64, noise=15.0, guidance=_GUIDED), "ImageNet-1k, batch 1024, 1080 epochs",
    ),
    "k600": Paper(
        (5, 16, 16), 0, KINETICS_600, 360, 256, PredictionTask(frames=5),
        SamplingConfig(steps=24, noise=32.0), "Kinetics-600, batch 256, 360 epochs",
    ),
    "ucf101": Paper(
        (5, 16, 16), 101, UCF_101, 2000, 256, GenerationTask(),
        SamplingConfig(steps=24, noise=32.0), "UCF-101, 2000 epochs of batch 256, as MAGVIT (the paper says none)",
    ),
}  # fmt: skip


def paper(row: str, *, small: bool = False) -> GeneratorTraining:
    """A row: L, two parts of 512 values, AdamW as in MAGVIT. `small` is the same run, narrow and short.

    The paper does not say its rate and warm-up for tokens; these are MAGVIT's.
    """
    full = PAPER[row]
    model = MaskedConfig(levels=(2,) * 18, grid=full.grid, classes=full.classes)
    steps = full.epochs * (full.samples // full.batch)
    run = GeneratorTraining(
        generator=model,
        data=TOKENS,
        tasks=(TaskShare(task=full.task),),
        sampling=full.sampling,
        steps=steps,
        batch_size=full.batch,
        precision="bfloat16",
        log_every=100,
        save_every=5_000,
        sample_every=5_000,
        eval_every=5_000,
    )
    return _small(run) if small else run


def _small(full: GeneratorTraining) -> GeneratorTraining:
    """Grid and levels stay, for the set must fit."""
    return full.replace(
        {
            "generator": full.generator.replace({"width": 32, "depth": 2, "heads": 2}),
            "steps": 40,
            "batch_size": 4,
            "optimizer": full.optimizer.replace({"lr": 1e-3, "warmup": 10}),
            "sampling": full.sampling.replace({"steps": 4}),
            "precision": "float32",
            "workers": 0,
            "log_every": 10,
            "save_every": 20,
            "sample_every": 40,
            "eval_every": 40,
        }
    )


def tiny_generate(steps: int = 400) -> GeneratorTraining:
    """A small masked transformer on tokens of `tiny-video`: 17 frames of 64 x 64, whole or from a first frame."""
    return GeneratorTraining(
        generator=MaskedConfig(
            levels=(8, 8, 8, 5, 5, 5),
            grid=(5, 8, 8),
            tasks=("generation", "prediction"),
            width=192,
            depth=6,
            heads=4,
            dropout=0.0,
        ),
        data=TOKENS,
        tasks=(TaskShare(task=GenerationTask()), TaskShare(task=PredictionTask(frames=1))),
        steps=steps,
        batch_size=8,
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.96), weight_decay=0.045, warmup=min(50, steps), final=0.0),
        ema=0.99,
        save_every=max(1, steps // 4),
        sample_every=max(1, steps // 2),
        eval_every=max(1, steps // 4),
    )
