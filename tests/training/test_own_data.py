"""A run is validated on its user's data and learns the classes of its token set; what it leaves out it counts."""

import json
import shutil

import pytest
import yaml

import smalti
from smalti.config import load_yaml
from smalti.data import bundled
from smalti.errors import ConfigError
from smalti.generation import Generator, MaskedConfig
from smalti.metrics import SMALTI
from smalti.recipes import find
from smalti.tokenizer.frames import score_tokenizer
from smalti.tokens.reader import TokenSet
from smalti.training.config import TokenizerTraining
from smalti.training.generator_config import GeneratorTraining
from smalti.training.samples import settle_validation, split_data
from tests.packing import pack, ppm
from tests.reference.token_models import NoRows
from tests.token_sets import save_tokenizer

SMALL = ["steps=2", "batch_size=2", "tokenizer.width=8", "data.size=32", "validation.size=48", "optimizer.warmup=0"]


@pytest.fixture
def photos(tmp_path):
    """Thirty photographs of a user, one of them under three names and in two copies."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.ppm").write_bytes(ppm(str(i), (64, 64)))
    (folder / "link.ppm").symlink_to("00.ppm")
    (folder / "other name.ppm").hardlink_to(folder / "00.ppm")
    return folder


def lines(run, name):
    rows = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_a_recipe_on_other_data_is_validated_on_samples_of_them_that_it_never_trains_on(photos, tmp_path, capsys):
    run = tmp_path / "run"
    smalti.train("tiny", run, set=[*SMALL, f"data.path={photos}", "eval_every=2"], device="cpu")
    config = load_yaml(TokenizerTraining, run / "config.yaml")
    assert (config.validation.path, config.validation.size, config.held_out) == (photos, 48, 32)
    said = capsys.readouterr().err
    assert "3 of 30 samples are held out for validation and never trained on" in said
    assert "left out: 2 links to files that are listed" in said
    counts = {"samples": 27, "held_out": 3, "copies_of_held_out": 0, "links to files that are listed": 2}
    assert json.loads((run / "data.json").read_text()) == counts
    parts = split_data(config)
    trained, held = ({part.key(i) for i in range(len(part))} for part in (parts.train, parts.validation))
    assert (len(trained), len(held), trained & held) == (27, 3, set())
    report = score_tokenizer(smalti.load(run), parts.validation, SMALTI)
    assert lines(run, "validation/psnr") == [pytest.approx(report.psnr, abs=1e-4)]


def test_shipped_media_are_validated_on_only_where_they_are_asked_for_and_that_is_said(photos):
    own = find("tiny").override([f"data.path={photos}"])
    assert split_data(own.override(["held_out=0"])).notes[-1].startswith("validated on media that ship with smalti")
    assert split_data(find("tiny")).notes == ()
    assert split_data(own.override(["validation=null"])).notes[-1].startswith("no validation: set held_out to 32")
    with pytest.raises(ConfigError, match="set held_out to 0, or validation to null"):
        own.override(["held_out=3"])
    assert len(split_data(own.override(["held_out=3", "validation=null"])).validation) == 3


@pytest.mark.parametrize("recipe", ["tiny", "tiny-video", "demo-image", "image", "paper-image-128"])
def test_no_recipe_on_other_data_is_validated_on_shipped_media(recipe, photos):
    """Small forms too; recipes of images, and of videos."""
    if "video" in recipe:
        for path in sorted(bundled.videos("train").iterdir())[:3]:
            shutil.copy(path, photos / path.name)
    for tiny in (False, True):
        config = settle_validation(find(recipe, tiny=tiny).override([f"data.path={photos}"]))
        shown = config.validation
        assert shown is None or not bundled.is_shipped(shown.path)


def test_a_run_from_before_goes_on_as_it_began(photos, tmp_path):
    """Its config.yaml has no `held_out`: it trains on all its data, and is validated where it was."""
    run, command = tmp_path / "run", [*SMALL, f"data.path={photos}", "save_every=1"]
    smalti.train("tiny", run, set=[*command, "held_out=0", "eval_every=1"], device="cpu")
    before = lines(run, "validation/psnr")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["held_out"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(run / "step-00000002")
    shutil.rmtree(run / "tokenizer")
    smalti.train("tiny", run, set=[*command, "eval_every=1"], device="cpu", resume=True)
    assert lines(run, "validation/psnr") == before
    assert load_yaml(TokenizerTraining, run / "config.yaml").held_out is None


def test_a_run_resumes_with_what_it_held_out(photos, tmp_path):
    run, command = tmp_path / "run", [*SMALL, f"data.path={photos}", "save_every=1"]
    smalti.train("tiny", run, set=command, device="cpu")
    shutil.rmtree(run / "step-00000002")
    before = (run / "data.json").read_bytes()
    smalti.train("tiny", run, set=[*command, "validation_limit=5"], device="cpu", resume=True)
    assert load_yaml(TokenizerTraining, run / "config.yaml").held_out == 32
    assert (run / "data.json").read_bytes() == before


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Token sets of the same eight images: with classes, without, and with classes that have names alone."""
    folder = tmp_path_factory.mktemp("sets")
    tokenizer = save_tokenizer(folder / "tokenizer")
    for i in range(8):
        path = folder / "data" / ("cat", "dog", "eel")[i % 3] / f"{i}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ppm(str(i), (16, 16)))
    for name, options in (("labelled", ["inputs.class_folders=true"]), ("plain", [])):
        smalti.tokenize(tokenizer, folder / "data", folder / name, workers=0, device="cpu", set=options)
    return folder


def training(sets, name, *changes):
    tokens = TokenSet(sets / name)
    grid, levels = tuple(tokens.ids(0).shape), tokens.tokenizer_info.levels
    model = MaskedConfig(levels=levels, grid=grid, width=16, depth=1, heads=2)
    config = GeneratorTraining(generator=model, data=sets / name, steps=2, batch_size=2)
    return config.override(["optimizer.warmup=1", *changes])


def trained(config, run, **options):
    smalti.train(config, run, device="cpu", **options)
    return load_yaml(GeneratorTraining, run / "config.yaml"), Generator.load(run / "generator")


def test_a_labelled_set_trains_a_model_of_its_classes_and_says_so(sets, tmp_path, capsys):
    config, generator = trained(training(sets, "labelled"), tmp_path / "run")
    assert (config.class_conditional, config.generator.classes) == (True, 3)
    assert (generator.model.config.classes, generator.origin.classes) == (3, ("cat", "dog", "eel"))
    assert "the model learns its 3 classes" in capsys.readouterr().err


def test_classes_that_are_not_learned_are_said(sets, tmp_path, capsys):
    config, generator = trained(training(sets, "labelled", "class_conditional=false"), tmp_path / "run")
    assert (config.class_conditional, config.generator.classes, generator.origin.classes) == (False, 0, ())
    assert "the model does not learn its 3 classes" in capsys.readouterr().err
    config, generator = trained(training(sets, "plain"), tmp_path / "plain")
    assert (config.class_conditional, config.generator.classes) == (False, 0)
    assert "class" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="has rows without labels; `set` class_conditional=false"):
        trained(training(sets, "plain", "class_conditional=true"), tmp_path / "none")


def test_an_unconditional_run_from_before_goes_on_without_classes(sets, tmp_path):
    run = tmp_path / "run"
    _, generator = trained(training(sets, "labelled", "class_conditional=false", "save_every=1"), run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["class_conditional"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(run / "step-00000002")
    again, same = trained(training(sets, "labelled", "save_every=1"), run, resume=True)
    assert (again.class_conditional, again.generator.classes) == (None, 0)
    assert same.fingerprint == generator.fingerprint


def test_a_conditional_run_resumes(sets, tmp_path):
    run = tmp_path / "run"
    _, generator = trained(training(sets, "labelled", "save_every=1"), run)
    shutil.rmtree(run / "step-00000002")
    assert trained(training(sets, "labelled", "save_every=1"), run, resume=True)[1].fingerprint == generator.fingerprint


def test_classes_with_names_alone_are_numbered_in_their_order(sets, tmp_path):
    files = sorted((sets / "data").rglob("*.ppm"))
    (tmp_path / "tars").mkdir()
    for part, chosen in (("a", files[:4]), ("b", files[4:])):
        members = {}
        for path in chosen:
            members |= {path.name: path.read_bytes(), f"{path.stem}.cls": path.parent.name.encode()}
        pack(tmp_path / "tars" / f"{part}.tar", members)
    smalti.tokenize(sets / "tokenizer", tmp_path / "tars", tmp_path / "set", workers=0, device="cpu")
    assert {row.label for row in TokenSet(tmp_path / "set")} == {None}
    _, generator = trained(training(tmp_path, "set"), tmp_path / "run")
    assert (generator.model.config.classes, generator.origin.classes) == (3, ("cat", "dog", "eel"))


@pytest.mark.parametrize(("labels", "named"), [([0, 2, 3], ("a", "b", "c")), ([-1, 0, 2], ())])
def test_a_class_that_the_model_has_not_is_refused_before_the_first_step(labels, named):
    """No step looks at the classes of its rows."""
    rows = NoRows(labels)
    rows.tokens.path, rows.classes = "tokens", named
    with pytest.raises(ConfigError, match=r"tokens: row \d is of class (3|-1), outside \[0, 3\)"):
        rows.check_classes(3)
