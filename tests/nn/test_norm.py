"""Group norms: what they are, and what a narrow network loses by them."""

import math

import pytest
import torch

from smalti.nn.blocks import Norm
from smalti.recipes import catalogue
from smalti.tokenizer import TokenizerConfig


def frames(channels):
    return torch.randn(3, 2, channels, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [16, 64, 96, 100])
@pytest.mark.parametrize("groups", [32, 8, 6, 1])
def test_groups_are_those_of_torch_or_the_largest_number_that_divides_both(channels, groups):
    x = frames(channels)
    theirs = torch.nn.GroupNorm(math.gcd(channels, groups), channels, eps=1e-6, dtype=torch.float64)
    ours = Norm("frame", channels, groups=groups).double()
    assert torch.allclose(ours(x).flatten(0, 1), theirs(x.flatten(0, 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["frame", "clip"])
def test_a_norm_over_single_channels_loses_the_colour_of_a_frame(kind):
    x, colour = frames(16), torch.linspace(-3, 3, 16, dtype=torch.float64)[:, None, None]
    for groups, is_lost in ((32, True), (16, True), (8, False), (4, False), (1, False)):
        norm = Norm(kind, 16, affine=False, groups=groups)
        change = (norm(x + colour) - norm(x)).abs().max()
        assert change < 1e-12 if is_lost else change > 0.1


GROUPED = [r for r in catalogue() if isinstance(c := r.tiny().tokenizer, TokenizerConfig) and c.norm != "position"]


@pytest.mark.parametrize("recipe", GROUPED, ids=lambda recipe: recipe.name)
def test_small_forms_have_as_many_channels_a_group_as_the_whole(recipe):
    small, whole = recipe.tiny().tokenizer, recipe.config().tokenizer
    assert small.width / small.groups == whole.width / whole.groups > 1
