"""`smalti import`: whole checkpoints of MagicMaster's trainer, and everything that can lie in their place."""

import json
import os
import random
import shutil

import pytest
import torch

from smalti.errors import ConfigError, IntegrityError
from smalti.families import import_checkpoint, load
from smalti.files import sha256
from smalti.foreign import read_checkpoint, tensors
from tests.cli.conftest import assert_one_line
from tests.families.test_magicmaster import shapes_of
from tests.goldens.rule import FOLDER
from tests.goldens.rule import load as golden

TINY, FULL = FOLDER / "mm_envelope_tiny2d.pth", FOLDER / "mm_envelope_fullkeys_3d.pth"
EMA = "generator_ema.module."


@pytest.fixture
def averaged():
    """The averaged generator in the small checkpoint, as its own trainer wrote it."""
    state = read_checkpoint(TINY)["state_dict"]
    return {name.removeprefix(EMA): tensor.clone() for name, tensor in state.items() if name.startswith(EMA)}


def saved(path, tensors):
    torch.save(tensors, path)
    return path


def test_a_checkpoint_gives_the_outputs_of_its_averaged_weights_by_one_command(smalti, tmp_path):
    numbers, _ = golden("mm_envelope_tiny2d")
    for copy, ids in (("average", "ids"), ("live", "ids_live")):
        told = smalti("import", TINY, "--out", tmp_path / copy, "--copy", copy, "--json")
        assert told.code == 0
        report = json.loads(told.out)
        assert (report["copy"], len(report["used"]), report["missing"]) == (copy, 28, [])
        tokenizer = load(tmp_path / copy)
        video = numbers["input_u8"].float() / 127.5 - 1
        with torch.no_grad():
            found = tokenizer.encode(video)
            made = tokenizer.decode(found)
        assert torch.equal(found.flatten(), numbers[ids].long().flatten())
        if copy == "average":
            torch.testing.assert_close(made, numbers["recon"], rtol=1e-5, atol=1e-4)


def test_every_tensor_of_the_file_is_accounted_for(smalti, tmp_path):
    ended = smalti("import", FULL, "--out", tmp_path / "k600")
    assert ended.code == 0
    assert "not causal" in ended.out
    about = json.loads((tmp_path / "k600" / "import.json").read_text())
    assert {reason: len(names) for reason, names in about["ignored"].items()} == {
        "stored but never run by MagicMaster": 6,
        "the discriminator": 43,
        "the live generator": 362,
        "the averaged generator, or its counter": 1,
        "LPIPS": 33,
    }
    told = [*about["used"], *(name for names in about["ignored"].values() for name in names)]
    assert (len(told), set(told)) == (801, set(tensors(read_checkpoint(FULL)["state_dict"])))
    assert about["missing"] == []
    assert about["sha256"] == sha256(FULL)
    info = json.loads(smalti("info", tmp_path / "k600", "--json").out)
    assert (info["parameters"]["all"], info["is_causal"], info["strides"]["time"]) == (93_045_449, False, 4)


@pytest.mark.parametrize("prefix", ["", "generator.module.", "generator.", "generator_ema.module."])
def test_stripped_files_and_both_prefixes_are_taken(averaged, tmp_path, prefix):
    path = saved(tmp_path / "stripped.pth", {prefix + name: tensor for name, tensor in averaged.items()})
    copy = "live" if prefix.startswith("generator.") else "average"
    found = import_checkpoint(path, levels=(8, 5, 5, 5), copy=copy)
    whole = import_checkpoint(TINY).tokenizer.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.tokenizer.state_dict().items())


def test_the_law_of_a_codebook_is_an_option_and_without_it_nothing_is_written(smalti, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, out = FOLDER / "ibq_tiny.ckpt", tmp_path / "ibq"
    assert_one_line(smalti("import", file, "--out", out), 2, "--lookup euclidean for taming and Chameleon, or inner")
    assert_one_line(smalti("info", file), 2, "give `lookup` euclidean")  # which has no such option
    assert not out.exists()
    told = smalti("import", file, "--lookup", "inner", "--out", out)
    assert told.code == 0
    assert "average weights" in told.out
    info = json.loads(smalti("info", out, "--json").out)
    assert (info["quantizer"], info["is_tile_exact"], info["is_streamable"]) == ("codebook", False, True)
    assert (info["source"]["network"], info["source"]["weights"], info["source"]["pixels"]) == (
        "IBQ",
        "average",
        "[-1, 1]",
    )
    same = json.loads(smalti("info", f"{file}:lookup=inner", "--json").out)
    assert same["fingerprint"] == info["fingerprint"]
    folder = tmp_path / "theirs"  # with a config.yaml, as a run of ours has one
    folder.mkdir()
    shutil.copy(file, folder / "model.ckpt")
    (folder / "config.yaml").write_text("class_path: src.IBQ.models.ibqgan.IBQ\n")
    theirs = json.loads(smalti("info", folder, "--json").out)
    assert (theirs["fingerprint"], "run" in theirs) == (info["fingerprint"], False)


def test_levels_that_the_file_does_not_say_must_be_given(smalti, averaged, tmp_path):
    path = saved(tmp_path / "stripped.pth", averaged)
    assert_one_line(smalti("import", path, "--out", tmp_path / "out"), 2, "--levels")
    assert_one_line(smalti("import", path, "--out", tmp_path / "out", "--levels", "8,5,5"), 2, "4 channels")
    assert_one_line(smalti("import", path, "--out", tmp_path / "out", "--levels", "8;5"), 2, "--levels 8;5")
    assert not (tmp_path / "out").exists()
    assert smalti("import", path, "--out", tmp_path / "out", "--levels", "8,5,5,5").code == 0
    assert_one_line(smalti("import", path, "--out", tmp_path / "out", "--levels", "8,5,5,5"), 2, "already exists")


def test_the_name_of_a_published_file_says_its_levels(smalti, averaged, tmp_path):
    # Six channels, where the small checkpoint has four.
    for part in ("in.weight", "in.bias"):
        averaged[f"quantizer.project_{part}"] = averaged[f"quantizer.project_{part}"][[0, 1, 2, 3, 0, 1]]
    averaged["quantizer.project_out.weight"] = averaged["quantizer.project_out.weight"][:, [0, 1, 2, 3, 0, 1]]
    for codes, levels in ((64_000, [8, 8, 8, 5, 5, 5]), (15_360, [8, 8, 5, 4, 4, 3])):
        path = saved(tmp_path / f"magvit_fsq_imagenet1k_style2_d128_{codes}_128x128_8x8_ep20.pth", averaged)
        ended = smalti("import", path, "--out", tmp_path / str(codes))
        assert ended.code == 0, ended.err
        assert f"its name says {codes:,} codes" in ended.out
        assert list(load(tmp_path / str(codes)).levels) == levels


def test_levels_that_are_not_those_of_the_file_are_refused(smalti, tmp_path):
    ended = smalti("import", TINY, "--out", tmp_path / "out", "--levels", "8,8,5,5")
    assert_one_line(ended, 2, "has 8,5,5,5; leave the option out")
    assert not (tmp_path / "out").exists()
    assert smalti("import", TINY, "--out", tmp_path / "out", "--levels", "8,5,5,5").code == 0


def spoiled(name, averaged, path):
    """A file that must be refused: (path, exit code, what the line says)."""
    first = next(iter(averaged))
    if name == "absent":
        return path, 3, "no such file"
    if name == "a folder":
        path.mkdir()
        return path, 3, "holds neither"
    if name == "cut":
        path.write_bytes(TINY.read_bytes()[:-3000])
    elif name == "one bit":
        data = bytearray(TINY.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)
    elif name == "a tensor missing":
        key = "encoder.encoder_layers.0.0._residual.3.weight"
        saved(path, {k: v for k, v in averaged.items() if k != key})
        return path, 4, key
    elif name == "a stem missing":
        saved(path, {k: v for k, v in averaged.items() if k != "decoder.conv_out.conv.weight"})
        return path, 4, "decoder.conv_out.conv.weight is missing"
    elif name == "a wrong shape":
        key = "encoder.encoder_layers.0.0._residual.5.conv.weight"
        saved(path, averaged | {key: averaged[key][:, :5]})
        return path, 4, key
    elif name == "not a number":
        saved(path, averaged | {first: averaged[first] * torch.nan})
        return path, 4, "NaN"
    elif name == "another program":
        saved(path, {"model": {"embed.weight": torch.zeros(3, 4)}, "optimizer": [1, 2]})
        return path, 4, "not a checkpoint of a family"
    elif name == "no tensors":
        saved(path, {"a": 1})
        return path, 4, "not a checkpoint of a family"
    elif name == "a monstrous network":
        number = torch.zeros(1).expand(1 << 14, 1 << 14)
        saved(path, averaged | {f"encoder.more.{i}": number for i in range(33)})
        return path, 4, "shows 1 stored values over and over"
    elif name == "text":
        path.write_text("<!DOCTYPE html><html>404</html>")
    return path, 4, str(path.name)


@pytest.mark.parametrize(
    "name",
    ["absent", "a folder", "cut", "one bit", "a tensor missing", "a stem missing", "a wrong shape", "not a number"]
    + ["another program", "no tensors", "a monstrous network", "text"],
)
def test_what_is_no_checkpoint_is_one_line_and_leaves_nothing(smalti, averaged, tmp_path, name):
    path, code, what = spoiled(name, averaged, tmp_path / "given.pth")
    ended = smalti("import", path, "--out", tmp_path / "out", "--levels", "8,5,5,5")
    assert_one_line(ended, code, what)
    assert not (tmp_path / "out").exists()


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_hostile_file_runs(smalti, averaged, tmp_path):
    mark = tmp_path / "ran"
    path = saved(tmp_path / "hostile.pth", {"state_dict": averaged, "meta": Hostile(mark)})
    ended = smalti("import", path, "--out", tmp_path / "out", "--levels", "8,5,5,5")
    assert ended.code == 0  # its tensors are sound, and the rest is only looked at
    assert not mark.exists()
    torch.load(path, weights_only=False)  # what other readers would have done
    assert mark.exists()


def test_the_digest_in_a_published_name_is_checked(smalti, tmp_path):
    right = tmp_path / f"model-{sha256(TINY)[:8]}.pth"
    wrong = tmp_path / "model-00000000.pth"
    for path in (right, wrong):
        shutil.copy(TINY, path)
    assert smalti("import", right, "--out", tmp_path / "right").code == 0
    assert_one_line(smalti("import", wrong, "--out", tmp_path / "wrong"), 4, "promises sha256 00000000")


def changed(state, rng):
    """`state` with one to three tensors renamed, left out, or of another shape."""
    state = dict(state)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([*state])
        tensor = state.pop(name)
        how = rng.choice(["gone", "renamed", "flat", "cut", "empty", "scalar", "one more"])
        if how == "renamed":
            parts = name.split(".")
            parts[rng.randrange(len(parts))] = rng.choice(["0", "1", "99", "", "weight", "conv", "net"])
            state[".".join(parts)] = tensor
        elif how != "gone":
            shapes = {"flat": tensor.flatten(), "cut": tensor[:1], "empty": tensor[:0], "one more": tensor[None]}
            state[name] = shapes.get(how, torch.zeros(()))
    return state


def survives(state, path, rounds, levels):
    """How many of the changes were refused, each in one line; none may end otherwise."""
    rng, refused = random.Random(5), 0
    for _ in range(rounds):
        saved(path, changed(state, rng))
        told = None
        try:
            import_checkpoint(path, levels=levels)
        except (IntegrityError, ConfigError) as error:  # ConfigError: a quantizer of another width
            told = str(error)
        refused += told is not None
        assert told is None or (str(path) in told and "\n" not in told)
    return refused


def test_any_change_of_names_and_shapes_is_refused_in_one_line_or_does_no_harm(averaged, tmp_path):
    assert survives(averaged, tmp_path / "changed.pth", 100, (8, 5, 5, 5)) > 80


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mm3d_dsq15360_w32_t5_32px", "mmvqgan_fsq64000_w128_64px"])
def test_any_change_of_the_larger_networks_is_refused_or_does_no_harm(name, tmp_path):
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes_of(golden(name).metadata["config"]).items()}
    levels = (8, 8, 8, 5, 5, 5) if "fsq" in name else None
    assert survives(state, tmp_path / "changed.pth", 40, levels) > 25
