"""Token models of pictures as a user has them: classes of folders, both kinds of model, PNG, half precision."""

import json

import pytest
import torch

from smalti.cli.main import run as cli
from smalti.data import read_image
from smalti.data.bundled import photos
from smalti.files import sha256
from smalti.generation import Generator
from smalti.model_folder import checkpoints
from smalti.pipeline.train import train
from smalti.tokens.reader import TokenSet
from smalti.training.generator_config import GeneratorTraining
from tests.token_sets import save_tokenizer
from tests.training.test_generator_run import digests

CLASSES = ("bright", "dark", "middle")
PAINTING = ("outpainting", "inpainting")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A picture tokenizer of strides 8 x 8, and a set of 32 x 32 pictures in folders of three classes."""
    folder = tmp_path_factory.mktemp("pictures")
    save_tokenizer(folder / "tokenizer", strides=((1, 2),), time_kernel=1, patch=4)
    for number, photo in enumerate(sorted(photos("train").iterdir())[:12]):
        target = folder / "photos" / CLASSES[number % 3] / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    command = ["tokenize", folder / "tokenizer", folder / "photos", "--out", folder / "set", "--size", 32]
    command += ["--workers", 0, "--set", "inputs.class_folders=true"]
    assert cli([*map(str, command)]) == 0
    return folder


def config_of(made, kind="masked", **changes):
    model = {"kind": kind, "levels": TokenSet(made / "set").tokenizer_info.levels, "grid": (1, 4, 4), "classes": 3}
    model |= {"width": 16, "depth": 2, "heads": 2}
    tasks = [{"task": {"kind": "generation"}}]
    if kind == "masked":
        model |= {"hints": True}
        tasks += [{"task": {"kind": painting}} for painting in PAINTING]
    fields = {
        "generator": model,
        "data": str(made / "set"),
        "validation": str(made / "set"),
        "tokenizer": str(made / "tokenizer"),
        "tasks": tasks,
        "sampling": {"steps": 2},
        "steps": 4,
        "batch_size": 4,
        "optimizer": {"lr": 1e-2, "warmup": 1},
        "log_every": 1,
        "save_every": 2,
        "sample_every": 4,
        "eval_every": 4,
    }
    return GeneratorTraining.parse({**fields, **changes})


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """A run of each kind of model, by the command."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("masked", "autoregressive"):
        (folder / f"{kind}.yaml").write_text(config_of(made, kind).to_yaml())
        assert cli(["train", str(folder / f"{kind}.yaml"), "--out", str(folder / kind), "--device", "cpu"]) == 0
    return folder


def drawn(run, out, *options):
    assert cli(["generate", str(run), "--out", str(out), "--device", "cpu", *options]) == 0
    return {str(path.relative_to(out)): sha256(path) for path in sorted(out.rglob("*.png"))}


each_kind = pytest.mark.parametrize("kind", ["masked", "autoregressive"])


@each_kind
def test_a_model_learns_the_classes_of_the_folders(runs, kind):
    assert Generator.load(runs / kind / "generator").origin.classes == CLASSES
    lines = [json.loads(line) for line in (runs / kind / "log.jsonl").read_text().splitlines()]
    measured = "validation/bits_at_1" if kind == "masked" else "validation/bits"
    assert any(0 < line[measured] < 40 for line in lines if measured in line)
    assert any(line.get("samples/generation") for line in lines)
    assert (runs / kind / "samples" / "step-00000004.png").is_file()


@each_kind
def test_pictures_of_a_class_by_name_or_number_are_the_same(runs, tmp_path, kind):
    options = ["--count", "3", "--guidance", "3", "--steps", "4"]
    by_name = drawn(runs / kind, tmp_path / "name", "--class", "dark", *options)
    assert [*by_name] == [f"generation-{n:04d}.png" for n in range(3)]
    assert read_image(tmp_path / "name" / "generation-0000.png").shape == (32, 32, 3)
    assert drawn(runs / kind, tmp_path / "number", "--class", "1", *options) == by_name
    assert drawn(runs / kind, tmp_path / "other", "--class", "0", *options) != by_name


@each_kind
def test_all_classes_in_turn_are_folders_of_what_each_draws_alone(runs, tmp_path, kind):
    every = drawn(runs / kind, tmp_path / "every", "--class", "all", "--count", "2", "--steps", "4", "--batch", "4")
    assert [*every] == [f"{c:04d}/{n:04d}.png" for c in range(3) for n in range(2)]
    alone = drawn(runs / kind, tmp_path / "alone", "--class", "2", "--count", "1", "--steps", "4")
    assert alone["generation-0000.png"] == every["0002/0000.png"]
    assert len({*every.values()}) == 6


@pytest.mark.parametrize("task", PAINTING)
@pytest.mark.parametrize("region", ["central", "vertical", "horizontal", "moving"])
def test_given_pixels_of_a_picture_are_pasted_bit_for_bit(runs, tmp_path, task, region):
    from smalti.generation import PaintingTask

    options = ["--task", task, "--region", region, "--input", str(photos("heldout")), "--fit", "--paste"]
    options += ["--originals", str(tmp_path / "originals"), "--steps", "2"]
    files = drawn(runs / "masked", tmp_path / "out", *options)
    assert [*files] == [f"{path.stem}.png" for path in sorted(photos("heldout").iterdir())]
    given = PaintingTask(kind=task, region=region).known_pixels((1, 32, 32))[0]
    for name in files:
        picture, original = (read_image(tmp_path / folder / name) for folder in ("out", "originals"))
        assert torch.equal(picture[given], original[given])
        assert not torch.equal(picture, original)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("masked", ["--class", "3"], "class 3: this model has the classes 0 to 2"),
        ("masked", ["--class", "-1"], "class -1: this model has the classes 0 to 2"),
        ("masked", ["--class", "drak"], "did you mean 'dark'?"),
        ("masked", ["--guidance", "3"], "give --class"),
        ("masked", ["--class", "0", "--guidance", "1e9"], "guidance.scale"),
        ("masked", ["--class", "0", "--guidance", "nan"], "--guidance"),
        ("masked", ["--temperature", "inf"], "temperature"),
        ("masked", ["--temperature", "nan"], "--temperature"),
        ("masked", ["--temperature", "-1"], "--temperature"),
        ("masked", ["--top-p", "0"], "top_p"),
        ("masked", ["--noise", "inf"], "noise"),
        ("masked", ["--steps", "17"], "there are 16 tokens"),
        ("masked", ["--set", "ordr=halton"], "order"),
        ("masked", ["--task", "prediction", "--input", "x.png"], "none is left to predict"),
        ("masked", ["--length", "9"], "of video"),
        ("autoregressive", ["--task", "inpainting", "--input", "x.png"], "use a masked model"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(runs, tmp_path, capsys, kind, options, message):
    capsys.readouterr()
    assert cli(["generate", str(runs / kind), "--out", str(tmp_path / "out"), "--device", "cpu", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_greedy_drawing_is_a_function_of_no_seed(runs, tmp_path):
    for kind, greedy in (("masked", ["--noise", "0", "--steps", "4"]), ("autoregressive", [])):
        options = ["--temperature", "0", "--class", "1", *greedy]
        one, two = (drawn(runs / kind, tmp_path / f"{kind}{seed}", "--seed", str(seed), *options) for seed in (1, 2))
        assert one == two


@each_kind
def test_a_resumed_run_has_the_same_bits(made, runs, tmp_path, kind):
    train(config_of(made, kind), tmp_path / "run", device="cpu")
    for part in ("generator", checkpoints(tmp_path / "run")[-1].name):
        (tmp_path / "run" / part).rename(tmp_path / part)
    train(config_of(made, kind), tmp_path / "run", resume=True, device="cpu")
    assert digests(tmp_path / "run") == digests(runs / kind)


@each_kind
def test_half_precision_keeps_the_weights_whole_and_learns_as_well(made, runs, tmp_path, kind):
    train(config_of(made, kind, precision="bfloat16"), tmp_path / "run", device="cpu")
    half, whole = (Generator.load(folder / "generator").model for folder in (tmp_path / "run", runs / kind))
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines() if '"loss"' in line]
        for folder in (tmp_path / "run", runs / kind)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert not all(torch.equal(a, b) for a, b in zip(half.parameters(), whole.parameters(), strict=True))


def test_numbers_that_stay_not_finite_end_the_run_and_keep_the_weights(made, tmp_path, capsys):
    wild = {"lr": 1e30, "warmup": 0, "schedule": "constant", "clip": None}
    config = config_of(made, steps=30, optimizer=wild, sample_every=30, eval_every=30)
    (tmp_path / "wild.yaml").write_text(config.to_yaml())
    capsys.readouterr()
    assert cli(["train", str(tmp_path / "wild.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 70
    assert "not finite 10 times in a row" in capsys.readouterr().err


def test_labels_that_a_model_has_no_class_for_are_refused(made, tmp_path):
    model = {**config_of(made).generator.plain(), "classes": 2}
    with pytest.raises(Exception, match=r"`set` generator\.classes=3"):
        train(config_of(made, generator=model), tmp_path / "run", device="cpu")
