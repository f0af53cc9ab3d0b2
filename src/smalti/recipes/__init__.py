"""Recipes: whole training configs by name, each with what it is, its published score, and a tiny form for two cores.

A recipe is a function with parameters, not a copy of another: variants are arguments.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from smalti.errors import ConfigError
from smalti.recipes import generate, magicmaster, mindone
from smalti.recipes.image import FOLDER, image, paper_image, tiny
from smalti.recipes.shrink import shrink
from smalti.recipes.video import paper_video, tiny_video, video
from smalti.text import nearest
from smalti.training.config import TokenizerTraining
from smalti.training.generator_config import GeneratorTraining

AnyTraining = TokenizerTraining | GeneratorTraining

START = "start"
"""The folder of an inflated tokenizer, in the commands."""

DEMO_STEPS = (2300, 320)
"""Image and video steps of `smalti demo`: within its six minutes on two cores."""


@dataclass(frozen=True)
class Recipe:
    """A named config and what is known of it."""

    name: str
    about: str
    score: str
    """The published score, with its source; or that none is published."""
    config: Callable[[], AnyTraining]
    tiny: Callable[[], AnyTraining]
    """The same run, shrunk to minutes on two cores."""
    data: str = ""
    """The published data and length of the run."""
    before: str = ""
    """The command that makes the tokenizer that it starts from."""
    theirs: str = ""
    """The command of its authors, where it is theirs."""
    as_theirs: tuple[str, ...] = ()
    """Settings that make the run what theirs is, where ours is the better one."""
    kind: Literal["tokenizer", "generator"] = "tokenizer"
    """What is trained."""

    @property
    def command(self) -> str:
        """How it is run; without FOLDER it looks where its authors keep their data."""
        if self.kind == "generator":
            return f"smalti train {self.name} --set data=SET"
        where = " --set data.path=FOLDER" if getattr(self.config().data, "path", None) == FOLDER else ""
        return f"smalti train {self.name}{where}{f' --set init={START}' if self.before else ''}"


def catalogue() -> tuple[Recipe, ...]:
    """All recipes."""
    magicmaster_ = (*_magicmaster_imagenet(), *_magicmaster_kinetics(), *_magicmaster_vqgan())
    return (*_ours(), *_paper(), *_mindone(), *magicmaster_, *_generators())


def _ours() -> Iterator[Recipe]:
    none = "none published"
    yield Recipe("tiny", "images, in a minute on a CPU, on the photographs that ship with smalti", none, tiny, tiny)
    yield Recipe(
        "tiny-video", "video, in minutes on a CPU, on the videos that ship with smalti", none, tiny_video, tiny_video
    )
    image_steps, video_steps = DEMO_STEPS
    yield Recipe("demo-image", "the image part of `smalti demo`", none, lambda: tiny(image_steps), lambda: tiny(8))
    yield Recipe(
        "demo-video", "the video part of `smalti demo`", none, lambda: tiny_video(video_steps), lambda: tiny_video(8)
    )
    yield Recipe("image", "images at 128 px, 8x8, FSQ 64,000: our default", none, image, tiny)
    yield Recipe("video", "video at 17x128x128, 4x8x8, FSQ 64,000: our default", none, video, tiny_video)


def _paper() -> Iterator[Recipe]:
    """MAGVIT-v2, arXiv 2310.05737."""
    scores = {
        128: "rFID 1.15, LPIPS 0.0685 on ImageNet val (arXiv 2310.05737, table 5a)",
        256: "none published for the tokenizer; gFID 1.78 guided (arXiv 2310.05737)",
        512: "none published for the tokenizer; gFID 1.91 guided (arXiv 2310.05737)",
    }
    for size, score in scores.items():
        stride = max(8, size // 16)
        yield _published(
            f"paper-image-{size}",
            f"MAGVIT-v2's image tokenizer, {size} px, {stride}x{stride}, LFQ 2^18",
            score,
            partial(paper_image, size),
            data="ImageNet-1k, batch 256, 270 epochs",
        )
    yield _published(
        "paper-video-128",
        "MAGVIT-v2's video tokenizer, 17x128x128, 4x8x8, LFQ 2^18",
        "rFVD 8.62, LPIPS 0.0537 on UCF-101 (arXiv 2310.05737, table 5b)",
        paper_video,
        data="Kinetics-600, batch 256, 190 epochs",
        before=f"smalti inflate runs/paper-image-128 --out {START} --time-strides 1,2,2 --past full",
    )


def _mindone() -> Iterator[Recipe]:
    yield _published(
        "mindone-image",
        "mindone's VQVAE-2d, 128 px, 8x8, LFQ 2^18",
        "PSNR 20.013, SSIM 0.5734 on ImageNet val under mindone-psnr-images (its README)",
        mindone.vqvae_2d,
        data="ImageNet-1k, batch 64, 2 epochs",
        theirs="bash scripts/run_train_vqvae_2d_parallel.sh",
        as_theirs=(mindone.IN_TRAINING_MODE,),
    )
    data = "UCF-101 split 01, batch 128, 60 epochs"
    before = f"smalti inflate runs/mindone-image --out {START} --time-strides 2,2,1 --past full"
    as_theirs = (mindone.IN_TRAINING_MODE, mindone.OVER_TIME)
    about = "mindone's VQVAE-3d, 17x128x128, 4x8x8, LFQ 2^18, from mindone-image inflated"
    yield _published(
        "mindone-video",
        about,
        "PSNR 21.6529, SSIM 0.7415 on UCF-101 test 01 under mindone-psnr (its README)",
        mindone.vqvae_3d,
        data=data,
        before=before,
        theirs="bash scripts/run_train_vqvae_parallel.sh (--use_discriminator False)",
        as_theirs=as_theirs,
    )
    yield _published(
        "mindone-video-gan",
        f"{about}, with its discriminator",
        "none published",
        partial(mindone.vqvae_3d, gan=True),
        data=data,
        before=before,
        theirs="bash scripts/run_train_vqvae_parallel.sh (--use_discriminator True)",
        as_theirs=as_theirs,
    )


def _magicmaster_imagenet() -> Iterator[Recipe]:
    rows = (
        ("style2", 64_000, 128, 64, 20, "2.74"),
        ("style2", 64_000, 128, 256, 20, "3.99"),
        ("style2", 64_000, 128, 256, 200, "1.67"),
        ("patch", 64_000, 128, 256, 20, "6.46"),
        ("style2", 64_000, 256, 64, 20, "0.72"),
        ("style2", 64_000, 256, 64, 60, "0.48 at epoch 50"),
        ("style2", 15_360, 256, 64, 60, "0.55 at epoch 50"),
    )
    for discriminator, codes, size, batch, epochs, score in rows:
        file = f"magvit_fsq_imagenet1k_{discriminator}_d128_{codes}_{size}x{size}_{batch // 8}x8_ep{epochs}"
        yield _published(
            f"magicmaster-imagenet-{discriminator}-{codes}-{size}-{batch // 8}x8-ep{epochs}",
            f"MagicMaster's 2-D MAGVIT-v2, {size} px, 8x8, FSQ {codes:,}, {discriminator} discriminator",
            f"rFID {score} on ImageNet val under magicmaster-fid (its README)",
            partial(
                magicmaster.imagenet_row,
                size=size,
                codes=codes,
                discriminator=discriminator,
                batch=batch,
                epochs=epochs,
            ),
            data=f"ImageNet-1k, batch {batch}, {epochs} epochs",
            theirs=f"bash tools/dist_train.sh configs/magvit/{file}.py 8",
            as_theirs=(*magicmaster.AS_THEIRS, magicmaster.IN_FLOAT32),
        )


def _magicmaster_kinetics() -> Iterator[Recipe]:
    rows = (
        ("fsq", 64_000, 64, 40, "59.65", 2_000),
        ("fsq", 15_360, 64, 40, "66.08", 2_000),
        ("fsq", 64_000, 64, 100, "40.65", 2_000),
        ("fsq", 64_000, 128, 100, "27.36", 200_000),
        ("dsq", 64_000, 64, 40, "58.67", 2_000),
        ("dsq", 15_360, 64, 40, "64.62 with 25,600 codes, though it says 15,360,", 2_000),
    )
    for quantizer, codes, width, epochs, score, ema_start in rows:
        named = {"fsq": "fsq", "dsq": "fdq"}[quantizer]
        file = f"magvit_v2_{named}_k600_style2_d{width}_{codes}_128x128_4x32_ep{epochs}"
        more = (magicmaster.UNTIED,) if (quantizer, codes) == ("dsq", 15_360) else ()
        yield _published(
            f"magicmaster-k600-{quantizer}-{codes}-d{width}-ep{epochs}",
            f"MagicMaster's 3-D MAGVIT-v2, 17x128x128, 4x8x8, {quantizer.upper()} {codes:,}, width {width}",
            f"rFVD {score} on Kinetics-600 val under magicmaster-fvd (its README)",
            partial(
                magicmaster.kinetics_row,
                quantizer=quantizer,
                codes=codes,
                width=width,
                epochs=epochs,
                ema_start=ema_start,
            ),
            data=f"Kinetics-600, batch 128, {epochs} epochs",
            theirs=f"bash tools/dist_train.sh configs/magvit/{file}.py 8 (on each of 4 nodes)",
            as_theirs=(*magicmaster.AS_THEIRS, *more),
        )


def _magicmaster_vqgan() -> Iterator[Recipe]:
    for discriminator, epochs in (("patch", 20), ("style2", 20), ("style2", 40), ("style2", 60), ("style2", 100)):
        file = "vqgan_fsq_imagenet1k-256x256" if discriminator == "patch" else "vqgan_fsq_imagenet1k_style-2_256x256"
        yield _published(
            f"magicmaster-vqgan-{discriminator}-ep{epochs}",
            f"MagicMaster's VQGAN, 256 px, 16x16, FSQ 64,000, {discriminator} discriminator",
            "none published",
            partial(magicmaster.vqgan_row, discriminator=discriminator, epochs=epochs),
            data=f"ImageNet-1k, batch 96, {epochs} epochs",
            theirs=f"bash tools/dist_train.sh configs/VQGAN/{file}_ep{epochs}.py 8",
            as_theirs=magicmaster.AS_THEIRS,
        )


def _generators() -> Iterator[Recipe]:
    """Token models, trained on token sets."""
    images, video, in_turn = generate.tiny_images, generate.tiny_generate, generate.tiny_autoregressive
    none = "none published"
    about = "images from tokens, in minutes on a CPU, on a set of tiny (64x64); with classes by generator.classes"
    yield Recipe("tiny-generate-pictures", about, none, images, images, kind="generator")
    about = "video from tokens, in minutes on a CPU, on a set of tiny-video (17x64x64)"
    yield Recipe("tiny-generate", about, none, video, video, kind="generator")
    about = "the same, token by token, each in two parts"
    yield Recipe("tiny-generate-autoregressive", about, none, in_turn, in_turn, kind="generator")
    source = "(arXiv 2310.05737)"
    rows = (
        ("imagenet-256", 256, "ImageNet", "gFID 3.65 unguided, 1.78 guided, 64 steps"),
        ("imagenet-512", 512, "ImageNet", "gFID 3.07 unguided, 1.91 guided, 64 steps"),
        ("k600", 128, "Kinetics-600", "FVD 5.2 at 12 steps, 4.3 at 24, from 5 frames"),
        ("ucf101", 128, "UCF-101", "FVD 58 at 24 steps, of a class"),
    )
    for name, size, data, score in rows:
        yield _generator(
            f"paper-generate-{name}",
            f"MAGVIT-v2's masked transformer on {data} tokens, {size} px, LFQ 2^18",
            f"{score} {source}",
            partial(generate.paper, name),
            generate.PAPER[name].data,
        )
    for size_name, row in generate.OPEN.items():
        yield _generator(
            f"open-magvit2-generate-{size_name}",
            f"Open-MAGVIT2's autoregressive {size_name.upper()} on ImageNet tokens, 256 px, LFQ 2^18",
            f"gFID {row.score} guided (arXiv 2409.04410)",
            partial(generate.open_magvit2, size_name),
            f"ImageNet-1k, batch 768, {row.epochs} epochs",
        )


def _generator(name: str, about: str, score: str, config: partial[GeneratorTraining], data: str) -> Recipe:
    return Recipe(name, about, score, config, partial(config, small=True), data, kind="generator")


def _published(
    name: str,
    about: str,
    score: str,
    config: Callable[[], TokenizerTraining],
    *,
    data: str,
    before: str = "",
    theirs: str = "",
    as_theirs: tuple[str, ...] = (),
) -> Recipe:
    return Recipe(name, about, score, config, lambda: shrink(config()), data, before, theirs, as_theirs)


def find(name: str, tiny: bool = False) -> AnyTraining:
    """The config of a recipe. Raises ConfigError with the nearest name."""
    recipes = {recipe.name: recipe for recipe in catalogue()}
    if name not in recipes:
        raise ConfigError(f"{name}: no such recipe{nearest(name, recipes)} (there are: {', '.join(recipes)})")
    return recipes[name].tiny() if tiny else recipes[name].config()
