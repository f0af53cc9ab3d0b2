"""Recipes: whole training configs by name, each with what it is, its published score, and a small form for two cores.

A recipe is a function with parameters, not a copy of another: variants are arguments.
"""

from smalti.errors import ConfigError
from smalti.recipes.generators import generator_recipes
from smalti.recipes.magicmaster import magicmaster_recipes
from smalti.recipes.mindone import mindone_recipes
from smalti.recipes.recipe import AnyTraining, Recipe, shrink
from smalti.recipes.tokenizers import DEMO_STEPS, own_recipes, paper_recipes, tiny, tiny_video
from smalti.text import nearest

__all__ = ["DEMO_STEPS", "AnyTraining", "Recipe", "catalogue", "find", "shrink", "tiny", "tiny_video"]

_FORMER_NAMES = {"tiny-generate-pictures": "tiny-generate-images"}


def catalogue() -> tuple[Recipe, ...]:
    """Return all recipes."""
    return (*own_recipes(), *paper_recipes(), *mindone_recipes(), *magicmaster_recipes(), *generator_recipes())


def find(name: str, tiny: bool = False) -> AnyTraining:
    """Find the config of a recipe. Raises ConfigError with the nearest name."""
    recipes = {recipe.name: recipe for recipe in catalogue()}
    recipe = recipes.get(_FORMER_NAMES.get(name, name))
    if recipe is None:
        raise ConfigError(f"{name}: no such recipe{nearest(name, recipes)} (there are: {', '.join(recipes)})")
    return recipe.tiny() if tiny else recipe.config()
