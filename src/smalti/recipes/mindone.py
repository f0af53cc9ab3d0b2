"""mindone's MAGVIT-v2 (github.com/mindspore-lab/mindone, examples/magvit): image, inflation, video, both without its
scrambled upsampling and, unless `OVER_TIME` is set, without its norms over time."""

from smalti.discriminators import Magvit3DConfig
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import LFQConfig
from smalti.recipes.data import IMAGENET, UCF_101, ucf
from smalti.recipes.data import mindone_imagenet as imagenet
from smalti.tokenizer import TokenizerConfig
from smalti.training.config import GANConfig, OptimizerConfig, TokenizerTraining

TIME_STRIDES = (2, 2, 1)
"""From the pixels inwards: early, where the paper reduces time late."""

IN_TRAINING_MODE = "lpips.dropout=0.5"
"""Its LPIPS is left in training mode: half of the differences are dropped."""
OVER_TIME = "tokenizer.norm=clip"
"""Its video norms are over time, and see the future."""


def tokenizer() -> TokenizerConfig:
    """VQVAE-2d: 111,958,528 parameters. (mindone has 648 more: two 18x18 projections beside linear layers.)"""
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
    """VQVAE-3d: 349,247,488 parameters. It is what `smalti inflate --time-strides 2,2,1` makes of VQVAE-2d."""
    strides = tuple((time, 2) for time in TIME_STRIDES)
    return tokenizer().replace({"time_kernel": 3, "past_kernel": "full", "strides": strides})


def vqvae_2d() -> TokenizerTraining:
    """VQVAE-2d on ImageNet at 128 px, as its script for 8 devices: batch 64, 2 epochs, no EMA."""
    return TokenizerTraining(
        tokenizer=tokenizer(),
        data=imagenet("train", 128),
        validation=imagenet("val", 128),
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
    """VQVAE-3d on UCF-101, 17x128x128, from the inflated image tokenizer (`init`): batch 128, 60 epochs.

    With `gan`, its VQGAN training: a 3-D discriminator, hinge, weight 0.1, LeCAM 0.001. Ours is the paper's (its
    blur mixes all channels and its norms are not in the paper), LeCAM's anchors follow the logits (there: 0 for ever).
    """
    base = vqvae_2d()
    optimizer = base.optimizer.replace({"warmup": 62})  # 1,000 micro-steps, 16 to an update
    loss = GANConfig(discriminator=Magvit3DConfig(), weight=0.1, lecam=0.001, optimizer=optimizer)
    steps = 60 * (UCF_101 // 128)
    return base.replace(
        {
            "tokenizer": vqvae_3d_tokenizer(),
            "data": ucf("train"),
            "validation": ucf("test"),
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
