"""`smalti train`: a recipe or a file, fields set, stopped runs resumed; the run folder serves the other verbs."""

import json

import pytest

from smalti.config import load_yaml
from smalti.quantize import LFQConfig
from smalti.training.config import TokenizerTraining
from tests.cli.conftest import assert_one_line

SMALL = [
    *("--set", "steps=2", "--set", "batch_size=2", "--set", "tokenizer.width=8", "--set", "data.size=32"),
    *("--set", "validation_limit=1", "--set", "validation.size=32", "--set", "optimizer.warmup=0"),
]


def test_a_recipe_trains_resumes_and_serves_the_other_verbs(smalti, pictures, tmp_path):
    run = tmp_path / "run"
    command = ("train", "tiny", *SMALL, "--set", f"data.path={pictures}", "--seed", 7, "--out", run, "--device", "cpu")
    ended = smalti(*command)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{run / 'tokenizer'}: ")
    assert "parameters on cpu, " in ended.err
    assert "batches of " in ended.err
    assert "steps 1 to 2\n" in ended.err
    assert "step 2 of 2: loss" in ended.err
    config = load_yaml(TokenizerTraining, run / "config.yaml")
    assert (config.steps, config.seed, config.data.path) == (2, 7, pictures)
    assert_one_line(smalti(*command), 2, "--resume")
    again = smalti(*command, "--resume", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["steps"] == 2
    assert again.err == ""
    about = json.loads(smalti("info", run, "--json").out)
    assert about["run"]["last"]["step"] == 2
    facts = {name: about["run"][name] for name in ("step", "steps", "device")}
    assert facts == {"step": 2, "steps": 2, "device": "cpu"}
    assert (about["run"]["data"]["samples"], about["run"]["data"]["held_out"]) == (1, 1)
    shown = [" ".join(line.split()) for line in smalti("info", run).out.splitlines()]
    assert {"run step 2 of 2", "run device cpu"} <= {*shown}
    assert any(line.startswith("run data samples 1, held out 1") for line in shown)
    other = smalti("train", run, "--resume", "--set", "optimizer.lr=0.5", "--set", "data.crop=center")
    assert_one_line(other, 2, "optimizer.lr (", " -> 0.5)", "data.crop (random -> center)", "; start another run")
    report = json.loads(smalti("eval", run, "--data", pictures, "--size", 32, "--json").out)
    assert report["clips"] == 2


def test_another_quantizer_is_trained_by_its_name(smalti, tmp_path):
    run = tmp_path / "run"
    ended = smalti("train", "tiny", *SMALL, "--quantizer", "lfq10", "--device", "cpu", "--out", run)
    assert ended.code == 0, ended.err
    found = load_yaml(TokenizerTraining, run / "config.yaml").tokenizer.quantizer
    assert isinstance(found, LFQConfig)
    assert found.bits == 10
    assert "codebook size 1,024" in " ".join(smalti("info", run).out.split())
    assert_one_line(smalti("train", "tiny", "--quantizer", "lfq", "--out", tmp_path / "no"), 2, "no such quantizer")


def test_a_file_trains(smalti, tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(smalti("recipes", "tiny").out)
    ended = smalti("train", yaml, *SMALL, "--out", tmp_path / "run", "--json", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["run"] == str(tmp_path / "run")
    assert_one_line(smalti("train", yaml, "--tiny"), 2, "--tiny")


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("stepz=3", "did you mean 'steps'"),
        ("tokenizer.widht=3", "tokenizer.widht"),
        ("steps=many", "steps"),
        ("steps", "expected field=value"),
        ("batch_size=0", "batch_size"),
    ],
)
def test_a_wrong_field_is_code_2_and_starts_nothing(smalti, tmp_path, assignment, part):
    assert_one_line(smalti("train", "tiny", "--set", assignment, "--out", tmp_path / "run"), 2, part)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_or_folder_is_named(smalti, tmp_path):
    assert_one_line(smalti("train", tmp_path / "none.yaml"), 2, tmp_path / "none.yaml")
    ended = smalti("train", "tiny", "--set", f"data.path={tmp_path / 'none'}", "--out", tmp_path / "run")
    assert_one_line(ended, 3, tmp_path / "none")


@pytest.mark.slow
def test_the_quick_demo_ends_with_a_page(smalti, tmp_path):
    ended = smalti("demo", "--quick", "--out", tmp_path / "demo")
    assert ended.code == 0, ended.err
    assert ended.out == f"{tmp_path / 'demo' / 'index.html'}: open this page to see it all\n"
    assert (tmp_path / "demo" / "index.html").is_file()
