"""`init` gives a run the architecture and the weights of what it starts from, another project's too."""

import pytest
import torch

import smalti
from smalti.config import load_yaml
from smalti.errors import ConfigError, IntegrityError
from smalti.training.config import TokenizerTraining
from tests.goldens.rule import FOLDER

SHORT = ["steps=2", "batch_size=2", "data.size=32", "validation=null", "sample_every=9", "entropy_boost=0"]
CODEBOOK = ["weights={l2: 1.0, codebook: 1.0, commitment: 0.25}"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "options", "losses"),
    [("maskgit_tiny.bin", CODEBOOK, ("codebook", "commitment")), ("showo_tiny", [], ("batch_entropy",))],
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


def test_another_architecture_that_was_asked_for_and_images_for_video_are_refused(tmp_path):
    given = f"init={FOLDER / 'showo_tiny'}"
    with pytest.raises(IntegrityError, match="another architecture"):
        smalti.train("tiny", tmp_path / "run", set=[*SHORT, given, "tokenizer.width=32"], device="cpu")
    with pytest.raises(ConfigError, match="smalti inflate"):
        smalti.train("tiny-video", tmp_path / "run", set=["steps=2", given], device="cpu")
    assert not (tmp_path / "run").exists()
