"""VidTok, imported: latents, ids and pixels of its own runs, and streams that equal one shot, which its own do not."""

import pytest
import torch
from safetensors.torch import save_file

import smalti
from smalti.errors import ConfigError, IntegrityError
from smalti.families import vidtok
from smalti.tokenizer import Tokenizer, VidTokConfig
from tests.families.golden import check_forward, check_gradients, gradients, imported, listed, pixels_of

KEYS = "vidtok_v10_fsq488_w32_t9_32px"
GOLDENS = {KEYS: "1.0", "vidtok_v11_fsq488_w32_t9_32px": "1.1"}
OTHERS = {
    "vidtok_v11_fsq888_w16_t9_32px": ("1.1", (8, 8, 8)),
    "vidtok_v10_fsq41616_w16_t9_32px": ("1.0", (4, 16, 16)),
    "vidtok_v11_fsq41616_w16_t9_32px": ("1.1", (4, 16, 16)),
}
"""Goldens with other strides; time is doubled at other levels than those where it is halved."""


def built(name, **kwargs):
    version = GOLDENS[name] if name in GOLDENS else OTHERS[name][0]

    def recognised(shapes):
        return vidtok.vidtok_network(shapes, version, "here")

    return imported(name, recognised, KEYS if name in GOLDENS else name, **kwargs)


@pytest.mark.parametrize("name", OTHERS)
def test_latents_ids_and_pixels_of_other_strides_are_vidtoks(name):
    peer = built(name)
    check_forward(peer)
    assert peer.tokenizer.strides == OTHERS[name][1]


@pytest.mark.parametrize("name", GOLDENS)
def test_latents_ids_and_pixels_are_vidtoks(name):
    check_forward(built(name))


@pytest.mark.parametrize("name", GOLDENS)
def test_gradients_of_the_decoder_in_float64_are_vidtoks(name):
    peer = built(name, dtype=torch.float64)
    leaves, state, probe = gradients(peer)
    decoder = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    codes = peer.golden.tensors["codes"].double().permute(2, 0, 1, 3, 4)
    # The golden of 1.1 has the frames that its project drops only later.
    peer.tokenizer.decoder.copies = 0 if GOLDENS[name] == "1.1" else 3
    made = torch.func.functional_call(peer.tokenizer.decoder, decoder, codes).permute(1, 2, 0, 3, 4)
    check_gradients(peer, leaves, (made * probe).sum() / made.numel() ** 0.5)


@pytest.mark.parametrize("name", GOLDENS)
def test_every_tensor_is_used(name):
    peer = built(name)
    assert {link.source for link in peer.model.links} == set(peer.tensors)
    assert sum(p.numel() for p in peer.tokenizer.parameters()) == peer.golden.metadata["params"]


def test_streams_equal_one_shot_where_vidtoks_own_chunks_do_not():
    """By 0.037 with its overlap, by 0.12 without it, as in the golden; ours to the last bits of float64."""
    peer = built("vidtok_v11_fsq488_w32_t9_32px", dtype=torch.float64)
    golden = peer.golden.tensors
    assert (golden["recon"] - golden["recon_chunked"]).abs().max() > 0.12
    with torch.inference_mode():
        ids = golden["ids"].long()
        whole = peer.tokenizer.decode(ids)
        for at_once in (1, 2):
            streamed = torch.cat(list(peer.tokenizer.decode_stream(ids.split(at_once, 1))), 2)
            assert (streamed - whole).abs().max() < 1e-12
        chunks = pixels_of(peer.golden, torch.float64).split([1, 3, 5], 2)
        assert torch.equal(torch.cat(list(peer.tokenizer.encode_stream(chunks)), 1), ids)
    assert (whole - golden["recon"][:, :, 3:]).abs().max() < 5e-5


def test_the_full_size_network_has_as_many_parameters_as_published():
    with torch.device("meta"):
        tokenizer = Tokenizer(VidTokConfig())
    counts = [sum(p.numel() for p in half.parameters()) / 1e6 for half in (tokenizer.encoder, tokenizer.decoder)]
    assert [round(count, 1) for count in counts] == [69.2, 88.2]


def test_what_is_no_causal_model_with_fsq_is_refused():
    shapes = listed(KEYS)
    renamed = {key.replace("conv_in.conv.", "conv_in."): shape for key, shape in shapes.items()}

    def recognised(changed):
        return vidtok.vidtok_network(changed, "1.0", "here")

    with pytest.raises(IntegrityError, match="not causal"):
        recognised(renamed)
    with pytest.raises(IntegrityError, match="KL"):
        recognised({**shapes, "encoder.conv_out.conv.weight": (10, 128, 3, 3, 3)})
    with pytest.raises(IntegrityError, match=r"decoder\.conv_in\.conv\.weight is missing"):
        recognised({key: shape for key, shape in shapes.items() if not key.startswith("decoder.conv_in")})


def containers(folder, peer):
    """(name to load, version expected) of the peer in the containers of its project and of diffusers."""
    lightning = {"state_dict": {**peer.tensors, "loss.logvar": torch.zeros(1)}, "global_step": 1}
    torch.save(lightning, folder / "vidtok_fsq_causal_488_32768_v1_1.ckpt")
    torch.save(lightning, folder / "mine.ckpt")
    (folder / "diffusers").mkdir()
    save_file(peer.tensors, folder / "diffusers" / "diffusion_pytorch_model.safetensors")
    (folder / "diffusers" / "config.json").write_text('{"_class_name": "AutoencoderVidTok"}')
    return {
        f"{folder}/vidtok_fsq_causal_488_32768_v1_1.ckpt": "1.1",
        f"{folder}/mine.ckpt:version=1.0": "1.0",
        f"{folder}/diffusers": "1.1",
    }


def test_checkpoints_of_both_projects_are_loaded_in_one_call(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    peers = {version: built(name) for name, version in GOLDENS.items()}
    for name, version in containers(tmp_path, peers["1.0"]).items():
        tokenizer = smalti.load(name)
        assert (tokenizer.source.network, tokenizer.source.ids.layout) == (f"{version} FSQ", "grid")
        assert tokenizer.config == peers[version].tokenizer.config
        assert tokenizer.fingerprint == peers[version].tokenizer.fingerprint
    with pytest.raises(ConfigError, match=r"say which it is with version=1\.0 or version=1\.1"):
        smalti.load(tmp_path / "mine.ckpt")
    with pytest.raises(ConfigError, match=r"VidTok has 1\.0 and 1\.1"):
        smalti.load(f"{tmp_path}/mine.ckpt:version=2")
    with pytest.raises(ConfigError, match=r"version 1\.0: .* has 1\.1; leave the option out"):
        smalti.load(f"{tmp_path}/diffusers:version=1.0")
