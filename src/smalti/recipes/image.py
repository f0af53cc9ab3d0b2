"""Image tokenizers."""

from pathlib import Path

from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import PatchConfig, StyleGAN2Config
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import FSQConfig, LFQConfig
from smalti.recipes.data import IMAGENET
from smalti.tokenizer import TokenizerConfig
from smalti.training.config import GANConfig, OptimizerConfig, TokenizerTraining

FOLDER = Path("data/train")
"""Where a recipe looks unless `data.path` says otherwise."""


def small_image_tokenizer() -> TokenizerConfig:
    """1.2 M parameters for two cores: 8x8 strides, 64,000 codes, all blocks at the resolution of the tokens.

    `smalti compare` compares it with other stems, norms, quantizers and depths.
    """
    return TokenizerConfig(
        quantizer=FSQConfig(levels=(8, 8, 8, 5, 5, 5), temperature=0.1, losses=("batch_entropy",)),
        patch=8,
        width=96,
        multipliers=(1, 1),
        strides=((1, 1),),
        depth=1,
        decoder_depth=1,
        middle=0,
    )


def tiny(steps: int = 300) -> TokenizerTraining:
    """The small tokenizer on the photographs that smalti ships; 300 steps are half a minute on two cores.

    Crops of 64 pixels give four times the steps of crops of 128 for the same time, and the network has no fixed size.
    The batch entropy spreads the codes early on: its weight falls to a twentieth.
    """
    return TokenizerTraining(
        tokenizer=small_image_tokenizer(),
        data=ImagesConfig(path=photos("train"), size=64, scale=(0.35, 0.7), in_memory=64),
        validation=ImagesConfig(path=photos("heldout"), size=128, crop="center", flip=False),
        steps=steps,
        batch_size=8,
        weights={"l2": 1.0, "batch_entropy": -0.001},
        entropy_boost=19.0,
        entropy_boost_steps=steps,
        optimizer=OptimizerConfig(lr=4e-3, warmup=min(60, steps)),
        ema=0.99,
        save_every=max(1, steps // 3),
        sample_every=max(1, steps // 2),
        eval_every=max(1, steps // 5),
    )


def image() -> TokenizerTraining:
    """Our default for a GPU: 128 px, LPIPS from the start, a discriminator from step 20,000."""
    return TokenizerTraining(
        tokenizer=TokenizerConfig(
            quantizer=FSQConfig(levels=(8, 8, 8, 5, 5, 5)),
            patch=4,
            width=192,
            multipliers=(1, 2),
            strides=((1, 2),),
            depth=3,
            decoder_depth=4,
            middle=2,
        ),
        data=ImagesConfig(path=FOLDER, size=128),
        steps=200_000,
        batch_size=256,
        weights={"l1": 1.0, "lpips": 1.0},
        lpips=LPIPSConfig(net="vgg"),
        gan=GANConfig(discriminator=PatchConfig(), weight=0.1, adaptive=True, start=20_000, ramp=5_000, lecam=0.001),
        optimizer=OptimizerConfig(lr=4e-4, warmup=2_000),
        precision="bfloat16",
        workers=8,
        log_every=50,
        save_every=5_000,
        sample_every=5_000,
        eval_every=5_000,
    )


def paper_image(size: int = 128) -> TokenizerTraining:
    """MAGVIT-v2's image tokenizer at 128, 256 or 512 px: 16x16 tokens, LFQ 2^18 (arXiv 2310.05737, appendix A).

    Differs from the paper in its perceptual loss: LPIPS in place of ResNet-50 logits, which no public project
    reproduces. Our pixels are in [-1, 1], the paper's in [0, 1]: its L2 weight 5 is 1.25 here, its R1 cost 10 is 40.
    The paper does not say the widths of the 512 px model; these go on as those of 256 px do.
    """
    multipliers = {128: (1, 2, 2, 4), 256: (1, 1, 2, 2, 4), 512: (1, 1, 2, 2, 4, 4)}[size]
    optimizer = OptimizerConfig(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0, warmup=5_000)
    return TokenizerTraining(
        tokenizer=TokenizerConfig(
            quantizer=LFQConfig(bits=18, temperature=0.01),
            width=128,
            multipliers=multipliers,
            strides=((1, 2),) * (len(multipliers) - 1),
            depth=4,
            decoder_depth=4,
            middle=4,
            norm="frame",
        ),
        data=ImagesConfig(path=FOLDER, size=size),
        steps=270 * (IMAGENET // 256),
        batch_size=256,
        weights={"l2": 1.25, "lpips": 0.1, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25},
        entropy_boost=2.0,
        lpips=LPIPSConfig(net="vgg"),
        gan=GANConfig(
            discriminator=StyleGAN2Config.parse({"size": size}),
            loss="non_saturating",
            weight=0.1,
            penalty="r1",
            penalty_weight=40.0,
            penalty_every=16,
            lecam=0.001,
            optimizer=optimizer,
        ),
        optimizer=optimizer,
        precision="bfloat16",
        workers=8,
        save_every=10_000,
        sample_every=10_000,
        eval_every=10_000,
    )
