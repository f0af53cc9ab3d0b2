"""Video tokenizers: the image recipes, with time."""

from smalti.data import VideosConfig, bundled
from smalti.discriminators import Magvit3DConfig
from smalti.recipes.data import KINETICS_600
from smalti.recipes.image import FOLDER, image, paper_image, small_image_tokenizer, tiny
from smalti.tokenizer import TokenizerConfig
from smalti.training.config import OptimizerConfig, TokenizerTraining


def small_video_tokenizer() -> TokenizerConfig:
    """The small image tokenizer, inflated: 4x8x8 strides; the taps of past frames are 1x1."""
    return small_image_tokenizer().replace({"time_kernel": 4, "strides": ((4, 1),)})


def tiny_video(steps: int = 200) -> TokenizerTraining:
    """The small video tokenizer on the videos that smalti ships."""
    return tiny(steps).replace(
        {
            "tokenizer": small_video_tokenizer(),
            "data": VideosConfig(path=bundled.videos("train"), size=64, frames=9, scale=(0.4, 0.8)),
            "validation": VideosConfig(
                path=bundled.videos("heldout"), size=128, frames=17, crop="center", flip=False, sampling="center"
            ),
            "batch_size": 4,
            "entropy_boost": 0.0,
            "optimizer": OptimizerConfig(lr=2e-3, warmup=min(30, steps)),
            "eval_every": max(1, steps // 2),
        }
    )


def video() -> TokenizerTraining:
    """Our default for a GPU: 17x128x128; start it from an inflated image tokenizer with `--set init=FOLDER`."""
    base = image()
    return base.replace(
        {
            "tokenizer": base.tokenizer.replace({"time_kernel": 4, "strides": ((4, 2),)}),
            "data": VideosConfig(path=FOLDER, size=128, frames=17),
            "batch_size": 64,
            "lpips_frames": "random",
            "optimizer": OptimizerConfig(lr=2e-4, warmup=2_000),
            "workers": 12,
        }
    )


def paper_video() -> TokenizerTraining:
    """MAGVIT-v2's video tokenizer at 17x128x128 with its 3-D discriminator (arXiv 2310.05737, figure 3, appendix A).

    Differs as `paper_image` does. Start it from the inflated image tokenizer, as the paper does, with `init`.
    """
    base = paper_image()
    assert base.gan is not None
    late = ((1, 2), (2, 2), (2, 2))  # the first reduction is in space alone
    optimizer = base.optimizer.replace({"warmup": 2_000})
    return base.replace(
        {
            "tokenizer": base.tokenizer.replace({"time_kernel": 3, "past_kernel": "full", "strides": late}),
            "data": VideosConfig(path=FOLDER, size=128, frames=17),
            "steps": 190 * (KINETICS_600 // 256),
            "lpips_frames": "random",
            "gan": base.gan.replace({"discriminator": Magvit3DConfig(), "optimizer": optimizer}),
            "optimizer": optimizer,
            "workers": 12,
        }
    )
