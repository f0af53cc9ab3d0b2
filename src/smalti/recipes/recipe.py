"""A recipe: a whole config with a name and its published score, and the small form of any recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smalti.data import bundled
from smalti.discriminators import DiscriminatorConfig, Magvit2DConfig, Magvit3DConfig, PatchConfig, StyleGAN2Config
from smalti.tokenizer import AnyTokenizerConfig, TokenizerConfig
from smalti.training.config import TokenizerTraining
from smalti.training.generator_config import GeneratorTraining

AnyTraining = TokenizerTraining | GeneratorTraining

FOLDER = Path("data/train")
"""Data of a recipe unless `data.path` says otherwise."""
START = "start"
"""Tokenizer from which a run starts, in the commands: the folder of an inflated one, or any other name."""

IMAGENET = 1_281_167
"""Images of ImageNet-1k's training set."""
KINETICS_600 = 392_622
"""Clips of the official training list; what can still be fetched is less, so set `steps` to epochs x clips / batch."""
UCF_101 = 9_537
"""Videos of the first training split for action recognition."""

SIDE, FRAMES, BATCH, WIDTH = 32, 5, 4, 8
"""Pixels, frames, clips and channels of a small form."""


@dataclass(frozen=True)
class Recipe:
    """A named config and what is known of it."""

    name: str
    about: str
    config: Callable[[], AnyTraining]
    """Makes the config."""
    score: str = "none published"
    """Published score, with its source."""
    data: str = ""
    """Published data and length of the run."""
    prepare: str = ""
    """Command that makes the tokenizer from which the run starts."""
    original: str = ""
    """Command of its authors."""
    exact: tuple[str, ...] = ()
    """Settings that make the run that of its authors, where ours is the better one."""
    differs: tuple[str, ...] = ()
    """Differences from the published run that remain, one by one."""
    small: Callable[[], AnyTraining] | None = None
    """Makes the small form, where it is not `shrink` of the config."""

    @property
    def kind(self) -> Literal["tokenizer", "generator"]:
        """Kind of the model that is trained."""
        return self.config().kind

    @property
    def command(self) -> str:
        """Command that runs it; without FOLDER it looks where its authors keep their data."""
        config = self.config()
        if isinstance(config, GeneratorTraining):
            return f"smalti train {self.name} --set data=SET"
        where = " --set data.path=FOLDER" if getattr(config.data, "path", None) == FOLDER else ""
        init = f" --set init={START}" if self.prepare or config.init is not None else ""
        return f"smalti train {self.name}{where}{init}"

    def tiny(self) -> AnyTraining:
        """Make the small form: the same run in minutes on two cores."""
        return shrink(self.config()) if self.small is None else self.small()


def shrink(full: AnyTraining, steps: int = 40) -> AnyTraining:
    """Make a config small: a narrow network, short and for two cores. What defines the recipe stays.

    Tokenizers train on the images and videos that smalti ships, without LPIPS and the loss on logits, whose weights may
    be absent; quantizer, norms, strides, other losses, GAN, optimizers, EMA and transforms stay. Generators keep grid
    and levels, for the token set must fit.
    """
    changes: dict[str, object] = {
        "steps": steps,
        "batch_size": BATCH,
        "precision": "float32",
        "workers": 0,
        "log_every": 10,
        "save_every": max(1, steps // 2),
        "sample_every": steps,
        "eval_every": steps,
    }
    if isinstance(full, GeneratorTraining):
        return full.replace(
            {
                **changes,
                "generator": full.generator.replace({"width": 32, "depth": 2, "heads": 2}),
                "optimizer": full.optimizer.replace({"lr": 1e-3, "warmup": 10}),
                "sampling": full.sampling.replace({"steps": 4}),
            }
        )
    is_video = full.tokenizer.time_kernel > 1
    changes |= {
        "tokenizer": _small_tokenizer(full.tokenizer),
        "data": full.data.replace(_small_data(is_video, "train")),
        "validation": None if full.validation is None else full.validation.replace(_small_data(is_video, "heldout")),
        "validation_limit": 2,
        "accumulate": 1,
        "weights": {name: weight for name, weight in full.weights.items() if name not in ("lpips", "logits")},
        "lpips": None,
        "logits": None,
        "optimizer": full.optimizer.replace({"warmup": min(full.optimizer.warmup, steps // 4)}),
    }
    if full.gan is not None:
        optimizer = full.gan.optimizer
        changes["gan"] = full.gan.replace(
            {
                "discriminator": _small_discriminator(full.gan.discriminator),
                "start": min(full.gan.start, steps // 4),
                "ramp": min(full.gan.ramp, steps // 4),
                "optimizer": optimizer.replace({"warmup": min(optimizer.warmup, steps // 4)}),
            }
        )
    return full.replace(changes)


def _small_tokenizer(full: AnyTokenizerConfig) -> AnyTokenizerConfig:
    if isinstance(full, TokenizerConfig):
        groups = max(1, full.groups * WIDTH // full.width)  # as many channels a group as in the whole form
        return full.replace({"width": WIDTH, "groups": groups, "depth": 1, "decoder_depth": 1, "middle": 1})
    return full.replace({"width": WIDTH, "depth": 1, "decoder_depth": 1, "latent": 2 * WIDTH})


def _small_discriminator(full: DiscriminatorConfig) -> DiscriminatorConfig:
    if isinstance(full, StyleGAN2Config):
        return full.replace({"size": SIDE, "width": 2 * WIDTH})
    if isinstance(full, Magvit2DConfig | Magvit3DConfig):
        return full.replace({"width": WIDTH, "multipliers": (2, 2)})
    assert isinstance(full, PatchConfig)
    return full.replace({"width": WIDTH})


def _small_data(is_video: bool, part: Literal["train", "heldout"]) -> dict[str, object]:
    path = bundled.videos(part) if is_video else bundled.photos(part)
    fields: dict[str, object] = {"path": path, "root": None, "size": SIDE}
    return fields | ({"frames": FRAMES} if is_video else {})
