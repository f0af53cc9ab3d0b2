"""Open-MAGVIT2, imported: latents, ids and pixels of its own runs, and what is true of its causality."""

import pytest
import torch

import smalti
from smalti.errors import IntegrityError
from smalti.families import import_checkpoint, open_magvit2
from smalti.tokenizer import OpenMagvit2Config, Tokenizer
from tests.families.golden import check_forward, check_gradients, five, gradients, imported, listed, pixels_of
from tests.goldens.rule import FOLDER, load

GOLDENS = ["om2_image128L_w32_32px", "om2_image256L_w32_64px", "om2_video_w32_t9_32px"]


def recognised(shapes):
    return open_magvit2.open_magvit2_network(shapes, "here")


@pytest.mark.parametrize("name", GOLDENS)
def test_latents_ids_and_pixels_are_open_magvit2s(name):
    check_forward(imported(name, recognised))


@pytest.mark.parametrize("name", GOLDENS)
def test_gradients_in_float64_are_open_magvit2s(name):
    peer = imported(name, recognised, dtype=torch.float64)
    leaves, state, probe = gradients(peer)
    made = torch.func.functional_call(peer.tokenizer, state, pixels_of(peer.golden, torch.float64)).video
    check_gradients(peer, leaves, (made * probe.reshape(made.shape)).sum() / made.numel() ** 0.5)


@pytest.mark.parametrize("name", GOLDENS)
def test_every_tensor_is_used(name):
    peer = imported(name, recognised)
    assert {link.source for link in peer.model.links} == set(peer.tensors)
    assert sum(p.numel() for p in peer.tokenizer.parameters()) == peer.golden.metadata["params"]


@pytest.mark.parametrize(
    ("name", "changes", "encoder", "decoder"),
    [
        ("128_L", {"multipliers": (1, 2, 2, 4)}, 48.4, 63.6),
        ("256_L", {}, 49.8, 65.4),
        ("video", {"multipliers": (1, 2, 2, 4), "time_kernel": 3, "time_strides": (1, 2, 2)}, 144.9, 225.7),
    ],
)
def test_full_size_networks_have_as_many_parameters_as_published(name, changes, encoder, decoder):
    with torch.device("meta"):
        tokenizer = Tokenizer(OpenMagvit2Config(**changes))
    counts = [sum(p.numel() for p in half.parameters()) / 1e6 for half in (tokenizer.encoder, tokenizer.decoder)]
    assert [round(count, 1) for count in counts] == [encoder, decoder], name


def test_a_missing_tensor_and_a_layout_of_others_are_named():
    shapes = listed(GOLDENS[0])
    with pytest.raises(IntegrityError, match=r"encoder\.conv_out\.weight is missing"):
        recognised({key: shape for key, shape in shapes.items() if key != "encoder.conv_out.weight"})
    with pytest.raises(IntegrityError, match="no network that Open-MAGVIT2 builds"):
        recognised({key: shape for key, shape in shapes.items() if not key.startswith("encoder.mid_block")})


def test_a_lightning_checkpoint_gives_its_ema_weights_in_one_call(tmp_path, monkeypatch):
    """The EMA stands under names without dots; the live weights beside it would give other ids."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    numbers, about = load("om2_tiny_lightning")
    path = FOLDER / "om2_tiny_lightning.ckpt"
    tokenizer = smalti.load(path)
    video = five(numbers["input_u8"].float() / 127.5 - 1)
    with torch.inference_mode():
        ids = tokenizer.encode(video)
        made = tokenizer.decode(ids)
    assert torch.equal(ids.flatten(), numbers["ids"].long().flatten())
    row = numbers["ids"].long().reshape(1, -1)
    assert torch.equal(tokenizer.source_ids(ids), row)
    assert torch.equal(tokenizer.ids_from_source(row, grid=tuple(ids.shape[1:])), ids)
    torch.testing.assert_close(made, five(numbers["recon"]), rtol=1e-5, atol=5e-5)
    model = import_checkpoint(path)
    source = tokenizer.source
    assert (model.report.copy, source.weights, source.licence) == ("average", "average", "Apache-2.0")
    of_others = "EMA weights of something else, or their counter"
    assert set(model.report.ignored) == {"the discriminator, or LPIPS", of_others, "the live network"}
    assert len(model.report.ignored["the live network"]) == len(model.report.used)
    live = import_checkpoint(path, copy="live").tokenizer
    assert not torch.equal(live.encode(video), ids)
    assert about["config"]["z_channels"] == len(tokenizer.levels)
