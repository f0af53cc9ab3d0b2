"""Token models on two ranks: gloo on this machine, against one process at the same global batch."""

import sys

import pytest

from smalti.model_folder import checkpoints
from tests.training.test_generator_images import config_of as picture_config
from tests.training.test_generator_images import made as pictures  # noqa: F401 - a fixture
from tests.training.test_generator_run import config_of as video_config
from tests.training.test_generator_run import made as videos  # noqa: F401 - a fixture
from tests.training.test_ranks import TWO, digests, ended, nodes, sets, worst

IN_FLOAT64 = """
import sys, torch
from pathlib import Path
from smalti.config import load_yaml
from smalti.pipeline.train import train
from smalti.training.generator_config import GeneratorTraining

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
train(load_yaml(GeneratorTraining, Path(sys.argv[1])), Path(sys.argv[2]), device="cpu")
"""


def whole(config):
    """Without dropout, which each rank draws for itself, and without what needs a tokenizer's float32."""
    lasting = {"tokenizer": None, "validation": None, "steps": 30, "save_every": 30, "sample_every": 30}
    return config.replace({**lasting, "generator": config.generator.replace({"dropout": 0.0})})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "autoregressive", "video"])
def test_two_ranks_equal_one_process_at_the_same_global_batch(pictures, videos, tmp_path, kind):  # noqa: F811
    """Rows, masks, dropped classes and tasks are those of the global batch, in float64 to rounding."""
    if kind == "video":
        tasks = [{"task": {"kind": "generation"}}, {"task": {"kind": "prediction", "frames": 5}}]
        config = whole(video_config(videos, tasks=tasks))
    else:
        config = whole(picture_config(pictures, kind, tasks=[{"task": {"kind": "generation"}}]))
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    (tmp_path / "rank.py").write_text(IN_FLOAT64)
    ended([sys.executable, tmp_path / "rank.py", tmp_path / "run.yaml", tmp_path / "one"])
    ended([*TWO, tmp_path / "rank.py", tmp_path / "run.yaml", tmp_path / "two"])
    found = worst(tmp_path / "one", tmp_path / "two")
    assert found
    assert max(found.values()) < 1e-9, found


@pytest.mark.slow
def test_two_ranks_train_every_task_and_resume_with_the_same_bits(videos, tmp_path):  # noqa: F811
    """Hints are not in every step: a parameter that a step leaves out must not hold the ranks up."""
    (tmp_path / "run.yaml").write_text(video_config(videos, steps=8, save_every=4).to_yaml())
    command = [*TWO, "-m", "smalti", "train", tmp_path / "run.yaml", "--device", "cpu", "--out", tmp_path / "run"]
    ended(command)
    before = digests(tmp_path / "run")
    for path in (tmp_path / "run" / "generator", checkpoints(tmp_path / "run")[-1]):
        path.rename(tmp_path / path.name)
    ended([*command, "--resume"])
    assert digests(tmp_path / "run") == before


@pytest.mark.slow
def test_nodes_with_other_token_models_are_refused(videos, tmp_path):  # noqa: F811
    (tmp_path / "run.yaml").write_text(video_config(videos).to_yaml())
    run = [tmp_path / "run.yaml", "--device", "cpu", "--out", tmp_path / "run"]
    ended = nodes([*run, *sets("seed=1")], [*run, *sets("seed=2")])
    assert all(code != 0 for code, _ in ended)
    assert sum("the 2 processes have different settings" in said for _, said in ended) == 1
    assert not checkpoints(tmp_path / "run")
