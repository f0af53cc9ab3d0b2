"""The record of samples: one digest for the same samples at every step, however they are cut; those of a bad step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smalti.data import batches
from smalti.errors import SmaltiError
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.samples import skipped_steps

SETTINGS = ["steps=9", "batch_size=4", "save_every=4", "eval_every=100", "sample_every=100", "log_every=1",
            "data.size=32", "validation=null", "tokenizer.width=8", "keep=9"]  # fmt: skip


def recipe(*changes):
    return find("tiny", tiny=True).override([*SETTINGS, *changes])


def digests(out: Path) -> dict[int, str]:
    """The digest of each line of a log."""
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {line["step"]: line["samples"] for line in lines if "samples" in line}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    out = tmp_path_factory.mktemp("quiet") / "run"
    train(recipe(), out)
    return digests(out)


def by_ranks(config, out, ranks):
    """Train in several processes, as torchrun starts them."""
    path = out.with_suffix(".yaml")
    path.write_text(config.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, "-m", "smalti", "train", str(path), "--out", str(out), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["workers", "accumulate", "resume", pytest.param("ranks", marks=pytest.mark.slow)])
def test_the_same_samples_have_the_same_digest_however_they_are_cut(quiet, tmp_path, way):
    out = tmp_path / "run"
    if way == "workers":
        train(recipe("workers=2"), out)
    elif way == "accumulate":
        train(recipe("accumulate=2"), out)
    elif way == "ranks":
        by_ranks(recipe(), out, 2)
    else:
        with pytest.raises(SmaltiError):  # in the middle of what is between two checkpoints
            train(recipe("optimizer.schedule=constant"), out, progress=interrupt_at(6))
        train(recipe("optimizer.schedule=constant"), out, resume=True)
    assert len(quiet) == 9
    assert digests(out) == quiet


def interrupt_at(step):
    def progress(done, total=None, note=""):
        if done == step:
            raise SmaltiError("interrupted")

    return progress


def test_other_samples_have_another_digest_from_their_step_on(quiet, tmp_path):
    train(recipe("seed=1"), tmp_path / "seed")
    assert not {*digests(tmp_path / "seed").items()} & {*quiet.items()}
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in Path(recipe().data.path).iterdir():
        (photos / photo.name).write_bytes(photo.read_bytes())
    for name in (missed := sorted(path.name for path in photos.glob("*.jpg"))[:2]):
        (photos / name).write_bytes((photos / name).read_bytes()[:500])
    train(recipe(f"data.path={photos}", "max_bad=1"), tmp_path / "cut")
    stream = batches(recipe().data.build(), batch_size=4, seed=0)
    first = next(step for step in range(1, 10) if {*missed} & {*next(stream).keys})
    found = digests(tmp_path / "cut")
    assert [step for step in found if found[step] != quiet[step]] == list(range(first, 10))


def test_the_batch_of_a_skipped_step_is_named_and_can_be_loaded_again(tmp_path):
    config = recipe("optimizer.lr=1e30", "optimizer.warmup=0", "optimizer.clip=null", "steps=40", "save_every=100")
    with pytest.raises(SmaltiError, match="not finite 10 times in a row"):
        train(config, tmp_path / "run")
    rows = skipped_steps(tmp_path / "run")
    assert len(rows) == 10
    for row in rows:
        batch = next(batches(config.data.build(), batch_size=4, seed=row["seed"], start_step=row["step"] - 1))
        assert row["samples"] == [*batch.keys]
        assert {"total", "grad_norm"} & {*row["not_finite"]}
