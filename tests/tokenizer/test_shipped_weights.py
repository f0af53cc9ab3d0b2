"""The tokenizers that come with smalti: they load by name without a network, from files of half precision."""

import json

import pytest
import torch
from safetensors.torch import load_file

import smalti
from smalti.errors import InputError
from smalti.families.names import (
    SHIPPED_NAMES,
    TINY_IMAGE,
    TINY_IMAGE_2,
    TINY_VIDEO_2,
    TINY_VIDEO_CONDITIONAL,
    full_name,
    shipped_folder,
)
from smalti.tokenizer import Tokenizer

NAMES = SHIPPED_NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_tokenizer_loads_by_name_without_a_network(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    tokenizer = smalti.load(name)
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}
    assert tokenizer.codebook_size == 64_000 * tokenizer.config.modes
    assert tokenizer.config.modes == (5 if name == TINY_VIDEO_2 else 1)
    assert (tokenizer.config.time_kernel > 1) == (name not in (TINY_IMAGE, TINY_IMAGE_2))
    again = smalti.load(full_name(name))
    assert again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_is_small_and_its_halves_are_the_weights(name):
    folder = shipped_folder(name)
    file = folder / "model.safetensors"
    assert file.stat().st_size < (16e6 if name in (TINY_VIDEO_CONDITIONAL, TINY_VIDEO_2) else 8e6)
    halves, whole = load_file(file), smalti.load(name).state_dict()
    assert halves.keys() == whole.keys()
    assert all(torch.equal(halves[key].float(), whole[key].float()) for key in halves)
    assert Tokenizer.load(folder).fingerprint == json.loads((folder / "config.json").read_text())["fingerprint"]


def test_the_second_video_tokenizer_has_the_second_image_tokenizer_inside():
    image, video = smalti.load(TINY_IMAGE_2), smalti.load(TINY_VIDEO_2)
    assert video.config.image == image.config
    inside = {**video.encoder.image.state_dict(), **video.decoder.image.state_dict()}
    own = {**image.encoder.state_dict(), **image.decoder.state_dict()}
    assert inside.keys() == own.keys()
    assert all(torch.equal(inside[key], own[key]) for key in own)


def test_a_name_that_is_not_shipped_is_none():
    assert shipped_folder("smalti/large") is None
    with pytest.raises(InputError):
        smalti.load(shipped_folder(TINY_IMAGE).parent / "none")
