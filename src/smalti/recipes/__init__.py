"""Recipes: whole training configs by name, each with what it is, its published score, and a tiny form for two cores.

A recipe is a function with parameters, not a copy of another: variants are arguments.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from smalti.errors import ConfigError
from smalti.recipes.image import image, paper_image, tiny
from smalti.recipes.video import paper_video, tiny_video, video
from smalti.train.config import TokenizerTraining

DEMO_STEPS = (2300, 320)
"""Image and video steps of `smalti demo`: within its six minutes on two cores."""


@dataclass(frozen=True)
class Recipe:
    """A named config and what is known of it."""

    name: str
    about: str
    score: str
    """The published score, with its source; or that none is published."""
    config: Callable[[], TokenizerTraining]
    tiny: Callable[[], TokenizerTraining]
    """The same run, shrunk to minutes on two cores."""

    @property
    def command(self) -> str:
        """How it is run."""
        return f"smalti train {self.name} --set data.path=FOLDER"


def catalogue() -> tuple[Recipe, ...]:
    """All recipes."""
    none = "none published"
    return (
        Recipe("tiny", "an image tokenizer in a minute on a CPU, on the photographs that come along", none, tiny, tiny),
        Recipe(
            "tiny-video",
            "a video tokenizer in minutes on a CPU, on the film that comes along",
            none,
            tiny_video,
            tiny_video,
        ),
        Recipe("demo-image", "the image part of `smalti demo`", none, lambda: tiny(DEMO_STEPS[0]), lambda: tiny(8)),
        Recipe(
            "demo-video",
            "the video part of `smalti demo`",
            none,
            lambda: tiny_video(DEMO_STEPS[1]),
            lambda: tiny_video(8),
        ),
        Recipe("image", "images at 128 px, 8x8, FSQ 64,000: our default", none, image, tiny),
        Recipe("video", "video at 17x128x128, 4x8x8, FSQ 64,000: our default", none, video, tiny_video),
        Recipe(
            "paper-image-128",
            "MAGVIT-v2's image tokenizer, ImageNet 128 px, 8x8, LFQ 2^18",
            "rFID 1.15, LPIPS 0.0685 (arXiv 2310.05737, table 5a)",
            paper_image,
            lambda: paper_image(small=True),
        ),
        Recipe(
            "paper-video-128",
            "MAGVIT-v2's video tokenizer, UCF-101 17x128x128, 4x8x8, LFQ 2^18",
            "rFVD 8.62, LPIPS 0.0537 (arXiv 2310.05737, table 5b)",
            paper_video,
            lambda: paper_video(small=True),
        ),
    )


def find(name: str, tiny: bool = False) -> TokenizerTraining:
    """The config of a recipe. Raises ConfigError with the nearest name."""
    recipes = {recipe.name: recipe for recipe in catalogue()}
    if name not in recipes:
        close = difflib.get_close_matches(name, recipes, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{name}: no such recipe{hint} (there are: {', '.join(recipes)})")
    return recipes[name].tiny() if tiny else recipes[name].config()
