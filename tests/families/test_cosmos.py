"""Cosmos DI and DV, imported: latents, ids and pixels of its own runs."""

import shutil

import pytest
import torch

import smalti
from smalti.errors import ConfigError, IntegrityError
from smalti.families import cosmos, import_checkpoint
from smalti.families.links import assemble
from smalti.tokenizer import CosmosConfig
from smalti.tokenizer.cosmos import from_wavelets, to_wavelets
from tests.families.golden import (
    check_forward,
    check_gradients,
    gradients,
    imported,
    listed,
    never_run,
    write_torchscript,
)

KEYS = "cosmos_dv4x8x8_w32_t9_48px"
GOLDENS = {"cosmos_di8x8_w32_64px": None, KEYS: (4, 8, 8)}
RESAMPLED = {"cosmos_dv8x8x8_w32_t9_32px": (8, 8, 8), "cosmos_dv8x16x16_w32_t9_32px": (8, 16, 16)}
"""Goldens of the same tensors with other strides, which run others of them."""


def built(name, **kwargs):
    strides = {**GOLDENS, **RESAMPLED}[name]

    def recognised(shapes):
        return cosmos.cosmos_network(shapes, strides, cosmos.COSMOS_LEVELS, "here")

    return imported(name, recognised, KEYS if name in RESAMPLED else None, **kwargs)


@pytest.mark.parametrize("name", [*GOLDENS, *RESAMPLED])
def test_latents_ids_and_pixels_are_cosmos(name):
    check_forward(built(name))


@pytest.mark.parametrize("name", GOLDENS)
def test_gradients_of_the_decoder_in_float64_are_cosmos(name):
    peer = built(name, dtype=torch.float64)
    leaves, state, probe = gradients(peer)
    decoder = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    codes = peer.golden.tensors["codes"].double()
    codes = (codes if codes.dim() == 5 else codes.unsqueeze(2)).permute(2, 0, 1, 3, 4)
    made = torch.func.functional_call(peer.tokenizer.decoder, decoder, codes).permute(1, 2, 0, 3, 4)
    check_gradients(peer, leaves, (made * probe.reshape(made.shape)).sum() / made.numel() ** 0.5)


@pytest.mark.parametrize("name", GOLDENS)
def test_every_tensor_is_used_or_said_to_be_unused(name):
    peer = built(name)
    assert set(peer.model.unused) == never_run(name)
    assert {link.source for link in peer.model.links} | never_run(name) == set(peer.tensors)
    stored = sum(tensor.numel() for key, tensor in peer.tensors.items() if key in never_run(name))
    assert sum(p.numel() for p in peer.tokenizer.parameters()) == peer.golden.metadata["params"] - stored


@pytest.mark.parametrize(
    ("compression", "down", "up"),
    [
        ((4, 8, 8), ((1, 2), (1, 1)), ((1, 2), (1, 1))),
        ((8, 8, 8), ((2, 2), (1, 1)), ((1, 1), (2, 2))),
        ((8, 16, 16), ((2, 2), (1, 2)), ((1, 2), (2, 2))),
    ],
)
def test_the_strides_of_published_video_models(compression, down, up):
    assert cosmos.video_strides(compression, 4, 3) == (down, up)
    assert CosmosConfig(time_kernel=3, strides=down, decoder_strides=up).total_strides == compression


@pytest.mark.parametrize("wrong", [(4, 8, 16), (2, 8, 8), (4, 12, 12)])
def test_a_compression_that_cannot_be_is_refused(wrong):
    with pytest.raises(IntegrityError, match="no network that Cosmos builds"):
        cosmos.cosmos_network(listed("cosmos_dv4x8x8_w32_t9_48px"), wrong, cosmos.COSMOS_LEVELS, "here")


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("time_patch", [1, 2])
def test_wavelets_come_back_as_pixels(patch, time_patch):
    time = patch if time_patch > 1 else 1
    x = torch.randn(2 * time, 2, 3, 16, 24, dtype=torch.float64)
    wavelets = to_wavelets(x, patch, time)
    assert wavelets.shape == (2, 2, 3 * patch**2 * time, 16 // patch, 24 // patch)
    assert torch.allclose(from_wavelets(wavelets, patch, time), x, rtol=0, atol=1e-12)
    # The first channels are means of whole patches.
    mean = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(0, (-1, time)).mean((1, 5, 7))
    assert torch.allclose(wavelets[:, :, :3], mean, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A folder with both halves of the video golden as TorchScript in bfloat16, and the golden's network."""
    folder = tmp_path_factory.mktemp("jit") / "Cosmos-0.1-Tokenizer-DV4x8x8"
    folder.mkdir()
    peer = built("cosmos_dv4x8x8_w32_t9_48px")
    levels = torch.tensor(cosmos.COSMOS_LEVELS, dtype=torch.int32)
    halves = {
        "encoder": {"encoder.patcher3d.wavelets": torch.full((2,), 0.5**0.5), "quantizer._levels": levels},
        "decoder": {"inv_quant.quantizer._levels": levels, "inv_quant.quantizer.implicit_codebook": torch.zeros(9, 6)},
    }
    for key, tensor in peer.tensors.items():
        half = "decoder" if key.startswith(("decoder.", "post_quant_conv.")) else "encoder"
        halves[half][key] = tensor.bfloat16()
    for half, tensors in halves.items():
        write_torchscript(tensors, folder / f"{half}.jit")
    return folder, peer


def test_a_folder_of_torchscript_archives_is_loaded_in_one_call(archives, tmp_path, monkeypatch):
    """As data: no program of the archives is compiled or run. Its strides are those of the folder's name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, peer = archives
    ran = []
    monkeypatch.setattr(torch.jit, "load", ran.append)
    tokenizer = smalti.load(folder)
    assert not ran
    assert tokenizer.strides == (4, 8, 8)
    assert (tokenizer.source.family, tokenizer.source.ids.layout) == ("cosmos", "grid")
    rounded = {key: tensor.bfloat16() for key, tensor in peer.tensors.items()}
    state = assemble(peer.tokenizer, peer.model.links, rounded, "here")
    assert all(torch.equal(tensor, state[name]) for name, tensor in tokenizer.state_dict().items())
    report = import_checkpoint(folder).report
    assert len(report.ignored["constants of its architecture"]) == 4
    assert set(report.ignored["stored but never run"]) == never_run("cosmos_dv4x8x8_w32_t9_48px")


def test_half_a_tokenizer_and_strides_that_nothing_says_are_refused(archives, tmp_path):
    folder, _ = archives
    with pytest.raises(IntegrityError, match=r"the encoder alone; give the folder that holds encoder\.jit"):
        import_checkpoint(folder / "encoder.jit")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with pytest.raises(ConfigError, match="say it with strides=4x8x8"):
        import_checkpoint(other)
    assert import_checkpoint(f"{other}:strides=4x8x8").tokenizer.strides == (4, 8, 8)
    with pytest.raises(IntegrityError, match="no network that Cosmos builds"):
        import_checkpoint(f"{other}:strides=2x8x8")
