"""Recipes of token models: valid, of the published sizes, and trainable in their small forms."""

import json
import math

import pytest
import torch

from smalti.cli.main import run as cli
from smalti.config import load_yaml
from smalti.generation import MaskedConfig, autoregressive_loss, empty_prompt, masked_loss, task_prompt
from smalti.recipes import catalogue, find
from smalti.training.generator_config import GeneratorTraining

RECIPES = {recipe.name: recipe for recipe in catalogue() if recipe.kind == "generator"}
ROWS = (
    *("paper-generate-imagenet-256", "paper-generate-imagenet-512", "paper-generate-k600", "paper-generate-ucf101"),
    *("open-magvit2-generate-b", "open-magvit2-generate-l", "open-magvit2-generate-xl"),
)
each_recipe = pytest.mark.parametrize("name", RECIPES)


def test_every_generation_row_of_the_papers_is_there_with_its_score():
    assert {*ROWS} < {*RECIPES}
    for name in ROWS:
        assert any(character.isdigit() for character in RECIPES[name].score)
        assert "arXiv" in RECIPES[name].score
        assert RECIPES[name].command == f"smalti train {name} --set data=SET"


@each_recipe
@pytest.mark.parametrize("tiny", [False, True])
def test_a_recipe_round_trips_and_is_listed(tmp_path, capsys, name, tiny):
    config = find(name, tiny=tiny)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert load_yaml(GeneratorTraining, tmp_path / "run.yaml") == config
    capsys.readouterr()
    assert cli(["recipes", name, "--json", *(["--tiny"] if tiny else [])]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "generator"


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("paper-generate-imagenet-256", (305, 308)),  # the paper: 307 M
        ("paper-generate-k600", (305, 308)),
        ("open-magvit2-generate-b", (343 * 0.93, 343 * 1.07)),  # other blocks: MLPs of 8 w^2, as SwiGLU's at 8/3
        ("open-magvit2-generate-l", (804 * 0.93, 804 * 1.07)),
        ("open-magvit2-generate-xl", (1500 * 0.93, 1500 * 1.07)),
    ],
)
def test_models_are_of_the_published_sizes(name, millions):
    with torch.device("meta"):
        model = find(name).generator.build()
    assert millions[0] < sum(p.numel() for p in model.parameters()) / 1e6 < millions[1]


@each_recipe
def test_the_small_form_of_a_recipe_makes_a_step(name):
    """On random ids: the loss is near that of a fair guess, and has a gradient at every weight that a step uses."""
    torch.manual_seed(0)
    config = find(name, tiny=True)
    model, rng = config.generator.build(), torch.Generator().manual_seed(0)
    ids = torch.randint(math.prod(config.generator.levels), (2, *config.generator.grid))
    labels = torch.tensor([0, 1]) if config.generator.classes else None
    tasks = torch.zeros(2, dtype=torch.int64) if config.generator.tasks else None
    condition = empty_prompt(2, config.generator.grid, labels=labels, tasks=tasks).condition
    if isinstance(config.generator, MaskedConfig):
        prompt = task_prompt(config.tasks[0].task, ids, (4, 8, 8), reach=0, condition=condition)
        loss = masked_loss(model, ids, prompt, config.loss, rng)
    else:
        loss = autoregressive_loss(model, ids, condition, config.loss, rng)
    loss.mean.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    guess = sum(map(math.log, config.generator.levels))
    assert abs(loss.nats_per_token.item() - guess) < 0.15 * guess
