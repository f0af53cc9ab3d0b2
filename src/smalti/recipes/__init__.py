"""Recipes: whole training configs by name, each with what it is, its published score, and a small form for two cores.

A recipe is a function with parameters, not a copy of another: variants are arguments.
"""

from collections.abc import Iterator
from pathlib import Path

from smalti.errors import ConfigError
from smalti.recipes.generators import generator_recipes
from smalti.recipes.magicmaster import magicmaster_recipes
from smalti.recipes.mindone import mindone_recipes
from smalti.recipes.recipe import AnyTraining, Recipe, shrink
from smalti.recipes.tokenizers import DEMO_STEPS, own_recipes, paper_recipes, tiny, tiny_video
from smalti.text import nearest

__all__ = ["DEMO_STEPS", "AnyTraining", "Recipe", "catalogue", "find", "shrink", "tiny", "tiny_video"]

_FORMER_NAMES = {"tiny-generate-pictures": "tiny-generate-images"}


def catalogue() -> Iterator[Recipe]:
    """Yield all recipes; those that come first are found without making the rest."""
    for group in (own_recipes, paper_recipes, mindone_recipes, magicmaster_recipes, generator_recipes):
        yield from group()


def find(name: str, tiny: bool = False) -> AnyTraining:
    """Find the config of a recipe. Raises ConfigError with the nearest name."""
    name = _FORMER_NAMES.get(name, name)
    recipe = next((recipe for recipe in catalogue() if recipe.name == name), None)
    if recipe is None and Path(name).is_dir():
        raise ConfigError(f"{name}: a folder without config.yaml is no run; give a run, a .yaml file or a recipe")
    if recipe is None:
        names = [recipe.name for recipe in catalogue()]
        raise ConfigError(f"{name}: no such recipe{nearest(name, names)} (there are: {', '.join(names)})")
    return recipe.tiny() if tiny else recipe.config()
