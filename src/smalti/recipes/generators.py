"""Recipes of token models: MAGVIT-v2's (arXiv 2310.05737), Open-MAGVIT2's (arXiv 2409.04410), and small ones."""

from collections.abc import Iterator
from functools import partial
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
from smalti.recipes.recipe import IMAGENET, KINETICS_600, UCF_101, Recipe
from smalti.training.config import OptimizerConfig
from smalti.training.generator_config import GeneratorTraining, TaskShare

TOKENS = Path("data/tokens")
"""Token set of a recipe unless `data` says otherwise."""


class PaperGenerator(NamedTuple):
    """A row of the tables of MAGVIT-v2's paper."""

    about: str
    score: str
    data: str
    grid: tuple[int, int, int]
    classes: int
    rows: int
    """Rows of the token set, one for each image or clip."""
    epochs: int
    batch: int
    task: TaskConfig
    sampling: SamplingConfig


_GUIDED = SamplingConfig(steps=64, noise=15.0, guidance=GuidanceConfig(scale=25.0, schedule="power_cosine"))
_VIDEO = SamplingConfig(steps=24, noise=32.0)
PAPER_GENERATORS = {
    "imagenet-256": PaperGenerator(
        "ImageNet tokens, 256 px", "gFID 3.65 unguided, 1.78 guided, 64 steps", "ImageNet-1k, batch 1024, 1080 epochs",
        (1, 16, 16), 1000, IMAGENET, 1080, 1024, GenerationTask(), _GUIDED,
    ),
    "imagenet-512": PaperGenerator(
        "ImageNet tokens, 512 px", "gFID 3.07 unguided, 1.91 guided, 64 steps", "ImageNet-1k, batch 1024, 1080 epochs",
        (1, 16, 16), 1000, IMAGENET, 1080, 1024, GenerationTask(), _GUIDED,
    ),
    "k600": PaperGenerator(
        "Kinetics-600 tokens, 128 px", "FVD 5.2 at 12 steps, 4.3 at 24, from 5 frames",
        "Kinetics-600, batch 256, 360 epochs", (5, 16, 16), 0, KINETICS_600, 360, 256, PredictionTask(frames=5), _VIDEO,
    ),
    "ucf101": PaperGenerator(
        "UCF-101 tokens, 128 px", "FVD 58 at 24 steps, of a class",
        "UCF-101, 2000 epochs of batch 256, as MAGVIT (the paper says none)",
        (5, 16, 16), 101, UCF_101, 2000, 256, GenerationTask(), _VIDEO,
    ),
}  # fmt: skip


class OpenMagvit2Size(NamedTuple):
    """A size of Open-MAGVIT2's autoregressive models."""

    width: int
    depth: int
    heads: int
    part_layers: int
    lr: float
    epochs: int
    warmup_epochs: int
    guidance: float
    score: str


OPEN_MAGVIT2_SIZES = {
    "b": OpenMagvit2Size(1024, 24, 16, 2, 3e-4, 300, 6, 0.9, "3.08, IS 258.26"),
    "l": OpenMagvit2Size(1280, 36, 20, 3, 3e-4, 300, 6, 0.9, "2.51, IS 271.70"),
    "xl": OpenMagvit2Size(1536, 48, 24, 4, 2.4e-4, 350, 7, 0.75, "2.33, IS 271.77"),
}
"""Sizes by name. The published guidance scales, where 1 is the conditional model, are one more: 1.9, 1.9, 1.75 for the
first sub-token. For the second they are 2.0, 1.9, 1.85, and L and XL sample the first at a temperature of 1.1."""


def generator_recipes() -> Iterator[Recipe]:
    """Yield the recipes of token models, which train on token sets."""
    about = "images from tokens, in minutes on a CPU, on a set of tiny (64x64); of its classes if it has any"
    yield Recipe("tiny-generate-images", about, tiny_generate_images, small=tiny_generate_images)
    about = "video from tokens, in minutes on a CPU, on a set of tiny-video (17x64x64)"
    yield Recipe("tiny-generate", about, tiny_generate, small=tiny_generate)
    about = "the same, token by token, each in two sub-tokens"
    yield Recipe("tiny-generate-autoregressive", about, tiny_autoregressive, small=tiny_autoregressive)
    for name, row in PAPER_GENERATORS.items():
        yield Recipe(
            f"paper-generate-{name}",
            f"MAGVIT-v2's masked transformer on {row.about}, LFQ 2^18",
            partial(paper_generator, row),
            f"{row.score} (arXiv 2310.05737)",
            data=row.data,
        )
    for name, size in OPEN_MAGVIT2_SIZES.items():
        yield Recipe(
            f"open-magvit2-generate-{name}",
            f"Open-MAGVIT2's autoregressive {name.upper()} on ImageNet tokens, 256 px, LFQ 2^18",
            partial(open_magvit2, size),
            f"gFID {size.score} guided (arXiv 2409.04410)",
            data=f"ImageNet-1k, batch 768, {size.epochs} epochs",
        )


def paper_generator(row: PaperGenerator) -> GeneratorTraining:
    """Return a row of the paper: L, two sub-tokens of 512 values, AdamW as in MAGVIT.

    The paper does not say its learning rate and warm-up for tokens; these are MAGVIT's.
    """
    return GeneratorTraining(
        generator=MaskedConfig(levels=(2,) * 18, grid=row.grid, classes=row.classes),
        data=TOKENS,
        tasks=(TaskShare(task=row.task),),
        sampling=row.sampling,
        steps=row.epochs * (row.rows // row.batch),
        batch_size=row.batch,
        precision="bfloat16",
        log_every=100,
        save_every=5_000,
        sample_every=5_000,
        eval_every=5_000,
    )


def open_magvit2(size: OpenMagvit2Size) -> GeneratorTraining:
    """Return Open-MAGVIT2's model on ImageNet tokens of 256 px: sub-tokens of 6 and 12 bits, one after the other.

    Differs in its blocks (the original: RMSNorm, SwiGLU), in that the learning rate falls by a cosine to a tenth (the
    original: linearly), and in that tokens are made beforehand.
    """
    epoch = IMAGENET // 768
    return GeneratorTraining(
        generator=AutoregressiveConfig(
            levels=(2,) * 18,
            groups=(tuple(range(6)), tuple(range(6, 18))),
            grid=(1, 16, 16),
            classes=1000,
            width=size.width,
            depth=size.depth,
            heads=size.heads,
            part_layers=size.part_layers,
            position="rotary",
        ),
        data=TOKENS,
        loss=LossConfig(smoothing=0.0),
        sampling=SamplingConfig(guidance=GuidanceConfig(scale=size.guidance)),
        steps=size.epochs * epoch,
        batch_size=768,
        optimizer=OptimizerConfig(
            lr=size.lr, betas=(0.9, 0.95), weight_decay=0.05, warmup=size.warmup_epochs * epoch, final=0.1
        ),
        precision="bfloat16",
        log_every=100,
        save_every=5_000,
        sample_every=5_000,
        eval_every=5_000,
    )


def tiny_generate_images(steps: int = 400) -> GeneratorTraining:
    """Return a small masked transformer on tokens of `tiny`: images of 64 x 64."""
    video = tiny_generate(steps)
    model = video.generator.replace({"grid": (1, 8, 8), "tasks": ()})
    return video.replace({"generator": model, "tasks": (TaskShare(task=GenerationTask()),), "batch_size": 32})


def tiny_autoregressive(steps: int = 400) -> GeneratorTraining:
    """Return one of the size of `tiny_generate`, token by token; it continues any beginning without learning to."""
    video = tiny_generate(steps)
    masked = video.generator
    model = AutoregressiveConfig(
        levels=masked.levels, grid=masked.grid, width=masked.width, depth=masked.depth, heads=masked.heads, dropout=0.0
    )
    return video.replace({"generator": model, "tasks": (TaskShare(task=GenerationTask()),)})


def tiny_generate(steps: int = 400) -> GeneratorTraining:
    """Return a small masked transformer on tokens of `tiny-video`: 17 x 64 x 64, whole or from a first frame."""
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
