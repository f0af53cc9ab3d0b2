"""The small form of any recipe: the same run on the media that smalti ships, narrow and short, for two cores."""

from typing import Literal

from smalti.data import bundled
from smalti.discriminators import DiscriminatorConfig, Magvit3DConfig, PatchConfig, StyleGAN2Config
from smalti.tokenizer import AnyTokenizerConfig, TokenizerConfig
from smalti.training.config import TokenizerTraining

SIDE, FRAMES, BATCH, WIDTH = 32, 5, 4, 8


def shrink(full: TokenizerTraining, steps: int = 40) -> TokenizerTraining:
    """`full` with narrow networks, small clips, no LPIPS (whose weights may be absent) and `steps` steps.

    Everything else is as it was: quantizer, norms, strides, losses, discriminator, optimizers, EMA, transforms.
    """
    is_video = full.tokenizer.time_kernel > 1
    changes: dict[str, object] = {
        "tokenizer": _tokenizer(full.tokenizer),
        "data": full.data.replace(_data(is_video, "train")),
        "validation": None if full.validation is None else full.validation.replace(_data(is_video, "heldout")),
        "validation_limit": 2,
        "steps": steps,
        "batch_size": BATCH,
        "accumulate": 1,
        "weights": {name: weight for name, weight in full.weights.items() if name != "lpips"},
        "lpips": None,
        "optimizer": full.optimizer.replace({"warmup": min(full.optimizer.warmup, steps // 4)}),
        "precision": "float32",
        "workers": 0,
        "log_every": 10,
        "save_every": max(1, steps // 2),
        "sample_every": steps,
        "eval_every": steps,
    }
    if full.gan is not None:
        optimizer = full.gan.optimizer
        changes["gan"] = full.gan.replace(
            {
                "discriminator": _discriminator(full.gan.discriminator),
                "start": min(full.gan.start, steps // 4),
                "ramp": min(full.gan.ramp, steps // 4),
                "optimizer": optimizer.replace({"warmup": min(optimizer.warmup, steps // 4)}),
            }
        )
    return full.replace(changes)


def _tokenizer(full: AnyTokenizerConfig) -> AnyTokenizerConfig:
    if isinstance(full, TokenizerConfig):
        groups = max(1, full.groups * WIDTH // full.width)  # as many channels a group as in the whole form
        return full.replace({"width": WIDTH, "groups": groups, "depth": 1, "decoder_depth": 1, "middle": 1})
    return full.replace({"width": WIDTH, "depth": 1, "decoder_depth": 1, "latent": 2 * WIDTH})


def _discriminator(full: DiscriminatorConfig) -> DiscriminatorConfig:
    if isinstance(full, StyleGAN2Config):
        return full.replace({"size": SIDE, "width": 2 * WIDTH})
    if isinstance(full, Magvit3DConfig):
        return full.replace({"width": WIDTH, "multipliers": (2, 2)})
    assert isinstance(full, PatchConfig)
    return full.replace({"width": WIDTH})


def _data(is_video: bool, part: Literal["train", "heldout"]) -> dict[str, object]:
    small: dict[str, object] = {
        "path": bundled.videos(part) if is_video else bundled.photos(part),
        "root": None,
        "size": SIDE,
    }
    return small | ({"frames": FRAMES} if is_video else {})
