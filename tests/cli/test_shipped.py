"""The tokenizers that come with smalti, as a user has them: without a tokenizer named, and by name."""

import json
import re

import pytest

from smalti.cli.reconstruct import tokenizer_and_media
from smalti.data import bundled
from smalti.errors import InputError
from smalti.families.names import SHIPPED_NAMES, TINY_IMAGE, TINY_IMAGE_2, TINY_VIDEO_2, shipped_folder
from tests.cli.conftest import assert_one_line


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_one_command_gives_the_figure_of_the_card(smalti, name):
    """On other processors an id may differ here and there."""
    card = (shipped_folder(name) / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"\| 8 photographs [^|]*\| ([\d.]+) dB", card)
    ended = smalti("eval", name, "--data", bundled.photos("heldout"), "--size", "128", "--json")
    assert json.loads(ended.out)["psnr"] == pytest.approx(float(said), abs=0.02)


def test_pictures_and_film_need_no_tokenizer_named(smalti, tmp_path):
    media = [bundled.photos("heldout") / "owl.jpg", bundled.videos("heldout") / "march.mp4"]
    ended = smalti("reconstruct", *media, "--out", tmp_path, "--only", "--frames", "0:9", "--json")
    assert (ended.code, sorted(p.name for p in tmp_path.iterdir())) == (0, ["march.mp4", "owl.png"])
    for name, row in zip((TINY_IMAGE_2, TINY_VIDEO_2), json.loads(ended.out)["done"], strict=True):
        options = ["--out", tmp_path / "by-name", "--only", "--frames", "0:9", "--json"]
        by_name = smalti("reconstruct", name, row["source"], *options)
        assert json.loads(by_name.out)["done"][0]["psnr"] == row["psnr"]


def test_the_first_name_is_a_tokenizer_unless_it_is_media(image_tokenizer, pictures, tmp_path):
    photo = str(bundled.photos("heldout") / "owl.jpg")
    assert tokenizer_and_media([TINY_IMAGE, photo]) == (TINY_IMAGE, [bundled.photos("heldout") / "owl.jpg"])
    assert tokenizer_and_media(["hf:owner/name", "a"])[0] == "hf:owner/name"
    assert tokenizer_and_media([str(image_tokenizer), "a"])[0] == str(image_tokenizer)
    assert tokenizer_and_media([str(pictures), photo]) == (None, [pictures, bundled.photos("heldout") / "owl.jpg"])
    with pytest.raises(InputError, match="give a tokenizer folder"):
        tokenizer_and_media([str(tmp_path / "no-run"), photo])


def test_a_tokenizer_with_nothing_after_it_is_one_line(smalti):
    assert_one_line(smalti("reconstruct", TINY_IMAGE), 3, TINY_IMAGE, "after it")


def test_a_token_set_of_a_shipped_tokenizer_names_it(smalti, pictures, tmp_path):
    made = smalti("tokenize", TINY_IMAGE, pictures, "--out", tmp_path / "tokens", "--size", "32")
    assert made.code == 0, made.err
    assert smalti("decode", tmp_path / "tokens", "--out", tmp_path / "seen").code == 0
    assert list((tmp_path / "seen").rglob("*.png"))
