"""Video tokenizers."""

from smalti.adversary import Magvit3DConfig, PatchConfig
from smalti.data import VideosConfig
from smalti.data.samples import film
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import LFQConfig
from smalti.recipes.image import FOLDER, image, small_image_tokenizer
from smalti.tokenizer import TokenizerConfig
from smalti.train.config import AdversaryConfig, OptimizerConfig, TokenizerTraining


def small_video_tokenizer() -> TokenizerConfig:
    """The small image tokenizer, inflated: 4x8x8 strides; the taps of past frames are 1x1."""
    small = small_image_tokenizer()
    return TokenizerConfig.parse({**small.plain(), "time": 4, "strides": ((4, 1),)}, where="tiny-video")


def tiny_video(steps: int = 200) -> TokenizerTraining:
    """The small video tokenizer on the film that smalti ships."""
    return TokenizerTraining(
        tokenizer=small_video_tokenizer(),
        data=VideosConfig(path=film("train"), size=64, frames=9, scale=(0.4, 0.8)),
        validation=VideosConfig(
            path=film("heldout"), size=128, frames=17, crop="center", flip=False, sampling="center"
        ),
        steps=steps,
        batch_size=4,
        weights={"l2": 1.0, "batch_entropy": -0.001},
        optimizer=OptimizerConfig(lr=2e-3, warmup=min(30, steps)),
        ema=0.99,
        save_every=max(1, steps // 3),
        sample_every=max(1, steps // 2),
        eval_every=max(1, steps // 2),
    )


def video() -> TokenizerTraining:
    """Our default for a GPU: 17x128x128; start it from an inflated image tokenizer with `--set init=FOLDER`."""
    base = image()
    config = {**base.tokenizer.plain(), "time": 4, "strides": ((4, 2),)}
    return TokenizerTraining(
        tokenizer=TokenizerConfig.parse(config, where="video"),
        data=VideosConfig(path=FOLDER, size=128, frames=17),
        steps=200_000,
        batch_size=64,
        weights=base.weights,
        lpips=base.lpips,
        lpips_frames="random",
        adversary=AdversaryConfig(
            discriminator=PatchConfig(), weight=0.1, adaptive=True, start=20_000, ramp=5_000, lecam=0.001
        ),
        optimizer=OptimizerConfig(lr=2e-4, warmup=2_000),
        precision="bfloat16",
        workers=12,
        log_every=50,
        save_every=5_000,
        sample_every=5_000,
        eval_every=5_000,
    )


def paper_video(small: bool = False) -> TokenizerTraining:
    """MAGVIT-v2's video tokenizer at 17x128x128 with its 3-D discriminator (arXiv 2310.05737, figure 3, appendix A).

    Differs as `paper_image` does. Start it from the inflated image tokenizer, as the paper does, with `init`.
    """
    return TokenizerTraining(
        tokenizer=TokenizerConfig(
            quantizer=LFQConfig(bits=10 if small else 18, temperature=0.01),
            width=8 if small else 128,
            multipliers=(1, 2, 2, 4),
            strides=((1, 2), (2, 2), (2, 2)),  # late: the first reduction is in space alone
            depth=1 if small else 4,
            decoder_depth=1 if small else 4,
            middle=1 if small else 4,
            norm="frame",
            time=3,
            past="full",
        ),
        data=VideosConfig(
            path=film("train") if small else FOLDER, size=32 if small else 128, frames=5 if small else 17
        ),
        steps=40 if small else 100_000,
        batch_size=2 if small else 256,
        weights={"l2": 1.25, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25}
        | ({} if small else {"lpips": 0.1}),
        entropy_boost=2.0,
        lpips=None if small else LPIPSConfig(net="vgg"),
        lpips_frames="random",
        adversary=AdversaryConfig(
            discriminator=Magvit3DConfig(width=8, multipliers=(2, 2)) if small else Magvit3DConfig(),
            loss="non_saturating",
            weight=0.1,
            penalty="zero_centred",
            penalty_weight=40.0,
            penalty_every=16,
            lecam=0.001,
            optimizer=OptimizerConfig(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0, warmup=0 if small else 2_000),
        ),
        optimizer=OptimizerConfig(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0, warmup=0 if small else 2_000),
        precision="float32" if small else "bfloat16",
        workers=0 if small else 12,
        save_every=20 if small else 5_000,
        sample_every=40 if small else 5_000,
        eval_every=40 if small else 5_000,
    )
