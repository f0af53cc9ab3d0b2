"""Recipes of mindone's MAGVIT-v2 (github.com/mindspore-lab/mindone, examples/magvit): image, inflation, video.

Without its scrambled upsampling and, unless `OVER_TIME` is set, without its norms over time.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from smalti.data import VideosConfig, mindone_images, mindone_videos
from smalti.discriminators import Magvit3DConfig
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import LFQConfig
from smalti.recipes.recipe import IMAGENET, START, UCF_101, Recipe
from smalti.tokenizer import TokenizerConfig
from smalti.training.config import GANConfig, OptimizerConfig, TokenizerTraining

TIME_STRIDES = (2, 2, 1)
"""Temporal strides from the pixels inwards: early, where the paper reduces time late."""

DROPPED_LPIPS = "lpips.dropout=0.5"
"""Setting of the original runs, whose LPIPS is left in training mode: half of the differences are dropped."""
MINDSPORES_WEIGHTS = "initialisation=torch"
"""First weights of the original image run: MindSpore's default, which is torch's. Its video runs start from them
inflated, and so does their `init`."""
OVER_TIME = "tokenizer.norm=clip"
"""Setting of the original video runs, whose norms are over time and so depend on the future."""


def mindone_recipes() -> Iterator[Recipe]:
    """Yield its image recipe and its video recipes, with and without a discriminator."""
    yield Recipe(
        "mindone-image",
        "mindone's VQVAE-2d, 128 px, 8x8, LFQ 2^18",
        vqvae_2d,
        "PSNR 20.013, SSIM 0.5734 on ImageNet val under mindone-psnr-images (its README)",
        data="ImageNet-1k, batch 64, 2 epochs",
        original="bash scripts/run_train_vqvae_2d_parallel.sh",
        exact=(DROPPED_LPIPS, MINDSPORES_WEIGHTS),
    )
    score = "PSNR 21.6529, SSIM 0.7415 on UCF-101 test 01 under mindone-psnr (its README)"
    for gan in (False, True):
        yield Recipe(
            "mindone-video-gan" if gan else "mindone-video",
            "mindone's VQVAE-3d, 17x128x128, 4x8x8, LFQ 2^18, from mindone-image inflated"
            + (", with its discriminator" if gan else ""),
            partial(vqvae_3d, gan=gan),
            "none published" if gan else score,
            data="UCF-101 split 01, batch 128, 60 epochs",
            prepare=f"smalti inflate runs/mindone-image --out {START} --time-strides 2,2,1 --past full",
            original=f"bash scripts/run_train_vqvae_parallel.sh (--use_discriminator {gan})",
            exact=(DROPPED_LPIPS, OVER_TIME),
        )


def vqvae_2d_tokenizer() -> TokenizerConfig:
    """Return VQVAE-2d: 111,958,528 parameters. (mindone has 648 more: two 18x18 projections beside linear layers.)"""
    return TokenizerConfig(
        quantizer=LFQConfig(bits=18, temperature=0.01),
        width=128,
        multipliers=(1, 2, 2, 4),
        strides=((1, 2), (1, 2), (1, 2)),
        depth=4,
        decoder_depth=4,
        middle=4,
        norm="frame",
        adaptive="none",
        bias=False,
        start="grey",
    )


def vqvae_3d_tokenizer() -> TokenizerConfig:
    """Return VQVAE-3d: 349,247,488 parameters. It is what `smalti inflate --time-strides 2,2,1` makes of VQVAE-2d."""
    strides = tuple((time, 2) for time in TIME_STRIDES)
    return vqvae_2d_tokenizer().replace({"time_kernel": 3, "past_kernel": "full", "strides": strides})


def vqvae_2d() -> TokenizerTraining:
    """Train VQVAE-2d on ImageNet at 128 px, as its script for 8 devices: batch 64, 2 epochs, no EMA."""
    return TokenizerTraining(
        tokenizer=vqvae_2d_tokenizer(),
        data=mindone_images(Path("datasets/ImageNet/train"), 128),
        validation=mindone_images(Path("datasets/ImageNet/validation"), 128),
        validation_limit=1_000,
        steps=2 * (IMAGENET // 64),
        batch_size=64,
        accumulate=8,
        weights={"l1": 10.0, "lpips": 0.1, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25},
        lpips=LPIPSConfig(net="vgg"),
        # Warm-up of 1,000 micro-steps there, 8 to an update.
        optimizer=OptimizerConfig(lr=2e-5, betas=(0.9, 0.999), weight_decay=0.01, warmup=125, final=0.005, clip=1.0),
        ema=0.0,
        precision="bfloat16",
        workers=8,
        log_every=50,
        save_every=2_000,
        sample_every=2_000,
        eval_every=2_000,
    )


def vqvae_3d(*, gan: bool = False) -> TokenizerTraining:
    """Train VQVAE-3d on UCF-101, 17x128x128, from the inflated image tokenizer (`init`): batch 128, 60 epochs.

    With `gan`, its VQGAN training: a 3-D discriminator, hinge, weight 0.1, LeCAM 0.001. Ours is the paper's (its blur
    mixes all channels and its norms are not in the paper); LeCAM's anchors follow the logits (there they stay 0).
    """
    base = vqvae_2d()
    optimizer = base.optimizer.replace({"warmup": 62})  # 1,000 micro-steps, 16 to an update
    loss = GANConfig(discriminator=Magvit3DConfig(), weight=0.1, lecam=0.001, optimizer=optimizer)
    steps = 60 * (UCF_101 // 128)
    return base.replace(
        {
            "tokenizer": vqvae_3d_tokenizer(),
            "data": _ucf("train", "random"),
            "validation": _ucf("test", "center"),
            "steps": steps,
            "batch_size": 128,
            "accumulate": 16,
            "optimizer": optimizer,
            "ema": 0.9999,
            "ema_rise": "exponential",
            "ema_moves": 16,
            "gan": loss if gan else None,
            "workers": 12,
            "save_every": 500,
            "sample_every": 500,
            "eval_every": 500,
        }
    )


def _ucf(part: str, sampling: Literal["random", "center"]) -> VideosConfig:
    """Return the first official split of UCF-101, 17 frames, at 128 px."""
    path, root = Path(f"datasets/ucf101/{part}list01.txt"), Path("datasets/ucf101/UCF-101")
    return mindone_videos(path, 128, sampling=sampling, root=root)
