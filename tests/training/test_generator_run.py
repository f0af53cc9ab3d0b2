"""A generator's run as a user has it: train on a token set, stop, resume, draw every task."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from smalti.cli.main import run as cli
from smalti.config import load_yaml
from smalti.data import bundled, open_video, write_video
from smalti.data.videos import read_clip
from smalti.errors import BadTensor, ConfigError, InputError, IntegrityError
from smalti.families import load
from smalti.files import sha256
from smalti.generation import Generator, MaskedConfig, PaintingTask
from smalti.model_folder import checkpoints
from smalti.pipeline.generate import generate
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.tokens.config import TokenizeOptions
from smalti.tokens.dataset import token_batches
from smalti.tokens.reader import TokenSet
from smalti.training.generator_config import GeneratorTraining
from smalti.training.generator_rows import GridRows
from smalti.training.generator_task import draft, generator_step, start_generator, task_of_step
from smalti.video import limit_pixels
from tests.randomise import random_tokenizer
from tests.reference.plain_step import ALONE
from tests.token_sets import make_set, save_tokenizer
from tests.training.test_step import Waits

TASKS = ("generation", "prediction", "interpolation", "outpainting", "inpainting")
CHILD = (
    "import sys, torch; from pathlib import Path; from smalti.config import load_yaml\n"
    "from smalti.pipeline.train import train\n"
    "from smalti.training.generator_config import GeneratorTraining\n"
    "torch.set_num_threads(1)\n"
    "config = load_yaml(GeneratorTraining, Path(sys.argv[1]))\n"
    "train(config, Path(sys.argv[2]), resume=sys.argv[3] == 'resume', device='cpu')"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tokenizer of strides 4 x 8 x 8, and sets of 9-frame clips of the film: training and held-out."""
    folder = tmp_path_factory.mktemp("made")
    save_tokenizer(folder / "tokenizer", strides=((4, 2),), time_kernel=4, patch=4)
    for part in ("train", "heldout"):
        make_set(folder / "tokenizer", bundled.videos(part), folder / part, options=TokenizeOptions(size=32, clip=9))
    return folder


def config_of(made, **changes):
    tokens = TokenSet(made / "train")
    model = MaskedConfig(
        levels=tokens.tokenizer_info.levels,
        grid=tuple(tokens.ids(0).shape),
        tasks=TASKS,
        hints=True,
        width=16,
        depth=1,
        heads=2,
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
    train(load_yaml(GeneratorTraining, out.parent / "run.yaml"), out, device="cpu")
    return out


def test_a_run_leaves_a_generator_a_log_and_samples_of_every_task(made, undisturbed):
    generator = Generator.load(undisturbed / "generator")
    assert generator.origin.tokenizer == TokenSet(made / "train").tokenizer_info.fingerprint
    lines = [json.loads(line) for line in (undisturbed / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    measured = [line for line in lines if "validation/bits_at_1" in line]
    assert [line["step"] for line in measured] == [3, 6]
    assert all(0 < measured[0][f"validation/bits_at_{share}"] < 30 for share in ("0.25", "0.5", "0.75", "1"))
    drawn = next(line for line in lines if "samples/generation" in line)
    assert {f"samples/{task}" for task in TASKS} <= set(drawn)
    assert (undisturbed / "samples" / "step-00000006.png").is_file()


@pytest.mark.slow
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
        train(config_of(made), out, device="cpu")
        for folder in checkpoints(out):
            if int(folder.name[5:]) > step:
                folder.rename(tmp_path / f"{step}-{folder.name}")
        train(config_of(made), out, resume=True, device="cpu")
        assert digests(out) == digests(undisturbed)


def test_the_tasks_of_steps_have_their_shares(made):
    config = config_of(made, tasks=[{"task": {"kind": "generation"}, "share": 3}, {"task": {"kind": "prediction"}}])
    kinds = [task_of_step(config, number).kind for number in range(2000)]
    assert abs(kinds.count("generation") / 2000 - 0.75) < 0.03
    assert kinds == [task_of_step(config, number).kind for number in range(2000)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "needs `tokenizer`"),
        ({"tasks": []}, "tasks is empty"),
        ({"validation": "elsewhere"}, "elsewhere: no such folder"),
    ],
)
def test_what_cannot_be_trained_is_one_line(made, tmp_path, changes, message):
    with pytest.raises(Exception, match=message):
        train(config_of(made, **changes), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_the_set_names_the_field_to_set(made, tmp_path):
    for field, value in (("levels", [8, 8]), ("grid", [1, 4, 4]), ("classes", 3)):
        model = {**config_of(made).generator.plain(), field: value}
        with pytest.raises(ConfigError, match=f"`set` generator.{field}="):
            train(config_of(made, generator=model), tmp_path / "run", device="cpu")


def test_another_tokenizer_than_that_of_the_set_is_refused(made, tmp_path):
    other = save_tokenizer(tmp_path / "other", seed=1, strides=((4, 2),), time_kernel=4, patch=4)
    with pytest.raises(IntegrityError, match="made by the tokenizer"):
        train(config_of(made, tokenizer=str(other)), tmp_path / "run", device="cpu")
    assert torch.get_num_threads() >= 1


def test_a_run_folder_names_its_tokenizer(made, tmp_path):
    out = train(config_of(made, tokenizer=str(made), steps=1), tmp_path / "run", device="cpu").trained
    assert (out / "config.json").is_file()
    with pytest.raises(InputError, match="holds neither a tokenizer"):
        train(config_of(made, tokenizer=str(made / "train")), tmp_path / "other", device="cpu")


def drawn(made, undisturbed, out, *options):
    """`smalti generate` in this process; the files that it wrote."""
    arguments = ["generate", str(undisturbed), "--out", str(out), "--steps", "2", "--device", "cpu", *options]
    assert cli(arguments) == 0
    return sorted(out.iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_drawn_as_video_of_the_models_size(made, undisturbed, tmp_path, task):
    given = [] if task == "generation" else ["--input", str(clip_of(tmp_path)), "--paste"]
    files = drawn(made, undisturbed, tmp_path / "out", "--task", task, "--count", "2", *given)
    stem = "clip" if given else "generation"
    assert [path.name for path in files] == [f"{stem}-0000.mp4", f"{stem}-0001.mp4"]
    with open_video(files[0]) as reader:
        assert len(reader) == 9
        first = next(iter(reader.frames()))
    assert first.shape == (32, 32, 3)
    if task in ("prediction", "interpolation"):
        with open_video(tmp_path / "clip.mp4") as reader:
            true = next(iter(reader.frames()))
        assert (first.float() - true.float()).abs().mean() < 6  # pasted: but for the codec


@pytest.mark.parametrize("region", ["vertical", "horizontal", "moving"])
@pytest.mark.parametrize("task", ["outpainting", "inpainting"])
def test_every_region_of_a_film_is_painted_and_the_rest_is_kept(made, undisturbed, tmp_path, capsys, task, region):
    given = [
        "--input",
        str(bundled.videos("heldout") / "march.mp4"),
        "--fit",
        "--paste",
        "--originals",
        str(tmp_path / "true"),
    ]
    capsys.readouterr()
    (file,) = drawn(made, undisturbed, tmp_path / "out", "--task", task, "--region", region, "--json", *given)
    told = json.loads(capsys.readouterr().out)
    assert told["done"] == [{"path": str(file), "class": None}]
    assert told["task"]["region"] == region
    clip, true = (read_clip(tmp_path / folder / "march.mp4").float() for folder in ("out", "true"))
    kept = PaintingTask(kind=task, region=region).known_pixels((9, 32, 32))
    difference = (clip - true).abs().mean(3)
    assert difference[kept].mean() < 8 < difference[~kept].mean()  # the codec blurs a little over the edge


def clip_of(folder):
    """Nine frames of 32 x 32."""
    rng = torch.Generator().manual_seed(0)
    ground = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=rng), size=(32, 32), mode="bilinear")
    frame = (ground[0].permute(1, 2, 0) * 255).to(torch.uint8)
    write_video(folder / "clip.mp4", iter([frame] * 9), 24.0, crf=4)
    return folder / "clip.mp4"


def test_a_sample_follows_from_seed_and_number_and_greedy_takes_the_likeliest(made, undisturbed, tmp_path):
    greedy = ["--temperature", "0", "--noise", "0"]
    runs = [("a", "2", "1", []), ("b", "1", "1", []), ("c", "1", "2", [])]
    runs += [("d", "1", "1", greedy), ("e", "1", "2", greedy)]
    found = {
        name: sha256(drawn(made, undisturbed, tmp_path / name, "--count", count, "--seed", seed, *more)[0])
        for name, count, seed, more in runs
    }
    assert found["a"] == found["b"]
    assert found["b"] != found["c"]
    assert found["d"] == found["e"]


@pytest.mark.parametrize("batch", [2, 8])
def test_an_input_is_encoded_once_for_all_its_samples(made, undisturbed, tmp_path, batch):
    tokenizer, encoded = load(made / "tokenizer"), []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(tuple(inputs[0].shape[:2])))
    fields = {"task": "prediction", "input": clip_of(tmp_path), "steps": 2, "device": "cpu", "tokenizer": tokenizer}
    done = generate(undisturbed, tmp_path / "five", count=5, batch=batch, **fields).done
    assert encoded == [(9, 1)]
    del fields["tokenizer"]
    four = generate(undisturbed, tmp_path / "four", count=4, batch=1, **fields).done
    assert [sha256(file.path) for file in done][:4] == [sha256(file.path) for file in four]


def test_longer_video_goes_on_window_after_window(made, undisturbed, tmp_path):
    options = ["--task", "prediction", "--input", str(clip_of(tmp_path)), "--length", "20"]
    (file,) = drawn(made, undisturbed, tmp_path / "out", *options)
    with open_video(file) as reader:
        assert len(reader) == 20


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--class", "0"], 2, "trained without any"),
        (["--guidance", "3"], 2, "trained without classes"),
        (["--steps", "49"], 2, "--steps 49: there are 48 tokens"),
        (["--task", "prediction"], 2, "give --input"),
        (["--task", "prediction", "--frames", "9", "--input", "clip.mp4"], 2, "none is left to predict"),
        (["--task", "interpolation", "--input", "short.mp4"], 3, "too few for 9 frames"),
        (["--task", "prediction", "--input", "wide.mp4"], 3, "is 1 x 32 x 48"),
        (["--length", "20", "--task", "inpainting", "--input", "clip.mp4"], 2, "goes with generation and prediction"),
        (["--tokenizer", "other"], 4, "mean nothing to another one"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(made, undisturbed, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    clip_of(tmp_path)
    save_tokenizer(tmp_path / "other", seed=1, strides=((4, 2),), time_kernel=4, patch=4)
    frame = torch.zeros(32, 48, 3, dtype=torch.uint8)
    write_video(tmp_path / "wide.mp4", iter([frame] * 9), 24.0)
    write_video(tmp_path / "short.mp4", iter([frame[:, :32]] * 3), 24.0)
    capsys.readouterr()
    assert cli(["generate", str(undisturbed), "--out", "out", "--device", "cpu", *options]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_logits_that_are_not_finite_are_one_line(made, undisturbed, tmp_path, capsys):
    generator = Generator.load(undisturbed / "generator")
    with torch.no_grad():
        generator.model.vocabulary.dense.weight.fill_(3e38)  # finite, as a file must be; sums of it are not
    generator.save(tmp_path / "broken")
    options = ["--tokenizer", str(made / "tokenizer"), "--device", "cpu", "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert cli(["generate", str(tmp_path / "broken"), *options]) == 70
    assert "not finite" in capsys.readouterr().err


def test_a_run_says_what_it_is(undisturbed, capsys):
    capsys.readouterr()
    assert cli(["info", str(undisturbed), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["size"] == {"frames": 9, "height": 32, "width": 32}
    assert about["run"]["checkpoint"] == "step-00000006"
    assert about["run"]["last"]["loss"] > 0
    assert cli(["info", str(undisturbed)]) == 0
    assert "bits per token" in capsys.readouterr().out


def test_a_folder_of_clips_becomes_a_folder_of_clips_with_the_originals_beside(made, undisturbed, tmp_path):
    options = ["--task", "prediction", "--fit", "--paste", "--input"]
    beside = ["--originals", str(tmp_path / "true"), "--batch", "3"]
    files = drawn(made, undisturbed, tmp_path / "out", *options, str(bundled.videos("heldout")), *beside)
    names = [path.name for path in sorted(bundled.videos("heldout").iterdir())]
    assert [path.name for path in files] == names == [path.name for path in sorted((tmp_path / "true").iterdir())]
    for name in names:
        clips = [read_clip(tmp_path / folder / name).float() for folder in ("out", "true")]
        assert clips[0].shape == clips[1].shape == (9, 32, 32, 3)
        assert (clips[0][0] - clips[1][0]).abs().mean() < 6  # given: but for the codec
        assert (clips[0][1:] - clips[1][1:]).abs().mean() > 6
    # A clip alone is drawn as it is among others.
    (alone,) = drawn(made, undisturbed, tmp_path / "alone", *options, str(bundled.videos("heldout") / names[1]))
    assert (read_clip(alone).float() - read_clip(files[1]).float()).abs().mean() < 1


def test_what_does_not_move_is_held(made, undisturbed, tmp_path, capsys):
    options = ["--task", "prediction", "--fit", "--hold", "--input", str(bundled.videos("heldout") / "march.mp4")]
    drawn(made, undisturbed, tmp_path / "out", *options, "--originals", str(tmp_path / "true"))
    clips = [read_clip(tmp_path / folder / "march.mp4").float() for folder in ("out", "true")]
    assert (clips[0][0] - clips[1][0]).abs().mean() < 6  # the given frame: but for the codec
    assert (clips[0][1:] - clips[1][1:]).abs().mean() > 6
    capsys.readouterr()
    assert cli(["generate", str(undisturbed), "--out", str(tmp_path / "no"), "--hold", "--device", "cpu"]) == 2
    assert "goes with --task prediction" in capsys.readouterr().err


def test_inputs_that_cannot_be_read_are_named_and_the_rest_is_drawn(made, undisturbed, tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    clip_of(folder)
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:500])
    options = ["--task", "prediction", "--input", str(folder), "--steps", "2", "--device", "cpu"]
    capsys.readouterr()
    assert cli(["generate", str(undisturbed), "--out", str(tmp_path / "out"), *options]) == 3
    assert "left out: " in (said := capsys.readouterr().err)
    assert "cut.mp4" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.mp4"]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(made, tmp_path):
    config = config_of(made, steps=12, save_every=1, sample_every=12, eval_every=12)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    train(config, tmp_path / "quiet", device="cpu")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run.yaml"), str(tmp_path / "run")]
    for mode, lines in (("start", 2), ("resume", 6)):
        log = tmp_path / "run" / "log.jsonl"
        with subprocess.Popen([*command, mode], stderr=subprocess.DEVNULL) as child:
            while child.poll() is None and (not log.is_file() or len(log.read_bytes().splitlines()) < lines):
                time.sleep(0.005)
            child.kill()
    assert not (tmp_path / "run" / "generator").exists()
    assert subprocess.run([*command, "resume"], timeout=300).returncode == 0
    assert digests(tmp_path / "run") == digests(tmp_path / "quiet")


def test_the_rates_and_the_average_of_a_generator_are_the_formulas_written_out(made):
    """Warm-up, cosine, and an average whose decay rises as (1 + n) / (10 + n) up to its own."""
    optimizer = {"lr": 1e-3, "warmup": 2, "final": 0.5, "weight_decay": 0.0}
    config = config_of(made, optimizer=optimizer, ema=0.3, steps=6, tasks=[{"task": {"kind": "generation"}}])
    state = start_generator(config, GridRows(config.data, config.generator), ALONE)
    stream = token_batches(GridRows(config.data, config.generator), batch_size=2, seed=0)
    along = [0.5 + 0.5 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
    for n, rate in enumerate([0.5e-3, 1e-3, *(1e-3 * share for share in along)]):
        average = [p.clone() for p in state.ema.model.parameters()]
        live = [p.detach().clone() for p in state.model.parameters()]
        measured = generator_step(state, next(stream))
        assert math.isclose(measured.lr, rate)
        moved = max(float((p.detach() - q).abs().max()) for p, q in zip(state.model.parameters(), live, strict=True))
        assert n or math.isclose(moved, rate, rel_tol=1e-3)  # the first step of Adam is the rate
        decay = [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3][n]
        for now, before, p in zip(state.ema.model.parameters(), average, state.model.parameters(), strict=True):
            assert torch.allclose(now, decay * before + (1 - decay) * p, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wanted", [False, True])
def test_a_step_of_a_token_model_has_fast_kernels_where_they_are_wanted_and_its_tokenizer_never(made, wanted):
    def note(*_):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark))

    config = config_of(made, fast_kernels=wanted, tasks=[{"task": {"kind": "inpainting"}}])
    rows, seen, encoding = GridRows(config.data, config.generator), [], []
    state = start_generator(config, rows, ALONE)
    next(state.model.parameters()).register_hook(note)
    state.model.register_forward_hook(note)
    state.optimizer.register_step_pre_hook(note)
    state.tokenizer.encoder.register_forward_hook(lambda *_: encoding.append(torch.backends.cudnn.benchmark))
    generator_step(state, next(token_batches(rows, batch_size=2, seed=0)))
    note()
    assert seen == [*3 * [(wanted, wanted)], (False, False)]
    assert encoding == [False]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", ["tiny-video", "tiny-video-conditional"])
def test_hints_are_the_ids_of_the_clip_with_its_missing_pixels_filled_in(name, check):
    """Whatever the device, `prompt.py` looks at the masks of a task in the CPU's memory alone."""
    tokenizer = random_tokenizer(find(name, tiny=True).tokenizer)
    ids = torch.randint(tokenizer.codebook_size, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    for task in (PaintingTask(kind="outpainting"), PaintingTask(kind="inpainting", region="moving")):
        with torch.inference_mode():
            wanted = tokenizer.encode(limit_pixels(task.fill(tokenizer.decode(ids))))
        with Waits() as seen:
            found = draft(tokenizer, task, ids, check=check)
        assert {name for name, _ in seen.lines if name != "prompt.py"} == ({"quantizer.py"} if check else set())
        assert torch.equal(found, wanted)
        assert not torch.equal(found, ids)
        assert not found.is_inference()


def test_a_clip_that_is_not_finite_has_no_hints(made):
    tokenizer = load(str(made / "tokenizer"))
    with torch.no_grad():
        tokenizer.decoder.last_weight.fill_(torch.nan)
    with pytest.raises(BadTensor, match="not finite"):
        draft(tokenizer, PaintingTask(kind="outpainting"), torch.zeros(1, 3, 4, 4, dtype=torch.int64), check=True)
