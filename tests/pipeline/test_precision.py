"""Another number format: the tokenizer is the same, the ids are almost, and what was chosen stands in the token set."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import smalti
from smalti.config import load_yaml
from smalti.data.images import read_image
from smalti.devices import faster_precision, measure_precisions
from smalti.errors import ConfigError
from smalti.families.checkpoint import as_tokenizer
from smalti.metrics.pixel import psnr
from smalti.recipes import find
from smalti.tokens.reader import TokenSet
from smalti.training.config import TokenizerTraining
from smalti.video import to_uint8, to_video

PHOTOS = Path(smalti.__file__).parent / "data" / "media" / "photos" / "heldout"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(PHOTOS.iterdir())[:2]:
        shutil.copy(path, folder)
    return folder


def clip(folder):
    pixels = [read_image(path)[:128, :128] for path in sorted(folder.iterdir())]
    return to_video(torch.stack(pixels)[:, None])


@pytest.mark.parametrize("name", ["smalti/tiny-image", "smalti/tiny-video"])
@torch.inference_mode()
def test_bfloat16_is_the_same_tokenizer_with_nearly_the_same_ids_and_as_near_pixels(name, photos):
    exact, fast = smalti.load(name), as_tokenizer(name, "cpu", "bfloat16")
    assert fast.dtype == torch.bfloat16
    assert fast.fingerprint == exact.fingerprint
    video = clip(photos)
    ids, others = exact.encode(video), fast.encode(video)
    assert 0 < (ids != others).double().mean() < 0.06
    source, pairs = to_uint8(video), ((exact, ids), (fast, others))
    error = [(to_uint8(model.decode(each)).double() - source).square().mean() for model, each in pairs]
    near, nearly = (psnr(each, 255.0) for each in error)
    assert abs(float(near - nearly)) < 0.02


def test_a_precision_beside_a_loaded_tokenizer_is_refused():
    tokenizer = smalti.load("smalti/tiny-image")
    with pytest.raises(ConfigError, match="loaded by its name"):
        as_tokenizer(tokenizer, precision="bfloat16")


def test_the_precision_is_part_of_the_plan_and_of_the_set_and_of_no_set_without_it(photos, tmp_path):
    for precision in (None, "bfloat16"):
        out = tmp_path / str(precision)
        smalti.tokenize("smalti/tiny-image", photos, out, size=64, workers=0, device="cpu", precision=precision)
        for file in ("plan.json", "dataset.json"):
            assert json.loads((out / file).read_text())["options"].get("precision", "absent") == (precision or "absent")
    plain, rounded = (TokenSet(tmp_path / name) for name in ("None", "bfloat16"))
    assert plain.tokenizer_info == rounded.tokenizer_info
    with pytest.raises(ConfigError, match="begun with precision None"):
        smalti.tokenize("smalti/tiny-image", photos, tmp_path / "None", size=64, workers=0, precision="bfloat16")
    written = smalti.decode(plain, tmp_path / "exact", device="cpu")
    others = smalti.decode(plain, tmp_path / "fast", device="cpu", precision="bfloat16")
    for one, other in zip(written, others, strict=True):
        difference = read_image(one.path).int() - read_image(other.path).int()
        assert 0 < difference.abs().max() <= 8


def test_compressed_in_bfloat16_is_read_by_the_tokenizer(photos, tmp_path):
    source = sorted(photos.iterdir())[0]
    small = smalti.reconstruct("smalti/tiny-image", [source], tmp_path / "out", side_by_side=False, size=64)
    smalti.compress(small.done[0].path, tmp_path / "a.smt", "smalti/tiny-image", precision="bfloat16", device="cpu")
    smalti.decompress(tmp_path / "a.smt", tmp_path / "a.png", "smalti/tiny-image", device="cpu")
    assert read_image(tmp_path / "a.png").shape == (64, 64, 3)


def test_both_formats_are_timed_on_this_processor():
    speeds = measure_precisions(torch.device("cpu"))
    assert set(speeds) == {"float32", "bfloat16"}
    assert all(0.1 < speed < 10_000 for speed in speeds.values())


def test_a_run_in_the_faster_format_keeps_it_when_it_is_resumed_elsewhere(tmp_path):
    """The config of the run names a format, never `auto`; a machine that is fast in the other one goes on with it."""
    names = ["steps=1", "batch_size=2", "data.size=32", "validation=null", "tokenizer.width=8"]
    here = faster_precision(measure_precisions(torch.device("cpu")))
    other = {"float32": "bfloat16", "bfloat16": "float32"}[here]
    config = find("tiny", tiny=True).override(names)
    for given, wanted in (("auto", here), (other, other)):
        out = tmp_path / given
        smalti.train(config, out, device="cpu", precision=given)
        smalti.train(config, out, device="cpu", precision="auto", resume=True)
        assert load_yaml(TokenizerTraining, out / "config.yaml").precision == wanted
    with pytest.raises(ConfigError, match="precision"):
        smalti.train(config, out, device="cpu", precision=here, resume=True)


@pytest.mark.parametrize(("bfloat16", "wanted"), [(119.0, "float32"), (120.0, "bfloat16"), (10.0, "float32")])
def test_the_faster_format_is_faster_by_a_fifth(bfloat16, wanted):
    assert faster_precision({"float32": 100.0, "bfloat16": bfloat16}) == wanted
