"""Token models: MAGVIT-v2's (arXiv 2310.05737), Open-MAGVIT2's (arXiv 2409.04410), and small ones for two cores."""

from pathlib import Path
from typing import NamedTuple

from smalti.generation import (
    AutoregressiveConfig,
    GenerationTask,
    GuidanceConfig,
    LossConfig,
    MaskedConfig,
    PredictionTask,
    SamplingConfig,
    TaskConfig,
)
from smalti.recipes.data import IMAGENET, KINETICS_600, UCF_101
from smalti.training.config import OptimizerConfig
from smalti.training.generator_config import GeneratorTraining, TaskShare

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


class Open(NamedTuple):
    """A size of Open-MAGVIT2's autoregressive models."""

    width: int
    depth: int
    heads: int
    part_layers: int
    rate: float
    epochs: int
    warmup_epochs: int
    sampling: SamplingConfig
    score: str


OPEN = {
    "b": Open(1024, 24, 16, 2, 3e-4, 300, 6, SamplingConfig(guidance=GuidanceConfig(scale=0.9)), "3.08, IS 258.26"),
    "l": Open(1280, 36, 20, 3, 3e-4, 300, 6, SamplingConfig(guidance=GuidanceConfig(scale=0.9)), "2.51, IS 271.70"),
    "xl": Open(1536, 48, 24, 4, 2.4e-4, 350, 7, SamplingConfig(guidance=GuidanceConfig(scale=0.75)), "2.33, IS 271.77"),
}
"""Their scales, in which 1 is the conditional model, are one more: 1.9, 1.9, 1.75 for the first part. For the second
they have 2.0, 1.9, 1.85, and L and XL sample the first at a temperature of 1.1."""


def open_magvit2(size: str, *, small: bool = False) -> GeneratorTraining:
    """Open-MAGVIT2's model on ImageNet tokens of 256 px: parts of 6 and 12 bits, one after the other.

    Differs in its blocks (theirs: RMSNorm, SwiGLU), in that the rate falls by a cosine to a tenth (theirs: linearly),
    and in that tokens are made beforehand.
    """
    full = OPEN[size]
    epoch = IMAGENET // 768
    model = AutoregressiveConfig(
        levels=(2,) * 18,
        groups=(tuple(range(6)), tuple(range(6, 18))),
        grid=(1, 16, 16),
        classes=1000,
        width=full.width,
        depth=full.depth,
        heads=full.heads,
        part_layers=full.part_layers,
        position="rotary",
    )
    run = GeneratorTraining(
        generator=model,
        data=TOKENS,
        loss=LossConfig(smoothing=0.0),
        sampling=full.sampling,
        steps=full.epochs * epoch,
        batch_size=768,
        optimizer=OptimizerConfig(
            lr=full.rate, betas=(0.9, 0.95), weight_decay=0.05, warmup=full.warmup_epochs * epoch, final=0.1
        ),
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
            "log_every": 10,
            "save_every": 20,
            "sample_every": 40,
            "eval_every": 40,
        }
    )


def tiny_images(steps: int = 400) -> GeneratorTraining:
    """A small masked transformer on tokens of `tiny`: images of 64 x 64."""
    video = tiny_generate(steps)
    model = video.generator.replace({"grid": (1, 8, 8), "tasks": ()})
    return video.replace({"generator": model, "tasks": (TaskShare(task=GenerationTask()),), "batch_size": 32})


def tiny_autoregressive(steps: int = 400) -> GeneratorTraining:
    """The same data and size as `tiny_generate`, token by token; it continues any beginning without learning to."""
    video = tiny_generate(steps)
    masked = video.generator
    model = AutoregressiveConfig(
        levels=masked.levels, grid=masked.grid, width=masked.width, depth=masked.depth, heads=masked.heads, dropout=0.0
    )
    return video.replace({"generator": model, "tasks": (TaskShare(task=GenerationTask()),)})


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
