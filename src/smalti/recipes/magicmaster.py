"""Recipes of the 18 configurations of MagicMaster (github.com/ZhichengHuang/MagicMaster), named as its config files."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from smalti.data import ImagesConfig, VideosConfig, magicmaster_images, magicmaster_videos
from smalti.discriminators import DiscriminatorConfig, PatchConfig, StyleGAN2Config
from smalti.families.magicmaster import LEVELS
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import DSQConfig, FSQConfig, QuantizerConfig
from smalti.recipes.recipe import IMAGENET, KINETICS_600, Recipe
from smalti.tokenizer import AnyTokenizerConfig, TokenizerConfig, VQGANConfig
from smalti.training.config import GANConfig, OptimizerConfig, TokenizerTraining

ALTERNATE, DROPOUT = "gan.order=alternate", "lpips.dropout=0.5"
"""Settings of all original runs: the discriminator is updated first, so that the tokenizer trains against another one
than its adaptive weight was computed for; LPIPS drops half of its differences, for it was left in training mode."""
MAGICMASTERS_WEIGHTS = "initialisation=magicmaster"
"""First weights of all original runs: torch's, and equal ones for the sub-pixels of an upsampling. Ours are zeros at
the end of every residual block."""
IN_FLOAT32 = "precision=float32"
"""Setting of the original image runs, which declare bfloat16 but never enter autocast. Ours are bfloat16."""
UNTIED = "tokenizer.quantizer.levels=[8,8,5,4,4,5]"
"""The 25,600 codes that the original DSQ of 15,360 has. There, channel 5 has the bins of channel 2; here, its own."""


def magicmaster_recipes() -> Iterator[Recipe]:
    """Yield all 18, with the scores of its README."""
    yield from _imagenet_recipes()
    yield from _kinetics_recipes()
    yield from _vqgan_recipes()


def _imagenet_recipes() -> Iterator[Recipe]:
    rows = (
        ("style2", 64_000, 128, 64, 20, "2.74"),
        ("style2", 64_000, 128, 256, 20, "3.99"),
        ("style2", 64_000, 128, 256, 200, "1.67"),
        ("patch", 64_000, 128, 256, 20, "6.46"),
        ("style2", 64_000, 256, 64, 20, "0.72"),
        ("style2", 64_000, 256, 64, 60, "0.48 at epoch 50"),
        ("style2", 15_360, 256, 64, 60, "0.55 at epoch 50"),
    )
    for network, codes, size, batch, epochs, score in rows:
        file = f"magvit_fsq_imagenet1k_{network}_d128_{codes}_{size}x{size}_{batch // 8}x8_ep{epochs}"
        yield Recipe(
            f"magicmaster-imagenet-{network}-{codes}-{size}-{batch // 8}x8-ep{epochs}",
            f"MagicMaster's 2-D MAGVIT-v2, {size} px, 8x8, FSQ {codes:,}, {network} discriminator",
            partial(imagenet_row, size=size, codes=codes, discriminator=network, batch=batch, epochs=epochs),
            f"rFID {score} on ImageNet val under magicmaster-fid (its README)",
            data=f"ImageNet-1k, batch {batch}, {epochs} epochs",
            original=f"bash tools/dist_train.sh configs/magvit/{file}.py 8",
            exact=(ALTERNATE, DROPOUT, MAGICMASTERS_WEIGHTS, IN_FLOAT32),
        )


def _kinetics_recipes() -> Iterator[Recipe]:
    rows = (
        ("fsq", 64_000, 64, 40, "59.65", 2_000),
        ("fsq", 15_360, 64, 40, "66.08", 2_000),
        ("fsq", 64_000, 64, 100, "40.65", 2_000),
        ("fsq", 64_000, 128, 100, "27.36", 200_000),
        ("dsq", 64_000, 64, 40, "58.67", 2_000),
        ("dsq", 15_360, 64, 40, "64.62 with 25,600 codes, though it says 15,360,", 2_000),
    )
    for quantizer, codes, width, epochs, score, ema_start in rows:
        name = {"fsq": "fsq", "dsq": "fdq"}[quantizer]
        file = f"magvit_v2_{name}_k600_style2_d{width}_{codes}_128x128_4x32_ep{epochs}"
        row = partial(kinetics_row, quantizer=quantizer, codes=codes, width=width, epochs=epochs, ema_start=ema_start)
        yield Recipe(
            f"magicmaster-k600-{quantizer}-{codes}-d{width}-ep{epochs}",
            f"MagicMaster's 3-D MAGVIT-v2, 17x128x128, 4x8x8, {quantizer.upper()} {codes:,}, width {width}",
            row,
            f"rFVD {score} on Kinetics-600 val under magicmaster-fvd (its README)",
            data=f"Kinetics-600, batch 128, {epochs} epochs",
            original=f"bash tools/dist_train.sh configs/magvit/{file}.py 8 (on each of 4 nodes)",
            exact=(
                ALTERNATE,
                DROPOUT,
                MAGICMASTERS_WEIGHTS,
                *([UNTIED] if (quantizer, codes) == ("dsq", 15_360) else ()),
            ),
        )


def _vqgan_recipes() -> Iterator[Recipe]:
    for network, epochs in (("patch", 20), ("style2", 20), ("style2", 40), ("style2", 60), ("style2", 100)):
        file = "vqgan_fsq_imagenet1k-256x256" if network == "patch" else "vqgan_fsq_imagenet1k_style-2_256x256"
        yield Recipe(
            f"magicmaster-vqgan-{network}-ep{epochs}",
            f"MagicMaster's VQGAN, 256 px, 16x16, FSQ 64,000, {network} discriminator",
            partial(vqgan_row, discriminator=network, epochs=epochs),
            data=f"ImageNet-1k, batch 96, {epochs} epochs",
            original=f"bash tools/dist_train.sh configs/VQGAN/{file}_ep{epochs}.py 8",
            exact=(ALTERNATE, DROPOUT, MAGICMASTERS_WEIGHTS),
        )


def magvit_image_tokenizer(codes: int = 64_000) -> TokenizerConfig:
    """Return the 2-D MAGVIT-v2: 113,492,105 parameters, without those that are stored and never run."""
    return TokenizerConfig(
        quantizer=FSQConfig(levels=LEVELS[codes]),
        width=128,
        multipliers=(1, 2, 2, 4),
        strides=((1, 2), (1, 2), (1, 2)),
        depth=4,
        decoder_depth=4,
        middle=4,
        stem_kernel=7,
        code_kernel=1,
        head_kernel=1,
        norm="frame",
        final_norm=False,
        adaptive="frame",
        adaptive_source="first",
        activate_upsample=True,
    )


def magvit_video_tokenizer(quantizer: QuantizerConfig, width: int = 64) -> TokenizerConfig:
    """Return the 3-D MAGVIT-v2, norms over the whole clip: 93,045,449 parameters at width 64, 371,950,985 at 128."""
    return magvit_image_tokenizer().replace(
        {
            "quantizer": quantizer,
            "width": width,
            "strides": ((1, 2), (2, 2), (2, 2)),
            "stem_time": 7,
            "head_time": 1,
            "norm": "clip",
            "adaptive": "clip",
            "time_kernel": 3,
            "past_kernel": "full",
            "start": "grey",
        }
    )


def imagenet_row(
    *, size: int = 128, codes: int = 64_000, discriminator: str = "style2", batch: int = 64, epochs: int = 20
) -> TokenizerTraining:
    """Return a row of the table of ImageNet results. `discriminator` is style2 or patch; `batch` counts all GPUs."""
    return _training(
        magvit_image_tokenizer(codes),
        _gan(discriminator, size, penalty=True),
        train=_imagenet("train", size),
        validation=_imagenet("val", size),
        batch=batch,
        steps=epochs * (IMAGENET // batch),
        ema=0.9998,
        ema_start=20_000,
    ).replace({"precision": "bfloat16"})


def kinetics_row(
    *, quantizer: str = "fsq", codes: int = 64_000, width: int = 64, epochs: int = 40, ema_start: int = 2_000
) -> TokenizerTraining:
    """Return a row of the table of Kinetics-600 results: 17 frames, stride 2, 128 px, 4 clips on each of 32 GPUs.

    DSQ of 15,360 codes has so many here; in MagicMaster it has 25,600 (see `smalti.families.magicmaster`).
    """
    layer = DSQConfig(levels=LEVELS[codes]) if quantizer == "dsq" else FSQConfig(levels=LEVELS[codes])
    return _training(
        magvit_video_tokenizer(layer, width),
        _gan("style2", 128, penalty=True),
        train=_kinetics("train"),
        validation=_kinetics("val"),
        batch=128,
        steps=epochs * -(-KINETICS_600 // 128),
        ema=0.9998,
        ema_start=ema_start,
    )


def vqgan_row(*, discriminator: str = "style2", epochs: int = 20) -> TokenizerTraining:
    """Return a VQGAN configuration: ImageNet 256 px, 16x16 strides, 12 images on each of 8 GPUs; no penalty."""
    # The patch configuration keeps the last, smaller batch of an epoch.
    steps_per_epoch = -(-IMAGENET // 96) if discriminator == "patch" else IMAGENET // 96
    return _training(
        VQGANConfig(quantizer=FSQConfig(levels=LEVELS[64_000])),
        _gan(discriminator, 256, penalty=False),
        train=_imagenet("train", 256),
        validation=_imagenet("val", 256),
        batch=96,
        steps=epochs * steps_per_epoch,
        ema=0.9999 if discriminator == "patch" else 0.9998,
        ema_start=20_000,
    )


def _imagenet(part: str, size: int) -> ImagesConfig:
    """Return its JSON list, beside the folders `train` and `val`."""
    return magicmaster_images(Path(f"data/ImageNet/ImageNet_{part}.json"), size)


def _kinetics(part: str) -> VideosConfig:
    """Return its list, 17 frames at a stride of 2, at 128 px."""
    root = Path(f"data/k600/{part}")
    return magicmaster_videos(Path(f"data/k600/{part}_new.txt"), 128, train=part == "train", root=root)


def _gan(name: str, size: int, *, penalty: bool) -> GANConfig:
    network: DiscriminatorConfig = PatchConfig(norm="batch")
    if name == "style2":
        network = StyleGAN2Config.parse({"size": size})
    return GANConfig(
        discriminator=network,
        weight=0.75,
        adaptive=True,
        penalty="gradient_norm" if penalty else "none",
        optimizer=_adam(4.32e-4),
    )


def _adam(lr: float) -> OptimizerConfig:
    return OptimizerConfig(lr=lr, betas=(0.5, 0.9), weight_decay=0.0, warmup=0, schedule="constant", clip=None)


def _training(
    tokenizer: AnyTokenizerConfig,
    gan: GANConfig,
    *,
    train: ImagesConfig | VideosConfig,
    validation: ImagesConfig | VideosConfig,
    batch: int,
    steps: int,
    ema: float,
    ema_start: int,
) -> TokenizerTraining:
    """Return a config with all that the 18 have in common."""
    return TokenizerTraining(
        tokenizer=tokenizer,
        data=train,
        validation=validation,
        validation_limit=1_000,
        steps=steps,
        batch_size=batch,
        weights={"l1": 1.0, "lpips": 1.0},
        lpips=LPIPSConfig(net="vgg"),
        lpips_frames="random",
        gan=gan,
        optimizer=_adam(5.4e-5),
        ema=ema,
        ema_rise="none",
        ema_start=ema_start,
        workers=12 if tokenizer.time_kernel > 1 else 4,
        log_every=100,
        save_every=10_000,
        sample_every=10_000,
        eval_every=10_000,
    )
