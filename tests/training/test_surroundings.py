"""Runs outlive their surroundings: readers that go away, full disks, hang-ups, second processes, lost checkpoints."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smalti.data import bundled
from smalti.errors import ConfigError, IntegrityError
from smalti.files import MANIFEST, lock, manifest, write_json
from smalti.model_folder import checkpoints
from smalti.pipeline.doctor import check_run
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.fit import LOCK, last_logged_step
from tests import programs

SETTINGS = ["batch_size=1", "eval_every=100000", "sample_every=100000", "log_every=1", "data.size=32",
            "validation=null", "tokenizer.width=8", "lpips=null", "weights={l2: 1.0, batch_entropy: 0.1}",
            "gan=null"]  # fmt: skip

SLOW = pytest.mark.slow
"""Five seconds each; `test_run.py` sends SIGTERM in the quick suite."""


def recipe(*changes):
    return find("tiny", tiny=True).override([*SETTINGS, "steps=4", "save_every=2", *changes])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The config of a run in the form that the command trains, small enough for seconds."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(recipe().to_yaml())
    return path


def by_file(path, out, *changes):
    sets = [f"--set={change}" for change in changes]
    return [sys.executable, "-m", "smalti", "train", str(path), "--out", str(out), "--device", "cpu", *sets]


def heed_interrupts():
    """Undo what a shell does to its background jobs, and nohup, under which tests may run: ignored signals stay so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def communicate(process):
    """Wait for a process and return what it said; one that does not end in time is killed, and the test fails."""
    try:
        return process.communicate(timeout=120)
    finally:
        process.kill()


@SLOW  # SIGINT stops `tokenize` below
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1"])
def test_every_signal_that_asks_for_an_end_saves_first(files, tmp_path, name):
    out, number = tmp_path / "run", getattr(signal, name)
    process = subprocess.Popen(
        by_file(files, out, "steps=100000"), stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    while not (out / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = communicate(process)
    assert process.returncode == 128 + number, said
    assert f"stopped by {name} at step " in said
    assert "go on with --resume" in said
    assert checkpoints(out)


@SLOW
def test_a_signal_that_is_ignored_stays_ignored(files, tmp_path):
    """As under nohup."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        by_file(files, out, "steps=40"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    while not (out / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0
    assert checkpoints(out)[-1].name == "step-00000040"


UNREAD = """
import os, sys
read, write = os.pipe()
os.close(read)
for number in (1, 2):
    os.dup2(write, number)
sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
from smalti.cli.main import main
main()
"""


@pytest.mark.parametrize("ending", ["pipe", *(pytest.param(ending, marks=SLOW) for ending in ("full", "closed"))])
def test_no_end_of_the_output_ends_the_work(files, tmp_path, ending):
    """A pipe that nobody reads any more, a full disk under the log, no output at all."""
    out, run = tmp_path / "run", by_file(files, tmp_path / "run")
    if ending == "pipe":
        assert programs.run("-c", UNREAD, *run[3:]).returncode == 1
    else:
        shell = " ".join(f"'{part}'" for part in run)
        redirection = {"full": "2>/dev/full", "closed": ">&- 2>&- <&-"}[ending]
        assert subprocess.run(["bash", "-c", f"{shell} {redirection}"], timeout=120, check=False).returncode == 0
    assert checkpoints(out)[-1].name == "step-00000004"
    assert (out / "tokenizer" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("save_every", "left"),
    [(2, ["log.jsonl"]), (100, ["log.jsonl", "tokenizer"]), (100, ["saved.json"]), (100, ["log.jsonl", "saved.json"])],
)
def test_resuming_without_the_checkpoints_is_refused_and_changes_nothing(tmp_path, save_every, left):
    """Whatever else of a run that saved is left, also where it ended before its first regular checkpoint."""
    out = tmp_path / "run"
    train(recipe(f"save_every={save_every}"), out)
    for path in (*checkpoints(out), out / "tokenizer", out / "log.jsonl", out / "saved.json"):
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LOCK}
    with pytest.raises(IntegrityError, match=r"it had checkpoints, and its log reaches step [04], but there is none"):
        train(recipe(f"save_every={save_every}"), out, resume=True)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LOCK}
    assert check_run(out)[-1].state == "broken"


def test_a_part_of_another_step_is_refused_even_with_a_manifest_that_fits(tmp_path):
    out = tmp_path / "run"
    train(recipe("save_every=1", "keep=4"), out)
    *_, early, late = checkpoints(out)
    shutil.copyfile(early / "optimizer.safetensors", late / "optimizer.safetensors")
    (late / MANIFEST).unlink()
    write_json(late / MANIFEST, manifest(late))
    for folder in checkpoints(out)[:-1]:
        shutil.rmtree(folder)
    with pytest.raises(IntegrityError, match=r"optimizer\.safetensors: is of step 3, its checkpoint of step 4"):
        train(recipe("save_every=1", "keep=4"), out, resume=True)


def test_a_run_that_never_saved_begins_again(tmp_path):
    out = tmp_path / "run"
    train(recipe(), out)
    for folder in (*checkpoints(out), out / "tokenizer"):
        shutil.rmtree(folder)
    (out / "saved.json").unlink()
    lines = (out / "log.jsonl").read_text().splitlines()
    (out / "log.jsonl").write_text("\n".join(lines[:2]) + "\n{cut sho")
    assert train(recipe(), out, resume=True).steps == 4


def test_a_process_that_is_refused_changes_nothing_of_the_run(tmp_path):
    out = tmp_path / "run"
    train(recipe(), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LOCK}
    held = (
        f"import time; from pathlib import Path; from smalti.files import lock\nwith lock(Path({str(out / LOCK)!r})):\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", f"{held}    print('held', flush=True); time.sleep(60)"],
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process writes here now"):
            train(recipe("log_every=3", "workers=1"), out, resume=True)
    finally:
        holder.kill()
        holder.communicate()
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there and is not a run"):
        train(recipe(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_run_that_was_killed_while_it_wrote_its_config_begins_with_the_same_command(files, tmp_path):
    out = tmp_path / "run"
    fault = {**os.environ, "SMALTI_FAULT": "write_bytes:before-rename"}
    done = programs.run(*by_file(files, out)[1:], env=fault)
    assert done.returncode == -signal.SIGKILL
    assert not (out / "config.yaml").exists()
    assert train(recipe(), out).steps == 4
    assert not list(out.glob(".*.part"))


def test_a_folder_with_a_lock_alone_is_new(tmp_path):
    with lock(tmp_path / "run" / LOCK):
        pass
    assert Path(train(recipe(), tmp_path / "run").trained).is_dir()


def test_ctrl_c_says_that_it_stopped_and_how_to_go_on(tmp_path):
    """In the middle of its work, whatever release of typer is installed."""
    tokens, images = tmp_path / "tokens", tmp_path / "images"
    images.mkdir()
    photo = sorted(bundled.photos("heldout").glob("*.jpg"))[0]
    for number in range(200):
        shutil.copyfile(photo, images / f"{number}.jpg")
    options = ["--size", "128", "--workers", "0", "--set", "options.shard_files=2", "--device", "cpu"]
    command = ["-m", "smalti", "tokenize", "smalti/tiny-image", images, "--out", tokens]
    process = programs.Program(*command, *options)
    while not list(tokens.rglob("*.parquet")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    ended = process.wait(120)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == "stopped; the same command goes on where it was"


def as_slurm_starts_it(rank, port, arguments):
    """A rank as `srun` starts it by the script of docs/clusters.md: Slurm's variables, and the shell's line."""
    words = " ".join(f"'{argument}'" for argument in arguments)
    line = f"RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec {words}"
    slurm = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2"}
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        ["bash", "-c", line], env={**os.environ, **slurm, **place}, stderr=subprocess.PIPE, text=True
    )


def stopped_by_warning(out, arguments, after):
    """Start two ranks, warn both once the log has a step above `after`; the step that they saved."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [as_slurm_starts_it(rank, port, arguments) for rank in range(2)]
    while last_logged_step(out) <= after and all(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
    for rank in ranks:
        rank.send_signal(signal.SIGUSR1)
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [128 + signal.SIGUSR1] * 2, said
    return int(checkpoints(out)[-1].name.removeprefix("step-"))


@SLOW
def test_ranks_started_as_slurm_starts_them_save_on_its_warning_and_go_on(files, tmp_path):
    out = tmp_path / "run"
    arguments = by_file(files, out, "batch_size=2", "steps=100000", "save_every=100000")
    first = stopped_by_warning(out, arguments, 0)
    assert stopped_by_warning(out, [*arguments, "--resume"], first) > first
