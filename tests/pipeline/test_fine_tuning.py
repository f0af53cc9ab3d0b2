"""`init` gives a run the architecture and the weights of what it starts from, another project's too."""

import pytest
import torch

import smalti
from smalti.config import load_yaml
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.families.names import TINY_IMAGE, TINY_VIDEO
from smalti.training.config import TokenizerTraining
from tests.goldens.rule import FOLDER

SHORT = ["steps=2", "batch_size=2", "data.size=32", "validation=null", "sample_every=9", "entropy_boost=0"]
CODEBOOK = ["weights={l2: 1.0, codebook: 1.0, commitment: 0.25}"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "options", "losses"),
    [
        ("maskgit_tiny.bin", CODEBOOK, ("codebook", "commitment")),
        ("llamagen_tiny.pt", [], ("codebook", "commitment")),
        ("showo_tiny", [], ("batch_entropy",)),
    ],
)
def test_a_run_starts_from_a_checkpoint_of_another_project(name, options, losses, tmp_path):
    result = smalti.train("tiny", tmp_path / "run", set=[*SHORT, *options, f"init={FOLDER / name}"], device="cpu")
    before, after = smalti.load(FOLDER / name), smalti.load(result.run)
    assert after.config.quantizer.losses == losses
    assert after.config.replace({"quantizer": before.config.quantizer}) == before.config
    assert after.source == before.source
    moved = {n for n, w in after.state_dict().items() if not torch.equal(w, before.state_dict()[n])}
    assert {"encoder.stem.now.weight", "decoder.to_pixels.now.weight"} <= moved
    assert ("quantizer.codebook" in moved) == ("codebook" in losses)
    told = load_yaml(TokenizerTraining, result.run / "config.yaml")
    assert told.tokenizer == after.config
    assert set(told.weights) == {"l2", *losses}


def test_weights_that_were_asked_for_are_kept_and_must_fit(tmp_path):
    given = [f"init={FOLDER / 'maskgit_tiny.bin'}", "weights.batch_entropy=-0.1"]
    with pytest.raises(ConfigError, match="no loss for the weight 'batch_entropy'"):
        smalti.train("tiny", tmp_path / "run", set=[*SHORT, *given], device="cpu")


def test_a_table_of_codes_goes_on_as_moving_averages(tmp_path):
    """From rows as they are: a row without latents stays, bit for bit."""
    options = [f"init={FOLDER / 'maskgit_tiny.bin'}", "codebook={rows: averages}", "ema=0"]
    options += ["weights={l2: 1.0, commitment: 0.25}"]
    result = smalti.train("tiny", tmp_path / "run", set=[*SHORT, *options], device="cpu")
    before, after = (smalti.load(name).quantizer.codebook for name in (FOLDER / "maskgit_tiny.bin", result.run))
    same = (before == after).all(1)
    assert 0 < same.sum() < len(same)
    given = [f"init={FOLDER / 'showo_tiny'}", "codebook={restart: 0.1}"]
    with pytest.raises(ConfigError, match="has no table of codes"):
        smalti.train("tiny", tmp_path / "other", set=[*SHORT, *given], device="cpu")


@pytest.mark.parametrize(("name", "start"), [("finetune-image", TINY_IMAGE), ("finetune-video", TINY_VIDEO)])
def test_the_recipes_go_on_with_a_tokenizer_and_ask_for_it(name, start, tmp_path):
    short = ["steps=2", "batch_size=1", "data.size=32", "validation=null", "sample_every=9"]
    result = smalti.train(name, tmp_path / "run", tiny=True, set=short, device="cpu")
    before, after = smalti.load(start), smalti.load(result.run)
    assert after.fingerprint != before.fingerprint
    assert after.config.replace({"quantizer": before.config.quantizer}) == before.config
    there = before.state_dict()
    assert all((weight - there[name]).abs().max() < 1e-3 for name, weight in after.state_dict().items())
    with pytest.raises(InputError, match="init: start: neither a file, a folder nor"):
        smalti.train(name, tmp_path / "whole", device="cpu")
    assert not (tmp_path / "whole").exists()


def test_another_architecture_that_was_asked_for_and_images_for_video_are_refused(tmp_path):
    given = f"init={FOLDER / 'showo_tiny'}"
    with pytest.raises(IntegrityError, match="another architecture"):
        smalti.train("tiny", tmp_path / "run", set=[*SHORT, given, "tokenizer.width=32"], device="cpu")
    with pytest.raises(ConfigError, match="smalti inflate"):
        smalti.train("tiny-video", tmp_path / "run", set=["steps=2", given], device="cpu")
    assert not (tmp_path / "run").exists()
