"""Runs of several processes: gloo on this machine, started by torchrun as a user starts them, against runs of one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smalti.recipes import find
from smalti.train.state import checkpoints

# As smalti.train.run.run does, and it writes down which samples each step of this rank had.
LOOP = """
import json, sys
from pathlib import Path
import torch
from smalti.config import load_yaml
from smalti.data import batches
from smalti.train import state as states
from smalti.train.common import join_world
from smalti.train.config import TokenizerTraining
from smalti.train.run import train

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
folder, config = Path(sys.argv[1]), load_yaml(TokenizerTraining, Path(sys.argv[2]))
with join_world("cpu") as world:
    state, source, seen = states.start(config, world), config.data.build(), []

    def stream():
        part = (world.rank, world.size)
        for batch in batches(source, batch_size=config.batch_size, seed=config.seed, part=part):
            seen.append(batch.keys)
            yield batch._replace(video=batch.video.double())

    last = [measured for measured in train(state, stream())][-1]
    folder.mkdir(exist_ok=True)
    (folder / f"samples-{world.size}-{world.rank}.json").write_text(json.dumps(seen))
    if world.leads:
        states.save(state, folder, "")
        (folder / "losses.json").write_text(json.dumps(dict(last.losses)))
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def ended(command: Sequence[object]) -> str:
    """What a process said, which must end well."""
    done = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def written(config, path: Path) -> Path:
    path.write_text(config.to_yaml())
    return path


def worst(one: Path, two: Path) -> dict[str, float]:
    """The largest difference in each tensor file of the last checkpoints of two runs: both players, the average."""
    a, b = checkpoints(one)[-1], checkpoints(two)[-1]
    found = {}
    for path in sorted(a.rglob("*.safetensors")):
        if "optimizer" not in path.name:
            ours, theirs = load_file(path), load_file(b / path.relative_to(a))
            assert ours.keys() == theirs.keys()
            found[str(path.relative_to(a))] = max(float((ours[n] - theirs[n]).abs().max()) for n in ours)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny", []),
        ("tiny-video", []),
        # 4 clips on each rank: the groups that this judge compares are then those of the whole batch.
        ("magicmaster-k600-fsq-64000-d64-ep40", ["batch_size=8"]),
        ("paper-video-128", ["tokenizer.norm=position", "adversary.adaptive=true", "accumulate=2"]),
    ],
)
def test_two_ranks_equal_one_after_60_steps_and_have_its_samples(tmp_path, name, settings):
    config = find(name, tiny=True).override(["steps=60", "batch_size=4", "validation=null", *settings])
    config = config.override([f"data.size={32}"])
    script, yaml = tmp_path / "rank.py", written(config, tmp_path / "run.yaml")
    script.write_text(LOOP)
    ended([sys.executable, script, tmp_path / "one", yaml])
    ended([*TORCHRUN, "--standalone", "--nproc-per-node", 2, script, tmp_path / "two", yaml])
    whole, *ranks = (
        json.loads((tmp_path / folder / f"samples-{size}-{rank}.json").read_text())
        for folder, size, rank in (("one", 1, 0), ("two", 2, 0), ("two", 2, 1))
    )
    assert len(whole) == 60
    assert len({key for keys in whole for key in keys}) > config.batch_size
    # Ranks take turns: rank r of 2 has rows r, r + 2, ... of the one batch.
    assert whole == [[key for pair in zip(*keys, strict=True) for key in pair] for keys in zip(*ranks, strict=True)]
    found = worst(tmp_path / "one", tmp_path / "two")
    assert max(found.values()) < 1e-5, found
    one, two = (json.loads((tmp_path / folder / "losses.json").read_text()) for folder in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
