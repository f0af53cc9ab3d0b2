"""Names of the hub, downloaded for real from a server on this machine: each family's files under their real names.

Beside the weights lies what lies there on the hub: other models, a config.json that is no JSON (Open-MAGVIT2's and
Cosmos' have a comma too many), shards, twins in half precision.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import smalti
from smalti.files import save_tensors
from smalti.foreign import read_checkpoint, tensors
from smalti.tokenizer import Tokenizer
from tests import programs
from tests.families.golden import listed, write_torchscript
from tests.families.hub import COMMIT, OLDER, LoopbackHub, started
from tests.goldens.rule import FOLDER

BIG = b"a large model that nobody here should fetch"


class Layout(NamedTuple):
    """A name of the hub, the files of its repository, and what comes of it."""

    name: str
    files: dict
    fetched: set
    family: str
    licence: str


def plain(name, path):
    """The tensors of a Lightning checkpoint as a bare state dict in a file."""
    torch.save(tensors(read_checkpoint(FOLDER / name)["state_dict"]), path)
    return path


def zeros(listing, path, rename=lambda key: key, **kept):
    """A Lightning checkpoint with the tensors of a listing, all zeros."""
    state = {rename(key): torch.zeros(shape) for key, shape in listed(listing).items()}
    torch.save({"state_dict": state, **kept}, path)
    return path


def halves(listing, folder):
    """encoder.jit and decoder.jit with the tensors of a listing, all zeros."""
    folder.mkdir()
    parts = {"encoder": {}, "decoder": {}}
    for key, shape in listed(listing).items():
        half = "decoder" if key.startswith(("decoder.", "post_quant_conv.")) else "encoder"
        parts[half][key] = torch.zeros(shape)
    for half, found in parts.items():
        write_torchscript(found, folder / f"{half}.jit")
    return {f"{half}.jit": folder / f"{half}.jit" for half in parts}


def shards(folder):
    """Janus' tokenizer in the second and third of three files of pickles, with their index."""
    folder.mkdir()
    whole = read_checkpoint(FOLDER / "janus_tiny" / "model.safetensors")
    inside = [name for name in whole if name.startswith("gen_vision_model.")]
    file = "pytorch_model-0000{}-of-00003.bin".format
    places = {name: file(2 + i % 2) for i, name in enumerate(inside)}
    for number in (2, 3):
        torch.save({name: whole[name] for name in inside if places[name] == file(number)}, folder / file(number))
    places |= {name: file(1) for name in whole if name not in inside}
    index = json.dumps({"metadata": {}, "weight_map": places}).encode()
    return {"pytorch_model.bin.index.json": index, file(1): BIG, **{file(n): folder / file(n) for n in (2, 3)}}


def layouts(tmp_path):
    """Every layout of weights on the hub."""
    showo = FOLDER / "showo_tiny"
    yield Layout(
        "showlab/magvitv2",
        {"config.json": showo / "config.json", "pytorch_model.safetensors": showo / "pytorch_model.safetensors"},
        {"config.json", "pytorch_model.safetensors"},
        *("showo", "MIT"),
    )
    yield Layout(
        "TencentARC/Open-MAGVIT2-Tokenizer-128-resolution",
        {"config.json": b'{\n"Name": ["Open-MAGVIT2"],\n}', "imagenet_128_L.ckpt": FOLDER / "om2_tiny_lightning.ckpt"},
        {"config.json", "imagenet_128_L.ckpt"},
        *("open-magvit2", "Apache-2.0"),
    )
    yield Layout(
        "TencentARC/IBQ-Tokenizer-8192",
        {"config.json": b'{\n"Name": ["IBQ"]\n}', "imagenet256_8192.ckpt": FOLDER / "ibq_tiny.ckpt"},
        {"config.json", "imagenet256_8192.ckpt"},
        *("taming", "Apache-2.0"),
    )
    yield Layout(
        "BAAI/Emu3.5-VisionTokenizer",
        {"config.yaml": b"embed_dim: 256\n", "model.ckpt": plain("taming_tiny.ckpt", tmp_path / "emu.ckpt")},
        {"config.yaml", "model.ckpt"},
        *("taming", "Apache-2.0"),
    )
    file = FOLDER / "llamagen_tiny.pt"
    llamagen = {"vq_ds16_c2i.pt": file, "vq_ds8_c2i.pt": FOLDER / "llamagen_tiny_train.pt", "c2i_B_256.pt": BIG}
    yield Layout("FoundationVision/LlamaGen", llamagen, {"vq_ds16_c2i.pt"}, "llamagen", "MIT")
    yield Layout("FoundationVision/LlamaGen/vq_ds8_c2i.pt", llamagen, {"vq_ds8_c2i.pt"}, "llamagen", "MIT")
    deepseek = "DeepSeek model licence (its code: MIT)"
    janus = FOLDER / "janus_tiny"
    yield Layout(
        "deepseek-ai/Janus-1.3B",
        {"config.json": janus / "config.json", "model.safetensors": janus / "model.safetensors"},
        {"config.json", "model.safetensors"},
        *("llamagen", deepseek),
    )
    sharded = {"config.json": janus / "config.json", **shards(tmp_path / "shards")}
    others = {"pytorch_model-00001-of-00003.bin"}
    yield Layout("deepseek-ai/Janus-Pro-7B", sharded, sharded.keys() - others, "llamagen", deepseek)
    vqvae = {f"vqvae/{path.name}": path for path in (FOLDER / "diffusers_tiny").iterdir()}
    pipeline = {**vqvae, "model_index.json": b"{}", "text_encoder/model.safetensors": BIG,
                "transformer/diffusion_pytorch_model.safetensors": BIG}  # fmt: skip
    for name, licence in (
        ("amused/amused-256", "openrail++"),
        ("MeissonFlow/Meissonic", "Apache-2.0"),
        ("Alpha-VLLM/Lumina-DiMOO", "not stated (its code: Apache-2.0)"),
    ):
        yield Layout(name, pipeline, set(vqvae), "diffusers-vq", licence)
    yield Layout(
        "fun-research/TiTok",
        {"maskgit-vqgan-imagenet-f16-256.bin": FOLDER / "maskgit_tiny.bin", "rar_b.bin": BIG},
        {"maskgit-vqgan-imagenet-f16-256.bin"},
        *("maskgit", "Apache-2.0"),
    )
    bits = {"maskbit_tokenizer_14bit.bin": FOLDER / "maskbit_tiny.bin"}
    yield Layout("markweber/maskbit_tokenizer_14bit", bits, set(bits), "maskbit", "Apache-2.0")
    nvidia = {"config.json": b'{\n"architectures": ["CosmosTokenizer"],\n}', "autoencoder.jit": BIG,
              "model_config.yaml": b"nemo_version: none\n"}  # fmt: skip
    cosmos = halves("cosmos_di8x8_w32_64px", tmp_path / "cosmos")
    yield Layout(
        "nvidia/Cosmos-0.1-Tokenizer-DI8x8",
        {**nvidia, **cosmos},
        {"config.json", "autoencoder.jit", *cosmos},
        *("cosmos", "NVIDIA Open Model License"),
    )
    inside = "checkpoints/vidtok_fsq_noncausal_41616_262144.ckpt"
    vidtok = zeros("vidtok_v10_noncausal41616_w16_t8_32px", tmp_path / "vidtok.ckpt", global_step=1)
    yield Layout(
        f"microsoft/VidTok/{inside}",
        {inside: vidtok, "checkpoints/vidtok_kl_causal_488_4chn.ckpt": BIG},
        {inside},
        *("vidtok", "MIT"),
    )


LOADS = """
import json, sys, smalti
from smalti.errors import SmaltiError
found = {}
for name in json.loads(sys.argv[1]):
    try:
        tokenizer = smalti.load(name)
        source = tokenizer.source.plain() if tokenizer.source else {}
        found[name] = {**source, "fingerprint": tokenizer.fingerprint}
    except SmaltiError as error:
        found[name] = {"kind": type(error).__name__, "line": str(error)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub():
    server = started()
    yield LoopbackHub, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def put(repository, files, commit=COMMIT):
    LoopbackHub.repositories.setdefault(repository, {})[commit] = {".gitattributes": b"", "README.md": b"#\n", **files}


def printed(program, arguments, endpoint, folder):
    """What a program prints in a process of its own, whose hub is at the endpoint; caches are in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(folder / "hub"), "OMP_NUM_THREADS": "1",
                   "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    strict = 'import warnings\nwarnings.simplefilter("error", UserWarning)\n'
    ended = programs.run("-c", strict + program, *arguments, env=environment, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def load_all(names, endpoint, folder):
    """What `smalti.load` says of names."""
    found = json.loads(printed(LOADS, [json.dumps(names)], endpoint, folder))
    converted = list((folder / "cache").rglob("config.json"))
    assert len(converted) == len([name for name in found if "sha256" in found[name]])
    return found


def test_every_layout_is_downloaded_without_what_is_not_needed(hub, tmp_path):
    LoopbackHub.clear()
    every = list(layouts(tmp_path))
    for layout in every:
        put("/".join(layout.name.split("/")[:2]), layout.files)
    folder = Path(smalti.__file__).parent / "weights" / "tiny-image"
    put("me/mine", {path.name: path for path in folder.iterdir()})
    found = load_all([*(layout.name for layout in every), "me/mine"], hub[1], tmp_path)
    for layout in every:
        source = found[layout.name]
        assert "line" not in source, source
        assert (source["family"], source["revision"]) == (layout.family, COMMIT), layout.name
        assert (source["licence"], source["name"]) == (layout.licence, layout.name)
        assert source["licence_source"]
    fetched, wanted = {}, {"me/mine": {"config.json", "model.safetensors", "manifest.json"}}
    for repository, path in LoopbackHub.fetched:
        fetched.setdefault(repository, set()).add(path)
    for layout in every:
        wanted.setdefault("/".join(layout.name.split("/")[:2]), set()).update(layout.fetched)
    assert fetched == wanted
    assert found["me/mine"]["fingerprint"] == Tokenizer.load(folder).fingerprint


FAULTS = {
    "showlab/magvitv2@never": ("InputError", "the repository has no revision never"),
    "nvidia/Cosmos-0.1-Tokenizer-DI8x8": (
        "MachineError",
        "accept its licence (NVIDIA Open Model License) at https://huggingface.co/nvidia/Cosmos-0.1-Tokenizer-DI8x8",
        "hf auth login",
    ),
    "microsoft/VidTok/checkpoints/vidtok_fsq_causal_488_4096.ckpt": ("MachineError", "accept its licence (MIT) at"),
    "somebody/gated": ("MachineError", "accept its licence at https://huggingface.co/somebody/gated"),
    "somebody/half": ("IntegrityError", "Show-o", "decoder.up.0.block.0.conv1.weight is missing; it is not whole"),
    "somebody/newer": ("IntegrityError", "Show-o", "encoder.gate.weight", "a newer layout; update smalti"),
    "somebody/wrong": ("IntegrityError", "not a checkpoint of a family known here", "tried magicmaster"),
    "somebody/text": ("IntegrityError", "model.safetensors"),
    "somebody/nothing": ("InputError", "no such repository on the hub"),
    "somebody/readme": ("InputError", "no file of weights of a known name", "Show-o", "VidTok"),
}
"""Name -> kind of error and parts of its one line."""


def test_a_revision_is_fetched_and_faults_are_one_line_each_and_leave_nothing(hub, tmp_path):
    LoopbackHub.clear()
    showo = {path.name: path for path in (FOLDER / "showo_tiny").iterdir()}
    put("showlab/magvitv2", showo, OLDER)
    put("showlab/magvitv2", {"pytorch_model.safetensors": BIG})
    jit = {"encoder.jit": BIG, "decoder.jit": BIG}
    for name, files, status in (
        ("nvidia/Cosmos-0.1-Tokenizer-DI8x8", jit, 401),
        ("microsoft/VidTok", {"checkpoints/vidtok_fsq_causal_488_4096.ckpt": BIG}, 403),
        ("somebody/gated", {"model.safetensors": BIG}, 403),
    ):
        put(name, files)
        LoopbackHub.gated[name] = status
    whole = tensors(read_checkpoint(FOLDER / "showo_tiny" / "pytorch_model.safetensors"))
    half = {key: tensor for key, tensor in whole.items() if not key.startswith("decoder.up.0.block.0.conv1")}
    save_tensors(tmp_path / "half.safetensors", half)
    save_tensors(tmp_path / "newer.safetensors", {**whole, "encoder.gate.weight": torch.zeros(2)})
    put("somebody/half", {"pytorch_model.safetensors": tmp_path / "half.safetensors"})
    put("somebody/newer", {"pytorch_model.safetensors": tmp_path / "newer.safetensors"})
    put("somebody/wrong", {"model.safetensors": FOLDER / "metrics_lpips.safetensors"})
    put("somebody/text", {"model.safetensors": BIG})
    put("somebody/readme", {})
    good = ["showlab/magvitv2@old", f"showlab/magvitv2@{OLDER}"]
    found = load_all([*good, *FAULTS], hub[1], tmp_path)
    for name in good:
        assert found[name]["revision"] == OLDER
    check_lines(found, FAULTS)


def check_lines(found, faults):
    for name, (kind, *parts) in faults.items():
        assert found[name].get("kind") == kind, (name, found[name])
        assert "\n" not in found[name]["line"]
        for part in (name, *parts):
            assert part in found[name]["line"], (part, found[name]["line"])


def test_no_network_is_one_line(tmp_path):
    names = ["showlab/magvitv2", "somebody/thing"]
    found = load_all(names, "http://127.0.0.1:9", tmp_path)
    away = ("MachineError", "could not be reached", "check the network")
    check_lines(found, {"showlab/magvitv2": (*away, "(Show-o)"), "somebody/thing": away})


LOADS_A_DATA_SET = """
import sys
from smalti.data.parquet import download_from_hub
from smalti.errors import MachineError
try:
    download_from_hub("me/photos", "*.parquet", None)
except MachineError as error:
    print(error)
"""


@pytest.mark.slow  # the hub's own client tries a broken transfer again and again
def test_a_transfer_that_breaks_off_is_one_line_and_the_next_call_has_the_whole_file(hub, tmp_path):
    LoopbackHub.clear()
    weights = FOLDER / "showo_tiny" / "pytorch_model.safetensors"
    put("showlab/magvitv2", {path.name: path for path in (FOLDER / "showo_tiny").iterdir()})
    put("me/photos", {"rows.parquet": BIG * 1000})
    LoopbackHub.broken |= {weights.name, "rows.parquet"}
    name = "showlab/magvitv2"
    broken = ("MachineError", "the hub broke off the transfer", "try again", "(Show-o)")
    check_lines(load_all([name], hub[1], tmp_path), {name: broken})
    line = printed(LOADS_A_DATA_SET, [], hub[1], tmp_path)
    assert line.startswith("hf:me/photos: not in the cache, and the hub broke off the transfer")
    assert line.count("\n") == 1
    LoopbackHub.broken.clear()
    there = load_all([name], hub[1], tmp_path)[name]
    assert there["fingerprint"] == smalti.load(FOLDER / "showo_tiny").fingerprint


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    LoopbackHub.clear()
    put("showlab/magvitv2", {path.name: path for path in (FOLDER / "showo_tiny").iterdir()})
    (tmp_path / "hub").write_bytes(b"a file where the cache would be")
    fault = ("MachineError", "cannot be written to", str(tmp_path / "hub"), "HF_HUB_CACHE names another folder")
    check_lines(load_all(["showlab/magvitv2"], hub[1], tmp_path), {"showlab/magvitv2": fault})
