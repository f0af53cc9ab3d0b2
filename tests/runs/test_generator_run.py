"""A generator's run as a user has it: train on a token set, stop, resume, draw every task."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from smalti.config import load_yaml
from smalti.data.samples import film
from smalti.errors import ConfigError, IntegrityError
from smalti.files import sha256
from smalti.generate import Generator, MaskedConfig
from smalti.tokens.options import Options
from smalti.tokens.token_set import TokenSet
from smalti.train.checkpoints import checkpoints
from smalti.train.generator import run_generator, task_of
from smalti.train.generator_config import GeneratorTraining
from tests.token_sets import make_set, save_tokenizer

TASKS = ("generation", "prediction", "interpolation", "outpainting", "inpainting")
CHILD = (
    "import sys, torch; from pathlib import Path; from smalti.config import load_yaml\n"
    "from smalti.train.generator import run_generator\n"
    "from smalti.train.generator_config import GeneratorTraining\n"
    "torch.set_num_threads(1)\n"
    "config = load_yaml(GeneratorTraining, Path(sys.argv[1]))\n"
    "run_generator(config, Path(sys.argv[2]), resume=sys.argv[3] == 'resume', device='cpu')"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tokenizer of strides 4 x 8 x 8, and sets of 9-frame clips of the film: training and held-out."""
    folder = tmp_path_factory.mktemp("made")
    save_tokenizer(folder / "tokenizer", strides=((4, 2),), time=4, patch=4)
    for part in ("train", "heldout"):
        make_set(folder / "tokenizer", film(part), folder / part, options=Options(size=32, clip=9))
    return folder


def config_of(made, **changes):
    tokens = TokenSet(made / "train")
    model = MaskedConfig(
        levels=tokens.about.levels, grid=tuple(tokens.ids(0).shape), tasks=TASKS, hints=True, width=16, depth=1, heads=2
    )
    tasks = [{"task": {"kind": kind}} for kind in TASKS]
    fields = {
        "generator": model.plain(),
        "data": str(made / "train"),
        "validation": str(made / "heldout"),
        "tokenizer": str(made / "tokenizer"),
        "tasks": tasks,
        "sampling": {"steps": 2},
        "steps": 6,
        "batch_size": 2,
        "optimizer": {"lr": 1e-3, "warmup": 2},
        "log_every": 1,
        "save_every": 2,
        "sample_every": 6,
        "eval_every": 3,
        "validation_limit": 2,
        "keep": 3,
    }
    return GeneratorTraining.parse({**fields, **changes})


def digests(out):
    """The digest of every tensor file of the last checkpoint: weights, average, optimizer."""
    last = checkpoints(out)[-1]
    return {str(p.relative_to(last)): sha256(p) for p in sorted(last.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("quiet") / "run"
    (out.parent / "run.yaml").write_text(config_of(made).to_yaml())
    run_generator(load_yaml(GeneratorTraining, out.parent / "run.yaml"), out, device="cpu")
    return out


def test_a_run_leaves_a_generator_a_log_and_samples_of_every_task(made, undisturbed):
    generator = Generator.load(undisturbed / "generator")
    assert generator.origin.tokenizer == TokenSet(made / "train").about.fingerprint
    lines = [json.loads(line) for line in (undisturbed / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    measured = [line for line in lines if "validation/bits_at_1" in line]
    assert [line["step"] for line in measured] == [3, 6]
    assert all(0 < measured[0][f"validation/bits_at_{share}"] < 30 for share in ("0.25", "0.5", "0.75", "1"))
    drawn = next(line for line in lines if "samples/generation" in line)
    assert {f"samples/{task}" for task in TASKS} <= set(drawn)
    assert (undisturbed / "samples" / "step-00000006.png").is_file()


@pytest.mark.parametrize("point", ["new_folder:before-rename"])
def test_a_run_killed_while_it_saves_ends_with_the_same_bits(made, undisturbed, tmp_path, point):
    (tmp_path / "run.yaml").write_text(config_of(made).to_yaml())

    def child(mode, **environment):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "run.yaml"), str(tmp_path / "run"), mode]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stderr

    code, said = child("start", SMALTI_FAULT=point)
    assert code == -signal.SIGKILL, said
    code, said = child("resume")
    assert code == 0, said
    assert digests(tmp_path / "run") == digests(undisturbed)


def test_a_run_resumed_from_any_checkpoint_ends_with_the_same_bits(made, undisturbed, tmp_path):
    for step in (2, 4):
        out = tmp_path / str(step)
        run_generator(config_of(made), out, device="cpu")
        for folder in checkpoints(out):
            if int(folder.name[5:]) > step:
                folder.rename(tmp_path / f"{step}-{folder.name}")
        run_generator(config_of(made), out, resume=True, device="cpu")
        assert digests(out) == digests(undisturbed)


def test_the_tasks_of_steps_have_their_shares(made):
    config = config_of(made, tasks=[{"task": {"kind": "generation"}, "share": 3}, {"task": {"kind": "prediction"}}])
    kinds = [task_of(config, number).kind for number in range(2000)]
    assert abs(kinds.count("generation") / 2000 - 0.75) < 0.03
    assert kinds == [task_of(config, number).kind for number in range(2000)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "needs `tokenizer`"),
        ({"tasks": []}, "tasks is empty"),
        ({"validation": "elsewhere"}, "elsewhere: no token set"),
    ],
)
def test_what_cannot_be_trained_is_one_line(made, tmp_path, changes, message):
    with pytest.raises(Exception, match=message):
        run_generator(config_of(made, **changes), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_the_set_names_the_field_to_set(made, tmp_path):
    for field, value in (("levels", [8, 8]), ("grid", [1, 4, 4]), ("classes", 3)):
        model = {**config_of(made).generator.plain(), field: value}
        with pytest.raises(ConfigError, match=f"--set generator.{field}="):
            run_generator(config_of(made, generator=model), tmp_path / "run", device="cpu")


def test_another_tokenizer_than_that_of_the_set_is_refused(made, tmp_path):
    other = save_tokenizer(tmp_path / "other", seed=1, strides=((4, 2),), time=4, patch=4)
    with pytest.raises(IntegrityError, match="made by the tokenizer"):
        run_generator(config_of(made, tokenizer=str(other)), tmp_path / "run", device="cpu")
    assert torch.get_num_threads() >= 1
