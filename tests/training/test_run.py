"""Runs as a user starts, kills and resumes them: real processes, real signals, the folder that they leave."""

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smalti.errors import ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.files import sha256
from smalti.model_folder import checkpoints
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.tokenizer import Tokenizer
from smalti.training.config import TokenizerTraining
from tests import programs

SMALL = ["steps=12", "batch_size=2", "save_every=4", "eval_every=6", "sample_every=12", "log_every=3", "data.size=32",
         "validation=null", "tokenizer.width=8", "keep=3"]  # fmt: skip
CHILD = "import sys; from pathlib import Path; from smalti.recipes import find; " \
        "from smalti.pipeline.train import train; " \
        "import torch; torch.set_num_threads(1); a = sys.argv; " \
        "train(find(a[1], tiny=True).override(a[4:]), Path(a[2]), resume=a[3] == 'resume')"  # fmt: skip


def recipe(*changes, name="tiny"):
    return find(name, tiny=True).override([*SMALL, *changes])


def command(out, mode, *changes, name="tiny"):
    return ["-c", CHILD, name, out, mode, *SMALL, *changes]


def child(out, mode, *changes, name="tiny", **environment):
    """Train in a process of its own; its exit code and what it said."""
    environment = {**os.environ, **environment}
    done = programs.run(*command(out, mode, *changes, name=name), env=environment, timeout=200)
    return done.returncode, done.stderr


def final_digests(out):
    """The digest of every tensor file of the last checkpoint: both players, average, optimizers, anchors."""
    last = checkpoints(out)[-1]
    return {str(p.relative_to(last)): sha256(p) for p in sorted(last.rglob("*.safetensors"))}


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


PAPER = [
    "tokenizer.width=8", "tokenizer.multipliers=[1,2]", "tokenizer.strides=[[2,2]]", "data.frames=3", "data.size=16",
    "gan.discriminator.width=4", "gan.penalty_every=3", "gan.start=2", "gan.adaptive=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Twelve steps of both players on film, in one piece."""
    out = tmp_path_factory.mktemp("quiet") / "run"
    code, said = child(out, "start", *PAPER, name="paper-video-128")
    assert code == 0, said
    return out


@pytest.mark.parametrize(
    "point",
    [
        "new_folder:before-rename",
        pytest.param("new_folder:before-manifest", marks=pytest.mark.slow),
        pytest.param("new_folder:after-rename", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_while_it_saves_ends_with_the_same_bits(tmp_path, undisturbed, point):
    out = tmp_path / "run"
    code, said = child(out, "start", *PAPER, name="paper-video-128", SMALTI_FAULT=point)
    assert code == -signal.SIGKILL, said
    code, said = child(out, "resume", *PAPER, name="paper-video-128")
    assert code == 0, said
    assert final_digests(out) == final_digests(undisturbed)
    assert [line["step"] for line in logged(out)] == [line["step"] for line in logged(undisturbed)]
    assert not list(out.glob(".*.part"))


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_saves_and_goes_on_to_the_same_bits(tmp_path, undisturbed):
    out = tmp_path / "run"
    process = programs.Program(*command(out, "start", *PAPER, name="paper-video-128"))
    while not (out / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    done = process.wait(120)
    if done.returncode:  # else it was at its last step already
        assert "stopped by SIGTERM" in done.stderr
        assert checkpoints(out)
        code, text = child(out, "resume", *PAPER, name="paper-video-128")
        assert code == 0, text
    assert final_digests(out) == final_digests(undisturbed)


def test_workers_and_accumulated_parts_change_no_sample(tmp_path):
    train(recipe(), tmp_path / "a")
    train(recipe("workers=2"), tmp_path / "b")
    assert final_digests(tmp_path / "a") == final_digests(tmp_path / "b")


def test_the_run_folder_is_complete(tmp_path):
    out = tmp_path / "run"
    settings = recipe().plain() | {"validation": find("tiny").validation.plain()}
    trained = train(
        TokenizerTraining.parse(settings).override(["validation.size=32", "validation_limit=2"]), out
    ).trained
    assert {p.name for p in out.iterdir()} >= {"config.yaml", "log.jsonl", "events", "samples", "tokenizer"}
    assert [p.name for p in checkpoints(out)] == ["step-00000004", "step-00000008", "step-00000012"]
    tokenizer = Tokenizer.load(trained)
    assert tokenizer.fingerprint == Tokenizer.load(checkpoints(out)[-1] / "tokenizer").fingerprint
    lines = logged(out)
    assert [line["step"] for line in lines if "total" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "validation/psnr" in line] == [6, 12]
    assert list((out / "samples").glob("*.png"))
    events = EventAccumulator(str(out / "events"))
    events.Reload()
    tags = events.Tags()
    assert {"total", "psnr", "validation/psnr"} <= set(tags["scalars"])
    assert tags["images"] == ["samples"]
    assert "config/text_summary" in tags["tensors"]
    assert {"total", "psnr", "loss/l2", "usage", "perplexity", "lr", "grad_norm"} <= lines[0].keys()


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_absent_is_one_line_and_one_that_is_there_has_the_run(tmp_path, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config = recipe(f"tracker={name}")
    if importlib.util.find_spec(name) is None:
        with pytest.raises(MachineError, match=f"^tracker {name}: is not installed"):
            train(config, tmp_path / "run")
        return
    train(config, tmp_path / "run")
    where = tmp_path / "run" / "wandb" if name == "wandb" else tmp_path / "trackio"
    data = b"".join(path.read_bytes() for path in where.rglob("*") if path.is_file())
    assert all(word in data for word in (b"grad_norm", b"samples"))


def test_losses_fall_and_reconstructions_improve_on_real_photographs(tmp_path):
    train(recipe("steps=60", "optimizer.warmup=5", "optimizer.lr=3e-3", "log_every=5"), tmp_path / "run")
    lines = logged(tmp_path / "run")
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 1


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, capsys):
    out = tmp_path / "run"
    train(recipe(), out)
    last = checkpoints(out)[-1] / "tokenizer.safetensors"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    before = load_file(out / "tokenizer" / "model.safetensors")
    train(recipe(), out, resume=True)
    said = capsys.readouterr().err
    assert "step-00000012" in said
    assert "resuming from step-00000008" in said
    after = load_file(out / "tokenizer" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    for folder in checkpoints(out):
        (folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="none of its 3 checkpoints is whole"):
        train(recipe(), out, resume=True)


def test_what_may_not_be_mixed_is_refused(tmp_path):
    out, data = tmp_path / "run", tmp_path / "photos"
    data.mkdir()
    for photo in sorted(Path(find("tiny").data.path).glob("*.jpg"))[:3]:
        (data / photo.name).write_bytes(photo.read_bytes())
    config = recipe(f"data.path={data}")
    train(config, out)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config, out)
    with pytest.raises(ConfigError, match="other settings: seed"):
        train(config.override(["seed=5"]), out, resume=True)
    (data / "more.jpg").write_bytes((data / photo.name).read_bytes())
    with pytest.raises(InputError, match="not the ones this run began with"):
        train(config, out, resume=True)
    with pytest.raises(ConfigError, match="no run to resume"):
        train(config, tmp_path / "nothing", resume=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not a run"):
        train(config, tmp_path / "else")


CONSTANT = "optimizer={schedule: constant, warmup: 2}"


def test_a_run_of_constant_learning_rates_can_be_made_longer_by_its_folder_alone(tmp_path):
    train(recipe(CONSTANT), tmp_path / "whole")
    train(recipe(CONSTANT, "steps=4"), tmp_path / "run")
    train(str(tmp_path / "run"), set=["steps=12"], resume=True)
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "whole")
    assert logged(tmp_path / "run")[-1]["step"] == 12
    with pytest.raises(ConfigError, match="the run has reached step 12"):
        train(tmp_path / "run", set=["steps=6"], resume=True)


def test_a_run_whose_learning_rates_end_at_its_last_step_says_why_it_stays_as_long(tmp_path):
    train(recipe(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"steps \(12 -> 24\): optimizer.schedule is a cosine over 12 steps"):
        train(tmp_path / "run", set=["steps=24"], resume=True)
    with pytest.raises(ConfigError, match="holds a run already; give `resume`"):
        train(tmp_path / "run")


def test_tables_of_codes_resume_bit_for_bit(tmp_path):
    quantizer = "tokenizer.quantizer={kind: codebook, size: 64, dim: 4, losses: [commitment]}"
    table = [quantizer, "weights={l2: 1.0, commitment: 0.25}", "codebook={rows: averages, restart: 0.5}"]
    out = tmp_path / "run"
    train(recipe(*table), out)
    wanted = final_digests(out)
    assert "codebook.safetensors" in wanted
    assert logged(out)[-1]["restarted"] >= 0
    shutil.rmtree(checkpoints(out)[-1])
    train(out, resume=True)
    assert final_digests(out) == wanted


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    from smalti.files import lock

    out = tmp_path / "run"
    train(recipe(), out)
    with lock(out / ".lock"), pytest.raises(ConfigError, match="another process writes here"):
        train(recipe("log_every=1"), out, resume=True)


def test_numbers_that_stay_not_finite_end_the_run_with_good_weights(tmp_path):
    config = recipe("steps=40", "optimizer.lr=1e30", "optimizer.warmup=0", "optimizer.clip=null", "save_every=100")
    with pytest.raises(SmaltiError, match="not finite 10 times in a row") as error:
        train(config, tmp_path / "run")
    assert error.value.exit_code == 70
    assert "start another run with a lower optimizer.lr" in str(error.value)  # resuming with another one is refused


def test_bad_files_are_named_and_counted_and_the_run_goes_on(tmp_path):
    data = tmp_path / "photos"
    data.mkdir()
    for photo in sorted(Path(find("tiny").data.path).glob("*.jpg"))[:5]:
        (data / photo.name).write_bytes(photo.read_bytes())
    (data / "cut.jpg").write_bytes(photo.read_bytes()[:2000])
    train(recipe(f"data.path={data}", "batch_size=4"), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "bad_files.jsonl").read_text().splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["cut.jpg"]
    assert logged(tmp_path / "run")[-1]["bad_files"] == 1


def test_pictures_and_film_can_be_learnt_together(tmp_path):
    film, photo = find("tiny-video", tiny=True), find("tiny", tiny=True)
    data = {"kind": "joint", "images": photo.data.plain(), "videos": film.data.plain(), "share": 0.5}
    config = TokenizerTraining.parse({**film.plain(), "data": data}).override(
        ["steps=6", "batch_size=2", "data.images.size=32", "data.videos.size=32", "data.videos.frames=5",
         "data.images_per_clip=2", "validation=null", "tokenizer.width=8"]
    )  # fmt: skip
    train(config, tmp_path / "run")
    seen = [line["tokens"] for line in logged(tmp_path / "run")]
    assert sum(seen) == 3 * (2 * 2 * 4 * 4) + 3 * (2 * 2 * 4 * 4)  # four pictures, or two clips of two latent frames
    train(config, tmp_path / "run", resume=True)


def test_every_recipe_is_valid_and_round_trips():
    from smalti.recipes import catalogue

    for entry in catalogue():
        for config in (entry.config(), entry.tiny()):
            assert type(config).parse(config.plain()) == config
