"""The recipes: every published row, buildable at full size, with the parameters that its authors count."""

import math

import pytest
import torch

from smalti.config import load_yaml
from smalti.recipes import catalogue, find
from smalti.recipes.data import IMAGENET
from smalti.tokenizer import Tokenizer
from smalti.train.config import TokenizerTraining

NAMES = [recipe.name for recipe in catalogue() if recipe.kind == "tokenizer"]
MAGICMASTER = [name for name in NAMES if name.startswith("magicmaster-")]
COUNTS = {
    "mindone-image": 111_958_528,
    "mindone-video": 349_247_488,
    "mindone-video-gan": 349_247_488,
    # Published, less the tensors that are stored and never run.
    **{name: 113_756_041 - 263_680 - 256 for name in NAMES if name.startswith("magicmaster-imagenet-")},
    "magicmaster-k600-fsq-64000-d64-ep40": 93_111_881 - 66_304 - 128,
    "magicmaster-k600-fsq-15360-d64-ep40": 93_111_881 - 66_304 - 128,
    "magicmaster-k600-fsq-64000-d64-ep100": 93_111_881 - 66_304 - 128,
    "magicmaster-k600-fsq-64000-d128-ep100": 372_214_921 - 263_680 - 256,
    **{name: 71_882_889 for name in NAMES if name.startswith("magicmaster-vqgan-")},
}
JUDGES = {"style2-128": 28_389_121, "style2-256": 28_864_129, "patch": 663_361}


def test_there_is_a_recipe_for_every_published_row():
    groups = {prefix: sum(name.startswith(prefix) for name in NAMES) for prefix in ("paper-", "mindone-")}
    groups |= {part: sum(f"-{part}-" in name for name in MAGICMASTER) for part in ("imagenet", "k600", "vqgan")}
    assert groups == {"paper-": 4, "mindone-": 3, "imagenet": 7, "k600": 6, "vqgan": 5}
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_full_recipe_is_built_on_the_meta_device_with_the_published_parameters(name):
    config = find(name)
    with torch.device("meta"):
        tokenizer = Tokenizer(config.tokenizer)
    count = sum(p.numel() for p in tokenizer.parameters())
    assert count == COUNTS.get(name, count)
    if "dsq" in name:
        # The network of FSQ at this width, and start, scale_in, scale_out, bias and padded bins of six channels.
        assert count == COUNTS["magicmaster-k600-fsq-64000-d64-ep40"] + 6 * (4 + 7)


@pytest.mark.parametrize("name", MAGICMASTER)
def test_the_judges_have_the_published_parameters(name):
    config = find(name)
    with torch.device("meta"):
        judge = config.adversary.discriminator.build()
    key = "patch" if "-patch-" in name else f"style2-{256 if config.data.size == 256 else 128}"
    assert sum(p.numel() for p in judge.parameters()) == JUDGES[key]


@pytest.mark.parametrize("name", MAGICMASTER)
def test_what_all_of_magicmasters_runs_share(name):
    config = find(name)
    tokenizer, judge = config.optimizer, config.adversary.optimizer
    assert (tokenizer.lr, judge.lr) == (5.4e-5, 4.32e-4)
    for optimizer in (tokenizer, judge):
        assert (optimizer.betas, optimizer.weight_decay, optimizer.clip) == ((0.5, 0.9), 0.0, None)
        assert {optimizer.rate(step, 1000) for step in (0, 500, 999)} == {optimizer.lr}
    assert config.weights == {"l1": 1.0, "lpips": 1.0}
    assert (config.adversary.weight, config.adversary.adaptive, config.adversary.loss) == (0.75, True, "hinge")
    assert config.adversary.penalty == ("none" if "vqgan" in name else "one_centred")
    assert config.adversary.penalty_every == 1
    assert config.precision == "float32"


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("magicmaster-imagenet-style2-64000-128-8x8-ep20", 20 * 20_018),
        ("magicmaster-imagenet-style2-64000-128-32x8-ep200", 200 * 5_004),
        ("mindone-image", 40_036),
        ("mindone-video", 4_440),
    ],
)
def test_epochs_become_steps(name, steps):
    assert find(name).steps == steps
    assert IMAGENET // 64 == 20_018


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_small_form_that_is_valid_and_round_trips(name, tmp_path):
    small = find(name, tiny=True)
    (tmp_path / "small.yaml").write_text(small.to_yaml())
    assert load_yaml(TokenizerTraining, tmp_path / "small.yaml") == small
    assert small.steps <= 2300
    tokenizer = Tokenizer(small.tokenizer)
    assert sum(p.numel() for p in tokenizer.parameters()) < 2_000_000
    full = find(name)
    assert small.tokenizer.quantizer.kind == full.tokenizer.quantizer.kind
    assert math.prod(small.tokenizer.total_strides) == math.prod(tokenizer.strides)
    if name not in NAMES[:6]:
        assert small.tokenizer.total_strides == full.tokenizer.total_strides
        assert (small.adversary is None) == (full.adversary is None)
