"""`smalti eval --protocol`: pixels as the protocol says, weights that must be there, statistics that are kept."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smalti.data import bundled, magicmaster_images, magicmaster_videos, mindone_images, mindone_videos
from smalti.families import load
from smalti.metrics import PROTOCOLS, find_protocol
from smalti.metrics.weights import NETWORKS
from smalti.pipeline.evaluate import EvaluationOptions, clips_of
from smalti.tokenizer.frames import score_tokenizer
from tests.cli.conftest import assert_one_line
from tests.goldens.rule import rule

PHOTOS, FILM = bundled.photos("heldout"), bundled.videos("heldout")
CONVENTIONS = {
    "magicmaster-psnr": magicmaster_images(PHOTOS),
    "magicmaster-fid": magicmaster_images(PHOTOS),
    "magicmaster-fvd": magicmaster_videos(FILM, train=False),
    "mindone-psnr": mindone_videos(FILM),
    "mindone-psnr-images": mindone_images(PHOTOS),
}


@pytest.fixture(scope="session")
def i3d(tmp_path_factory):
    """Weights of the true shapes, by the rule of the goldens."""
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file({name: rule(name, shape) for name, shape in NETWORKS["i3d"].shapes.items()}, path)
    return path


def clips(name, data, **asked):
    protocol = find_protocol(name, PROTOCOLS).replace({"samples": None})
    return clips_of(data, protocol, EvaluationOptions(name, **asked), is_image_model=True)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_protocol_makes_pixels_by_the_convention_that_it_names_and_says_so(name):
    config = CONVENTIONS[name]
    found = clips(name, config.path)
    assert found.source.source.config == config
    protocol = find_protocol(name, PROTOCOLS)
    assert found.protocol == protocol.replace({"samples": None})  # what it declares is what is done
    fields = ["resize", "crop", "size"] + (["frames", "stride", "sampling"] if protocol.media == "videos" else [])
    assert {field: getattr(protocol, field) for field in fields} == {field: getattr(config, field) for field in fields}
    rng = torch.Generator()
    assert torch.equal(found.source.load(0, rng.manual_seed(0)), config.build().load(0, rng.manual_seed(0)))


def test_every_protocol_of_a_convention_is_held_against_it():
    assert {protocol.name for protocol in PROTOCOLS if protocol.convention} == CONVENTIONS.keys()


@pytest.mark.parametrize("name", [protocol.name for protocol in PROTOCOLS if protocol.convention is None])
@pytest.mark.parametrize("size", [None, 0, 64])
def test_without_a_convention_the_options_say_how_files_become_pixels(name, size):
    data = FILM if find_protocol(name, PROTOCOLS).media == "videos" else PHOTOS
    found = clips(name, data, size=size)
    config = found.source.source.config
    assert (config.size, found.protocol.size) == ((128, 128) if size is None else (size or None, size or None))
    assert (found.protocol.resize, found.protocol.crop) == (("none", "none") if size == 0 else ("lanczos", "center"))
    frames = {"smalti-fvd": 16}.get(name)
    assert found.protocol.frames == frames
    assert clips("smalti", FILM).protocol.frames == 17


def test_another_size_of_a_convention_may_be_asked_for():
    assert clips("magicmaster-fid", PHOTOS, size=256).source.source.config == magicmaster_images(PHOTOS, 256)


def test_the_digest_of_a_list_names_every_file_and_its_size(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    seen = {clips("smalti", tmp_path).digest(), clips("smalti", tmp_path, limit=1).digest()}
    (tmp_path / "b.jpg").write_bytes(b"longer than it was")
    seen.add(clips("smalti", tmp_path).digest())
    (tmp_path / "b.jpg").rename(tmp_path / "c.jpg")
    seen.add(clips("smalti", tmp_path).digest())
    assert len(seen) == 4


def test_paths_of_a_list_start_at_the_root(smalti, image_tokenizer, pictures, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(path.name for path in pictures.iterdir()))
    command = ("eval", image_tokenizer, "--data", tmp_path / "list.txt", "--size", 32, "--json")
    assert_one_line(smalti(*command), 3, "list.txt")
    assert json.loads(smalti(*command, "--root", pictures).out)["clips"] == 2


def test_a_figure_under_a_peers_name_is_taken_on_its_pixels(smalti, image_tokenizer):
    command = ("eval", image_tokenizer, "--data", PHOTOS, "--protocol", "mindone-psnr-images", "--limit", 2)
    report = json.loads(smalti(*command, "--json").out)
    protocol = find_protocol("mindone-psnr-images", PROTOCOLS)
    expected = score_tokenizer(load(image_tokenizer), mindone_images(PHOTOS).build(), protocol, limit=2)
    assert (report["psnr"], report["ssim"]) == (expected.psnr, expected.ssim)
    assert report["protocol"] == protocol.plain()
    assert report["absent"]["frechet"] == "not in protocol mindone-psnr-images"


@pytest.mark.parametrize(("name", "count"), [("magicmaster-fid", "50,000"), ("magicmaster-fvd", "29,739")])
def test_fewer_samples_than_the_protocol_asks_for_are_refused(smalti, image_tokenizer, tmp_path, name, count):
    data = CONVENTIONS[name].path
    out = ("--out", tmp_path / "out", "--statistics", tmp_path / "kept")
    command = ("eval", image_tokenizer, "--data", data, "--protocol", name, *out)
    assert_one_line(smalti(*command), 3, data, "lists ", f"asks for {count}")
    assert_one_line(smalti(*command, "--limit", 8), 2, "--limit 8", count)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["smalti-fid", "smalti-fvd", "smalti-frechet"])
def test_weights_of_features_must_be_there_and_be_whole(smalti, image_tokenizer, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = NETWORKS[find_protocol(name, PROTOCOLS).features]
    data = FILM if name == "smalti-fvd" else PHOTOS
    command = ("eval", image_tokenizer, "--data", data, "--protocol", name, "--out", tmp_path / "out")
    missing = tmp_path / "none.pth"
    assert_one_line(smalti(*command, "--features", missing), 5, missing, network.file)
    if network.package is None:
        assert_one_line(smalti(*command), 5, network.file, "--features FILE")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 nothing more")
    assert_one_line(smalti(*command, "--features", damaged), 4, damaged, network.sha256 or "damaged.pth")
    assert not (tmp_path / "out").exists()


def test_statistics_of_originals_are_kept_and_give_the_same_distance(smalti, video_tokenizer, i3d, tmp_path):
    command = ("eval", video_tokenizer, "--data", FILM, "--size", 16, "--frames", 9, "--limit", 2, "--json")
    command = (*command, "--protocol", "smalti-fvd", "--features", i3d)
    first = smalti(*command, "--statistics", tmp_path)
    (kept,) = tmp_path.iterdir()
    again = smalti(*command, "--statistics", tmp_path)
    assert first.code == again.code == 0
    assert json.loads(first.out) == json.loads(again.out)
    found = json.loads(first.out)["frechet"]
    assert (found["name"], found["originals"], found["outputs"], found["dim"]) == ("rfvd", 2, 2, 400)
    assert found["distance"] > 0
    assert "2 samples for 400 dimensions" in found["warning"]
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    assert_one_line(smalti(*command, "--statistics", tmp_path), 4, kept, "delete it")


def test_another_kind_of_media_than_the_protocol_is_for_is_refused(smalti, image_tokenizer):
    command = ("eval", image_tokenizer, "--data", PHOTOS, "--protocol")
    assert_one_line(smalti(*command, "mindone-psnr"), 3, PHOTOS, ".mp4")
    assert isinstance(PHOTOS, Path)


def test_a_file_of_statistics_by_another_project_stands_for_the_originals(smalti, video_tokenizer, i3d, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(50, 400))
    given = tmp_path / "given.pkl"
    given.write_bytes(pickle.dumps({"real_mean": vectors.mean(0), "real_cov": np.cov(vectors, rowvar=False)}))
    command = ("eval", video_tokenizer, "--data", FILM, "--protocol", "smalti-fvd", "--json")
    ended = smalti(*command, "--features", i3d, "--frames", 9, "--size", 16, "--limit", 2, "--statistics", given)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["frechet"]
    assert (found["originals"], found["outputs"]) == (0, 2)
    assert found["reference"] == hashlib.sha256(given.read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.pkl"]
