"""`smalti doctor` of recipes and runs: each check fires where there is its fault, and none where there is none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from smalti.cli.main import run as command
from smalti.data import bundled
from smalti.errors import SmaltiError
from smalti.model_folder import checkpoints
from smalti.pipeline.check_recipe import check_recipe
from smalti.pipeline.doctor import check_run, check_system
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.samples import skipped_steps

SMALL = ["data.size=32", "optimizer.warmup=2", "validation=null", "tokenizer.width=8", "batch_size=4", "steps=8"]
GAN = "gan={discriminator: {kind: patch, width: 8}, weight: 0.1}"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def by_name(checks):
    return {check.name: check for check in checks}


def test_another_system_than_linux_and_macos_is_said_to_be_none():
    assert [check_system(name).state for name in ("Linux", "Darwin", "Windows")] == ["ok", "ok", "broken"]
    assert "smalti runs on Linux and macOS" in check_system("Windows").result


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted(bundled.photos("train").glob("*.jpg"))[:12]:
        (folder / photo.name).write_bytes(photo.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["tiny", "paper-video-128"])
def test_a_healthy_recipe_has_no_note_and_nothing_is_written(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert command(["doctor", name, "--tiny", "--json", "--device", "cpu"]) == 0
    checks = by_name_of_json(capsys.readouterr().out)
    assert {name for name, check in checks.items() if check["state"] != "ok"} <= {"number format"}
    wanted = {"data", "files", "reading", "values", "optimizer.lr", "parameters", "memory", "speed", "codes", "disk"}
    assert wanted | ({"discriminator"} if name != "tiny" else set()) <= set(checks)
    assert tree(tmp_path / "here") == {}


def by_name_of_json(text):
    return {check["name"]: check for check in json.loads(text)["checks"]}


def spoil(photos, fault):
    names = sorted(photos.iterdir())
    if fault == "cut":
        names[3].write_bytes(names[3].read_bytes()[:700])
    elif fault == "flat":
        for name in names[:6]:
            Image.new("RGB", (64, 64), (90, 90, 90)).save(name, "JPEG")
    elif fault == "dark":
        for name in names:
            Image.effect_noise((64, 64), 4).point(lambda v: v // 16).convert("RGB").save(name, "JPEG")
    elif fault == "all bad":
        for name in names:
            name.write_bytes(b"\xff\xd8no image")


@pytest.mark.parametrize(
    ("fault", "settings", "name", "state", "code", "said"),
    [
        ("cut", [], "files", "note", 0, "1 of 12 samples cannot be read: "),
        ("flat", [], "values", "note", 0, "6 of 12 samples are of one colour, more than a tenth"),
        ("dark", [], "values", "note", 0, "less than a tenth of the range"),
        ("all bad", [], "data", "broken", 3, "12 of 12 samples cannot be read"),
        (None, ["data.path=/nowhere"], "data", "broken", 3, "/nowhere: no such file"),
        (None, ["optimizer.lr=0.5"], "optimizer.lr", "note", 0, "moves a weight by all of itself"),
        (None, ["optimizer.warmup=8"], "optimizer.lr", "note", 0, "the warm-up of 8 steps is as long"),
        (None, [GAN, "gan.start=8"], "gan.start", "note", 0, "starts at step 8 of 8: never"),
        (None, ["keep=1000000000"], "disk", "broken", 5, "GiB are wanted"),
        (None, ["weights={l2: 1e39, batch_entropy: -1.0}"], "loss", "broken", 70, "at the first step"),
        (None, ["weights={l2: 1.0}"], "config", "broken", 2, "no weight for the loss 'batch_entropy'"),
    ],
)  # fmt: skip
def test_a_fault_is_found_before_training(photos, tmp_path, capsys, fault, settings, name, state, code, said):
    spoil(photos, fault)
    before = tree(tmp_path)
    sets = [f"--set={one}" for one in (*SMALL, f"data.path={photos}", *settings)]
    assert command(["doctor", "tiny", *sets, "--out", str(tmp_path / "run"), "--json"]) == code
    check = by_name_of_json(capsys.readouterr().out)[name]
    assert check["state"] == state
    assert said in check["result"]
    assert check["remedy"]
    assert tree(tmp_path) == before


def test_a_wrong_config_is_an_error_of_one_line(capsys):
    assert command(["doctor", "tiny", "--set", "optimizer.rate=1"]) == 2
    assert "optimizer.rate: no such field" in capsys.readouterr().err
    assert command(["doctor", "--tiny"]) == 2


MEMORY = """
import re, sys
from smalti.pipeline.check_recipe import check_recipe
from smalti.pipeline.train import train
from smalti.recipes import find
import torch; torch.set_num_threads(1)
from smalti.training.tokenizer_task import TokenizerTask
from smalti.training.distributed import World
def peak(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
config = find("tiny").override(sys.argv[3:])
if sys.argv[1] == "estimate":
    (check,) = [c for c in check_recipe(config, sys.argv[2]) if c.name == "memory"]
    print(float(re.search(r"about ([0-9.]+) GiB", check.result)[1]) * 2**30)
else:
    train(config.replace({"batch_size": 1, "steps": 1}), sys.argv[2] + "/warm")  # what torch itself takes
    before = peak("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    train(config, sys.argv[2] + "/run")
    print(peak("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("gan", ["gan=null", "gan={discriminator: {kind: patch, width: 64}, weight: 0.1}"])
def test_the_memory_of_a_run_is_estimated_within_a_half(tmp_path, gan):
    settings = ["data.size=128", "batch_size=32", "validation=null", "steps=2", "save_every=9", "sample_every=99", gan]
    found = []
    for what in ("estimate", "measure"):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, what, str(tmp_path), *settings], capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(float(done.stdout))
    print(f"estimate {found[0] / 2**30:.2f} GiB, measured {found[1] / 2**30:.2f} GiB")
    assert found[1] / 1.5 < found[0] < found[1] * 1.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("healthy") / "run"
    train(find("tiny").override([*SMALL, "save_every=4", "log_every=1", "sample_every=100", "eval_every=100"]), out)
    return out


def test_a_healthy_run_has_no_note_and_is_left_as_it_is(trained, capsys):
    before = tree(trained)
    assert command(["doctor", str(trained), "--json"]) == 0
    checks = by_name_of_json(capsys.readouterr().out)
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert {"log", "rules", "bad files", "checkpoints", "disk"} <= set(checks)
    assert tree(trained) == before
    assert command(["doctor", str(trained), "--set", "steps=9"]) == 2


def test_damaged_checkpoints_and_bad_files_of_a_run_are_named(trained, tmp_path, capsys):
    import shutil

    out = shutil.copytree(trained, tmp_path / "run")
    (out / "bad_files.jsonl").write_text('{"path": "a.jpg", "code": "cut", "message": "", "bytes": 3}\n{"pa')
    first, last = checkpoints(out)
    (last / "state.json").write_text("{}")
    checks = by_name(check_run(out))
    assert checks["bad files"].state == "note"
    assert "1 (1 cut): a.jpg" in checks["bad files"].result
    assert checks["checkpoints"].state == "note"
    assert str(last / "state.json") in checks["checkpoints"].result
    (first / "optimizer.safetensors").unlink()
    assert command(["doctor", str(out)]) == 4


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "x", "loss": NaN}',
        '{"step": 1e400}',
        "[" * 100_000,
        "\xff",
        "{}",
    ],
)
def test_a_line_of_a_log_that_no_run_writes_is_counted_and_ends_nothing(trained, tmp_path, capsys, line):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    with (out / "log.jsonl").open("a") as log:
        log.write(line + "\n")
    checks = by_name(check_run(out))
    assert checks["log lines"].result.startswith("1 of ")
    assert checks["log"] == by_name(check_run(trained))["log"]
    assert command(["info", str(out)]) == 0
    assert "of" in capsys.readouterr().out
    (out / "tokenizer" / "model.safetensors").write_bytes(b"x")
    assert "model.safetensors" in by_name(check_run(out))["checkpoints"].result


def test_the_samples_of_skipped_steps_are_named(tmp_path):
    config = find("tiny").override(
        [*SMALL, "optimizer.lr=1e30", "optimizer.warmup=0", "optimizer.clip=null", "steps=40"]
    )
    with pytest.raises(SmaltiError, match="not finite 10 times in a row"):
        train(config, tmp_path / "run")
    checks = by_name(check_run(tmp_path / "run"))
    rows = skipped_steps(tmp_path / "run")
    assert checks["skipped steps"].state == checks["not finite"].state == "note"
    assert "10 updates were left out" in checks["skipped steps"].result
    assert ", ".join(rows[0]["samples"][:3]) in checks["skipped steps"].result
    assert by_name(check_recipe(config))["optimizer.lr"].state == "note"
