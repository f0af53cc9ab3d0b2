"""Every recipe, in its small form, as a user runs it: train, stop, resume, evaluate."""

import json

import pytest

from smalti.cli.main import run
from smalti.data import bundled
from smalti.recipes import catalogue, find
from smalti.tokenizer import Tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("name", [recipe.name for recipe in catalogue() if recipe.kind == "tokenizer"])
def test_every_recipe_in_its_tiny_form_trains_saves_resumes_and_evaluates(tmp_path, capsys, name):
    config = find(name, tiny=True).override(["steps=2", "save_every=1", "batch_size=2", "validation=null"])
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    # A stop after the first step is made by taking back what came after it.
    assert run(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "whole")]) == 0
    for path in (tmp_path / "whole" / "step-00000002", tmp_path / "whole" / "tokenizer"):
        path.rename(tmp_path / path.name)
    assert run(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "whole"), "--resume"]) == 0
    again = Tokenizer.load(tmp_path / "whole" / "tokenizer")
    assert again.config == config.tokenizer
    assert again.fingerprint == Tokenizer.load(tmp_path / "tokenizer").fingerprint
    data = bundled.videos("heldout") if config.tokenizer.time_kernel > 1 else bundled.photos("heldout")
    capsys.readouterr()
    options = ["--data", str(data), "--limit", "1", "--size", "32", "--frames", "5", "--json"]
    assert run(["eval", str(tmp_path / "whole"), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["psnr"] < 60
