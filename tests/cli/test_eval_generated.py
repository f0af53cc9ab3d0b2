"""`smalti eval --real`: generated sets against real media, files that cannot be read, options that contradict."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smalti.data import bundled, read_image, write_video
from smalti.metrics import GENERATION_PROTOCOLS, GenerationReport
from smalti.metrics.weights import NETWORKS
from tests.cli.conftest import assert_one_line, moving
from tests.goldens.rule import rule

GFVD = ("--protocol", "smalti-gfvd", "--frames", 9)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    """Weights of the true shapes, by the rule of the goldens."""
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file({name: rule(name, shape) for name, shape in NETWORKS["i3d"].shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two generated sets: of two clips of 9 frames, 24 x 32 pixels, and of one that stands still beside another."""
    root = tmp_path_factory.mktemp("made")
    frames = torch.from_numpy(moving(13, 24, 32))
    for seed, clips in enumerate([(frames[:9], frames[4:]), (frames[:9], frames[:1].expand(9, -1, -1, -1))]):
        (root / str(seed)).mkdir()
        for i, clip in enumerate(clips):
            write_video(root / str(seed) / f"{i}.mp4", clip.contiguous(), 24)
    return root


def test_sets_of_several_seeds_against_real_film(smalti, made, i3d, tmp_path):
    (made / "1" / "short.mp4").write_bytes((bundled.videos("heldout") / "march.mp4").read_bytes()[:1000])
    command = (
        "eval",
        made / "0",
        made / "1",
        "--real",
        bundled.videos("heldout"),
        *GFVD,
        "--features",
        i3d,
        "--limit",
        3,
    )
    ended = smalti(*command, "--json", "--out", tmp_path / "out")
    (made / "1" / "short.mp4").unlink()
    assert ended.code == 3
    assert [line.split(":")[0] for line in ended.err.splitlines()] == ["left out", "error"]
    report = GenerationReport.parse(json.loads(ended.out))
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(ended.out)
    assert [(one.name, one.clips) for one in report.sets] == [(str(made / "0"), 2), (str(made / "1"), 2)]
    assert report.sets[1].absent["clips"].startswith("1 of 3 left out, which cannot be read; the first: ")
    assert (report.protocol.size, report.protocol.frames, report.real) == ((24, 32), 9, 4)
    assert (report.protocol.resize, report.protocol.crop) == ("lanczos", "center")
    assert list(report.spread) == ["gfvd"]
    title = " ".join(report.to_text(width=400).split("┏")[0].split())
    assert title.startswith("protocol smalti-gfvd: against 4 real clips of 9 frames, with 4 of 5 generated; of each 9 ")
    assert report.spread["gfvd"].std > 0
    height, width, _ = read_image(tmp_path / "out" / "sheet.png").shape
    assert height > 2 * 24
    assert width > 3 * 32


def test_the_protocols_are_those_of_generated_sets(smalti, pictures):
    known = [protocol.name for protocol in GENERATION_PROTOCOLS]
    assert_one_line(smalti("eval", pictures, "--real", pictures), 2, "'smalti'", *known)
    assert_one_line(smalti("eval", pictures, "--data", pictures, "--protocol", known[0]), 2, known[0])


def test_options_that_contradict_are_code_2(smalti, pictures):
    command = ("eval", pictures, "--real", pictures, "--protocol", "smalti-generation")
    assert_one_line(smalti(*command, "--data", pictures), 2, "--real is the other side already")
    assert_one_line(smalti(*command, "--frames", 5), 2, "--frames 5", "is for images")
    assert_one_line(smalti(*command, "--lpips", "x.pt"), 2, "--lpips x.pt")
    assert_one_line(smalti(*command, "--statistics", "x"), 2, "--statistics x")
    assert_one_line(smalti("eval", pictures, *command[1:]), 2, "given twice")
    assert_one_line(smalti("eval", pictures, pictures, "--against", pictures), 2, "2 targets", "or --real")


def test_media_and_weights_must_be_there(smalti, made, pictures, i3d, tmp_path):
    none = tmp_path / "none"
    command = ("eval", made / "0", "--real", bundled.videos("heldout"), *GFVD, "--features")
    assert_one_line(smalti(*command, none), 5, none, "i3d_torchscript.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"PK\x03\x04 nothing more")
    assert_one_line(smalti(*command, damaged, "--out", tmp_path / "out"), 4, damaged)
    features = ("--features", i3d)
    assert_one_line(smalti("eval", none, "--real", bundled.videos("heldout"), *GFVD, *features), 3, none)
    assert_one_line(smalti("eval", made / "0", "--real", none, *GFVD, *features), 3, none)
    assert_one_line(smalti("eval", pictures, "--real", bundled.videos("heldout"), *GFVD, *features), 3, "holds images")
    assert_one_line(
        smalti("eval", made / "0", "--real", bundled.photos("heldout"), *GFVD, *features), 3, "holds images"
    )
    assert not (tmp_path / "out").exists()


def test_a_file_of_statistics_stands_for_real_media_and_an_interval_needs_them(smalti, made, i3d, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 400))
    given = tmp_path / "given.npz"
    np.savez(given, mu=vectors.mean(0), sigma=np.cov(vectors, rowvar=False))
    command = ("eval", made / "0", *GFVD, "--features", i3d)
    ended = smalti(*command, "--real", given, "--json", "--out", tmp_path / "out")
    assert ended.code == 0
    report = GenerationReport.parse(json.loads(ended.out))
    found = report.sets[0].frechet
    assert (report.real, found.originals, found.outputs) == (0, 0, 2)
    assert found.reference == hashlib.sha256(given.read_bytes()).hexdigest()
    assert (tmp_path / "out" / "sheet.png").is_file()
    assert_one_line(smalti(*command, "--real", given, "--bootstrap", 5), 2, "needs the real set itself")
    assert_one_line(smalti(*command, "--real", tmp_path / "no.npz"), 3, "no such file")
    assert_one_line(smalti("eval", made / "0", "--data", made / "0", "--bootstrap", 5), 2, "--bootstrap 5", "--real")
    with_media = smalti(*command, "--real", made / "0", "--bootstrap", 9, "--json")
    found = GenerationReport.parse(json.loads(with_media.out)).sets[0].frechet
    assert found.resamples == 9
    assert found.interval[0] <= found.distance + 1e-9
