"""Quantizers by name: each has the number of codes that its name says, and trains with exactly its own losses."""

import math

import pytest
import torch

import smalti
from smalti.errors import ConfigError
from smalti.recipes import find
from smalti.recipes.quantizers import QUANTIZER_LOSSES, SCALAR_LEVELS, named_quantizer, with_quantizer

NAMES = [
    *(f"{kind}{codes}" for kind in ("fsq", "dsq") for codes in SCALAR_LEVELS),
    "lfq1",
    "lfq18",
    "vq8192",
    "vq16-cosine",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_the_number_of_codes(name):
    config = named_quantizer(name).config
    number = int("".join(c for c in name if c.isdigit()))
    assert math.prod(config.digit_levels) == (2**number if config.kind == "lfq" else number)


@pytest.mark.parametrize("recipe", ["tiny", "tiny-video", "image", "paper-image-128"])
@pytest.mark.parametrize("name", NAMES)
def test_a_named_quantizer_has_its_losses_and_leaves_the_others(recipe, name):
    before = find(recipe)
    config = with_quantizer(before, name)
    own = {loss for loss in config.weights if loss in QUANTIZER_LOSSES}
    assert own == set(named_quantizer(name).weights)
    z = torch.randn(2, len(config.tokenizer.quantizer.digit_levels) if name[:2] != "vq" else 8)
    assert set(config.tokenizer.quantizer.build()(z).losses) == own
    for loss in before.weights.keys() - QUANTIZER_LOSSES:
        assert config.weights[loss] == before.weights[loss]
    assert config.replace({}) == config


@pytest.mark.parametrize(
    "name", ["lfq", "lfq25", "lfq018", "fsq64001", "fsq15360-cosine", "vq1", "vq99999999", "FSQ240", ""]
)
def test_another_name_is_one_line_with_the_forms(name):
    with pytest.raises(ConfigError, match=r"no such quantizer; give fsqN or dsqN .*\n?") as fault:
        named_quantizer(name)
    assert "\n" not in str(fault.value)


def test_the_command_trains_it(tmp_path):
    settings = (
        "steps=2",
        "batch_size=2",
        "data.size=32",
        "validation=null",
        "sample_every=9",
        "tokenizer.width=8",
        "workers=0",
    )
    result = smalti.train("tiny", tmp_path / "run", set=settings, quantizer="lfq10", tiny=True)
    assert smalti.load(result.trained).codebook_size == 2**10
    with pytest.raises(ConfigError, match="quantizer"):
        smalti.train("tiny-generate-images", tmp_path / "other", quantizer="lfq10")
