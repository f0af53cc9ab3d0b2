"""Runs over folders with damaged files: rows are left out and counted, no step and no rank is lost with them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from smalti.data.bundled import photos
from smalti.errors import ConfigError, InputError
from smalti.model_folder import checkpoints
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.tokenizer_task import BadRows

SMALL = ["batch_size=1", "save_every=100", "log_every=1", "data.size=32", "validation=null", "tokenizer.width=8"]


def folder(path, good, bad):
    """Photographs, and others that end in their middle; in the order of the names good ones come first."""
    path.mkdir()
    for n, photo in enumerate(sorted(photos("train").glob("*.jpg"))[: good + bad]):
        whole = photo.read_bytes()
        (path / f"{n:03d}.jpg").write_bytes(whole if n < good else whole[: len(whole) // 3])
    return path


def recipe(data, *changes):
    return find("tiny").override([*SMALL, f"data.path={data}", *changes])


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(checkpoints(out)[-1] / "tokenizer.safetensors")


def test_steps_without_a_file_that_can_be_read_are_passed_and_counted(tmp_path):
    """One clip a step, every second file damaged: half of the steps learn; the order is what it was."""
    data = folder(tmp_path / "photos", 2, 2)
    config, out = recipe(data, "steps=8", "sample_every=100", "eval_every=100"), tmp_path / "run"
    train(config, out)
    lines = logged(out)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["empty_steps"] for line in lines][-1] == sum(not line["rows"] for line in lines) == 4
    assert all(("total" in line) == bool(line["rows"]) for line in lines)
    assert not any(line["skipped"] for line in lines)
    rows = [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert {row["path"].split("/")[-1] for row in rows} == {"002.jpg", "003.jpg"}
    assert "NaN" not in (out / "log.jsonl").read_text()
    state = json.loads((checkpoints(out)[-1] / "state.json").read_text())
    assert (state["step"], state["updates"]) == (8, 4)


def test_a_run_that_ended_at_a_bad_step_goes_on_behind_it(tmp_path):
    """With a limit that the first bad file passes the run ends; with a larger one it is resumed to the same weights."""
    data = folder(tmp_path / "photos", 2, 2)
    quiet, out = tmp_path / "quiet", tmp_path / "run"
    config = recipe(data, "steps=8", "save_every=1", "keep=9")
    train(config, quiet)
    with pytest.raises(
        InputError, match=r"1 of the last \d rows could not be read \(max_bad 0\); repair the files"
    ) as error:
        train(config.override(["max_bad=0"]), out)
    assert "\n" not in str(error.value)
    assert len(checkpoints(out)) < 8
    with pytest.raises(InputError, match="max_bad 0"):
        train(config.override(["max_bad=0"]), out, resume=True)
    train(config, out, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(out).values(), weights(quiet).values(), strict=True))
    with pytest.raises(ConfigError, match="other settings: batch_size"):
        train(config.override(["batch_size=2"]), out, resume=True)


def test_a_folder_of_bad_files_alone_is_said_and_leaves_no_tokenizer(tmp_path):
    data = folder(tmp_path / "photos", 0, 3)
    with pytest.raises(InputError, match="6 of the last 6 rows could not be read"):
        train(recipe(data, "steps=6"), tmp_path / "short")
    with pytest.raises(InputError, match="step 63: 504 of the last 504 rows could not be read"):
        train(recipe(data, "steps=1000", "batch_size=8"), tmp_path / "long")
    assert not (tmp_path / "long" / "tokenizer").exists()


@pytest.mark.parametrize("size", [1, 7, 256, 4096])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_limit_is_a_share_of_the_last_thousand_rows(size, share):
    """Against the rows one by one: after any step, the bad ones of the last steps that together are 1,000 or more."""
    rng = torch.Generator().manual_seed(size)
    for chance in (0.0, 0.02, 0.6, 1.0):
        rows, bad = BadRows(share), []
        for _ in range(max(4, 3000 // size)):
            bad.append(int((torch.rand(size, generator=rng) < chance).sum()))
            rows.add(size, bad[-1])
            recent = bad[-max(1, -(-1000 // size)) :]
            assert rows.too_many == (sum(recent) > share * max(1000, len(recent) * size))


LOOP = """
import json, sys
from pathlib import Path
import torch
from smalti.config import load_yaml
from smalti.training.fit import save_checkpoint
from smalti.training.config import TokenizerTraining
from datetime import timedelta
from smalti.training.distributed import join_world
from smalti.training.tokenizer_task import TokenizerTask
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
out = Path(sys.argv[1])
with join_world("cpu", timeout=timedelta(seconds=300)) as world:
    task = TokenizerTask(load_yaml(TokenizerTraining, Path(sys.argv[2])), world)
    for module in (task.state.tokenizer, task.state.ema):
        module.double()
    rows = [result.rows for result in task.steps(out)]
    if world.is_main:
        save_checkpoint(task, out)
        (out / "rows.json").write_text(json.dumps(rows))
"""


@pytest.mark.slow
def test_a_rank_without_rows_goes_along_with_the_others(tmp_path):
    """Two ranks of one clip each, a third of the files damaged: they learn what one process of two clips learns."""
    data = folder(tmp_path / "photos", 4, 2)
    config, yaml, script = recipe(data, "steps=9", "batch_size=2"), tmp_path / "run.yaml", tmp_path / "rank.py"
    yaml.write_text(config.to_yaml())
    script.write_text(LOOP)
    for name, world in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])):
        (tmp_path / name).mkdir()
        command = [sys.executable, *world, str(script), str(tmp_path / name), str(yaml)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "one" / "rows.json").read_text())
    assert sum(rows) == 12
    assert 1 in rows  # a step in which one rank has nothing
    assert rows == json.loads((tmp_path / "two" / "rows.json").read_text())
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-9
    named = [path.name for path in (tmp_path / "two").glob("bad_files*")]
    assert len(named) == 2
