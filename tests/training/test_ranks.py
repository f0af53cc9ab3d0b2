"""Runs of several processes: gloo on this machine, started by torchrun as a user starts them, against runs of one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from smalti.files import sha256
from smalti.model_folder import checkpoints
from smalti.recipes import find
from smalti.tokenizer import Tokenizer

# As `fit` does, and it writes down which samples each step of this rank had.
LOOP = """
import json, sys
from pathlib import Path
import torch
from smalti.config import load_yaml
from smalti.data import batches
from smalti.training.fit import save_checkpoint
from smalti.training.config import TokenizerTraining
from datetime import timedelta
from smalti.training.distributed import join_world
from smalti.training.tokenizer_step import step
from smalti.training.tokenizer_task import TokenizerTask

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
folder, config = Path(sys.argv[1]), load_yaml(TokenizerTraining, Path(sys.argv[2]))
with join_world("cpu", timeout=timedelta(seconds=300)) as world:
    task, seen = TokenizerTask(config, world), []

    def stream():
        part = (world.rank, world.size)
        for batch in batches(task.source, batch_size=config.batch_size, seed=config.seed, part=part):
            seen.append(batch.keys)
            yield batch.video.double()

    videos = stream()
    last = [step(task.state, next(videos)) for _ in range(config.steps)][-1]
    folder.mkdir(exist_ok=True)
    (folder / f"samples-{world.size}-{world.rank}.json").write_text(json.dumps(seen))
    if world.is_main:
        save_checkpoint(task, folder)
        (folder / "losses.json").write_text(json.dumps(dict(last.losses)))
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", 2]
JUDGE = (
    "gan={discriminator: {kind: stylegan2, size: 32, width: 16}, adaptive: true, weight: 0.75, "
    "penalty: gradient_norm, optimizer: {lr: 4.32e-4, betas: [0.5, 0.9], schedule: constant, warmup: 0}}"
)
"""MagicMaster's, small."""
PATCH = "magicmaster-imagenet-patch-64000-128-32x8-ep20"


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def ended(command: Sequence[object]) -> str:
    """What a process said, which must end well."""
    done = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True, timeout=1000)
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


def digests(out: Path) -> dict[str, str]:
    last = checkpoints(out)[-1]
    return {str(path.relative_to(last)): sha256(path) for path in sorted(last.rglob("*.safetensors"))}


def nodes(*arguments: Sequence[object]) -> list[tuple[int, str]]:
    """Two nodes of one process each, that meet at a port of this machine: the code of each, and what it said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*TORCHRUN, "--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1", "--master-port", port]
    started = [
        subprocess.Popen(
            [*map(str, [*command, "--node-rank", rank, "-m", "smalti", "train", *given])],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, given in enumerate(arguments)
    ]
    said = [process.communicate(timeout=1000)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "settings"),
    [
        ("tiny", 60, []),
        ("tiny", 30, ["batch_size=8", "views=[{size: 48}, {size: [32, 40]}]"]),
        # 4 clips on each rank: the groups that this judge compares are then those of the whole batch.
        ("tiny", 60, ["batch_size=8", JUDGE]),
        # Few steps: in one process too, a change of 1e-15 becomes 1e-8 in 9 steps of it and 1e-3 in 15.
        ("paper-video-128", 6, ["tokenizer.norm=position", "gan.adaptive=true", "accumulate=2"]),
    ],
)
def test_two_ranks_equal_one_after_60_steps_and_have_its_samples(tmp_path, name, steps, settings):
    """In float64: in float32 another order of a sum is soon another step of Adam, where a gradient is but rounding."""
    settings = [f"steps={steps}", "batch_size=4", "validation=null", "data.size=32", *settings]
    config = find(name, tiny=True).override(settings)
    script, yaml = tmp_path / "rank.py", written(config, tmp_path / "run.yaml")
    script.write_text(LOOP)
    ended([sys.executable, script, tmp_path / "one", yaml])
    ended([*TWO, script, tmp_path / "two", yaml])
    whole, *ranks = (
        json.loads((tmp_path / folder / f"samples-{size}-{rank}.json").read_text())
        for folder, size, rank in (("one", 1, 0), ("two", 2, 0), ("two", 2, 1))
    )
    assert len(whole) == steps
    assert len({key for keys in whole for key in keys}) > config.batch_size
    # Ranks take turns: rank r of 2 has rows r, r + 2, ... of the one batch.
    assert whole == [[key for pair in zip(*keys, strict=True) for key in pair] for keys in zip(*ranks, strict=True)]
    found = worst(tmp_path / "one", tmp_path / "two")
    assert max(found.values()) < 1e-5, found
    one, two = (json.loads((tmp_path / folder / "losses.json").read_text()) for folder in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_two_nodes_equal_one_process_after_60_steps_by_the_command(tmp_path):
    settings = sets("steps=60", "batch_size=4", "validation=null", "data.size=32")
    run = ["tiny-video", *settings, "--device", "cpu", "--out"]
    ended([sys.executable, "-m", "smalti", "train", *run, tmp_path / "one"])
    for code, said in nodes([*run, tmp_path / "two"], [*run, tmp_path / "two"]):
        assert code == 0, said
    found = worst(tmp_path / "one", tmp_path / "two")
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
def test_a_run_of_two_ranks_resumes_with_the_weights_of_both_players(tmp_path):
    out, settings = tmp_path / "run", sets("steps=4", "save_every=2", "validation=null")
    command = [*TWO, "-m", "smalti", "train", PATCH, "--tiny", *settings, "--device", "cpu", "--out", out]
    ended(command)
    before = digests(out)
    assert any("discriminator" in name for name in before)
    # A stop after two steps is made by taking back what came after them.
    for path in (out / "step-00000004", out / "tokenizer"):
        path.rename(tmp_path / path.name)
    ended([*command, "--resume"])
    assert digests(out) == before
    assert Tokenizer.load(out / "tokenizer").fingerprint == Tokenizer.load(tmp_path / "tokenizer").fingerprint


@pytest.mark.slow
def test_nodes_with_other_settings_are_refused(tmp_path):
    run = ["tiny", *sets("steps=2", "batch_size=2", "validation=null"), "--device", "cpu", "--out", tmp_path / "run"]
    ended = nodes([*run, "--seed", 1], [*run, "--seed", 2])
    assert all(code for code, _ in ended)
    assert sum("the 2 processes have different settings" in said for _, said in ended) == 1
    assert not checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_a_bad_file_on_one_rank_keeps_the_ranks_in_step(tmp_path):
    data = tmp_path / "photos"
    data.mkdir()
    for photo in sorted(Path(find("tiny").data.path).glob("*.jpg"))[:3]:
        (data / photo.name).write_bytes(photo.read_bytes())
    (data / "cut.jpg").write_bytes(photo.read_bytes()[:2000])
    judge = "gan={discriminator: {kind: patch, width: 8}, adaptive: true, lecam: 0.1}"
    settings = sets("steps=6", "batch_size=4", "accumulate=2", f"data.path={data}", "validation=null", judge)
    ended([*TWO, "-m", "smalti", "train", "tiny", *settings, "--device", "cpu", "--out", tmp_path / "run"])
    rows = [
        json.loads(line) for path in (tmp_path / "run").glob("bad_files*") for line in path.read_text().splitlines()
    ]
    assert {Path(row["path"]).name for row in rows} == {"cut.jpg"}
