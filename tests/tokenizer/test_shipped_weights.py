"""The tokenizers that come with smalti: they load by name without a network, from files of half precision."""

import json

import pytest
import torch
from safetensors.torch import load_file

import smalti
from smalti.codec.entropy import encode_ids
from smalti.codec.prior import shipped_prior
from smalti.data import bundled, read_image
from smalti.errors import InputError
from smalti.families.names import (
    SHIPPED_NAMES,
    TINY_IMAGE,
    TINY_IMAGE_2,
    TINY_IMAGE_2_PERCEPTUAL,
    TINY_VIDEO_2,
    TINY_VIDEO_2_PERCEPTUAL,
    full_name,
    shipped_folder,
)
from smalti.tokenizer import Tokenizer
from smalti.video import to_video

NAMES = SHIPPED_NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_tokenizer_loads_by_name_without_a_network(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    tokenizer = smalti.load(name)
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}
    assert tokenizer.codebook_size == 64_000 * tokenizer.config.modes
    assert tokenizer.config.modes == (5 if name in (TINY_VIDEO_2, TINY_VIDEO_2_PERCEPTUAL) else 1)
    assert (tokenizer.config.time_kernel > 1) == (name not in (TINY_IMAGE, TINY_IMAGE_2, TINY_IMAGE_2_PERCEPTUAL))
    again = smalti.load(full_name(name))
    assert again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_is_small_and_its_halves_are_the_weights(name):
    folder = shipped_folder(name)
    file = folder / "model.safetensors"
    assert file.stat().st_size < (16e6 if "video-" in name else 8e6)
    halves, whole = load_file(file), smalti.load(name).state_dict()
    assert halves.keys() == whole.keys()
    assert all(torch.equal(halves[key].float(), whole[key].float()) for key in halves)
    assert Tokenizer.load(folder).fingerprint == json.loads((folder / "config.json").read_text())["fingerprint"]


@pytest.mark.parametrize(
    ("image", "video"), [(TINY_IMAGE_2, TINY_VIDEO_2), (TINY_IMAGE_2_PERCEPTUAL, TINY_VIDEO_2_PERCEPTUAL)]
)
def test_the_second_video_tokenizers_have_the_second_image_tokenizers_inside(image, video):
    image, video = smalti.load(image), smalti.load(video)
    assert video.config.image == image.config
    inside = {**video.encoder.image.state_dict(), **video.decoder.image.state_dict()}
    own = {**image.encoder.state_dict(), **image.decoder.state_dict()}
    assert inside.keys() == own.keys()
    assert all(torch.equal(inside[key], own[key]) for key in own)


def test_the_perceptual_tokenizer_has_the_ids_and_the_prior_of_the_plain_one():
    plain, perceptual = smalti.load(TINY_IMAGE_2), smalti.load(TINY_IMAGE_2_PERCEPTUAL)
    assert plain.config.replace({"quantizer": perceptual.config.quantizer}) == perceptual.config
    own = perceptual.encoder.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in plain.encoder.state_dict().items())
    photo = to_video(read_image(bundled.photos("heldout") / "owl.jpg"))
    with torch.inference_mode():
        ids = plain.encode(photo)
        assert torch.equal(perceptual.encode(photo), ids)
        assert not torch.equal(perceptual.decode(ids), plain.decode(ids))
    ours, theirs = (shipped_prior(one.fingerprint) for one in (perceptual, plain))
    assert (
        encode_ids(ids[0].numpy(), plain.levels, "prior", ours).data
        == encode_ids(ids[0].numpy(), plain.levels, "prior", theirs).data
    )


def test_a_name_that_is_not_shipped_is_none():
    assert shipped_folder("smalti/large") is None
    with pytest.raises(InputError):
        smalti.load(shipped_folder(TINY_IMAGE).parent / "none")
