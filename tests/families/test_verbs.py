"""Every family by every command: a checkpoint of another project is named as it is, and the command works, or refuses
in one line that says why. The table is that of docs/zoo.md.

One container runs always, but for `export`; all of them with `-m slow`, and with `export`, which may ask for onnx.
"""

import importlib.util
import json
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import smalti
from smalti.cli.main import run
from smalti.data import write_video
from smalti.errors import ConfigError
from smalti.tokens.reader import TokenSet
from tests.families.golden import listed, write_torchscript
from tests.goldens.rule import FOLDER, rule
from tests.rules.tree import ROOT

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
SHIPPED = {
    "showo": "showo_tiny",
    "taming": "taming_tiny.ckpt:lookup=euclidean",
    "taming, IBQ": "ibq_tiny.ckpt:lookup=inner",
    "llamagen": "llamagen_tiny.pt",
    "llamagen, its training's": "llamagen_tiny_train.pt",
    "llamagen, Janus": "janus_tiny",
    "diffusers-vq": "diffusers_tiny:pixels=unit",
    "maskgit": "maskgit_tiny.bin",
    "maskbit": "maskbit_tiny.bin",
    "open-magvit2": "om2_tiny_lightning.ckpt",
    "magicmaster": "mm_envelope_tiny2d.pth",
}
"""Containers in the form that their projects write, small."""
MADE = {
    "cosmos, images": ("cosmos_di8x8_w32_64px", "Cosmos-0.1-Tokenizer-DI8x8"),
    "cosmos, video": ("cosmos_dv4x8x8_w32_t9_48px", "Cosmos-0.1-Tokenizer-DV4x8x8"),
    "vidtok 1.0": ("vidtok_v10_fsq41616_w16_t9_32px", "vidtok_fsq_causal_41616_262144.ckpt"),
    "vidtok 1.1": ("vidtok_v11_fsq888_w16_t9_32px", "vidtok_fsq_causal_888_32768_v1_1.ckpt"),
    "vidtok, not causal": ("vidtok_v10_noncausal41616_w16_t8_32px", "vidtok_fsq_noncausal_41616_262144.ckpt"),
    "open-magvit2, video": ("om2_video_w32_t9_32px", "video_128_262144.ckpt"),
}
"""Containers that are made here of the weights of a golden, under the names of the published ones."""
VIDEO = {"cosmos, video", "vidtok 1.0", "vidtok 1.1", "vidtok, not causal", "open-magvit2, video"}
CLIPS = {"vidtok, not causal", "open-magvit2, video"}
"""Those that are not causal: a video has to be cut into clips."""
FAST = ["showo"]
VERBS = ("info", "import", "reconstruct", "eval", "tokenize", "decode", "compress", "decompress", "export", "train",
         "inflate")  # fmt: skip
NO_VIDEO_FORM, NO_PLACE = "has no video form", "first latent holds 4 frames"
REFUSED = {
    **{("inflate", name): NO_VIDEO_FORM for name in (*SHIPPED, *MADE) if name != "magicmaster"},
    ("compress", "vidtok, not causal"): NO_PLACE,
    ("decompress", "vidtok, not causal"): NO_PLACE,
}
"""(command, container) -> words of the one line that refuses it."""


@cache
def container(name, home):
    """The place of a container, for a command line; it is made if it is not shipped."""
    if name in SHIPPED:
        return str(FOLDER / SHIPPED[name])
    listing, file = MADE[name]
    tensors = {key: rule(key, shape) for key, shape in listed(listing).items()}
    if not file.startswith("Cosmos"):
        torch.save({"state_dict": tensors, "global_step": 1}, home / file)
        return str(home / file)
    (home / file).mkdir()
    halves = {"encoder": {}, "decoder": {}}
    for key, tensor in tensors.items():
        halves["decoder" if key.startswith(("decoder.", "post_quant_conv.")) else "encoder"][key] = tensor.bfloat16()
    for half, found in halves.items():
        write_torchscript(found, home / file / f"{half}.jit")
    return str(home / file)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a photograph, a clip of 9 frames, and a folder of each for `eval` and `train`."""
    folder = tmp_path_factory.mktemp("verbs")
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (9, 4, 6, 3), np.uint8)
    frames = [np.asarray(Image.fromarray(frame).resize((48, 32), Image.Resampling.BICUBIC)) for frame in small]
    for name in ("photos", "clips"):
        (folder / name).mkdir()
    for i in range(2):
        Image.fromarray(frames[i]).save(folder / "photos" / f"{i}.png")
        write_video(folder / "clips" / f"{i}.mp4", frames[::-1] if i else frames, 8)
    return folder


def commands(name, place, home, out):
    """(verb, arguments) of each command, in an order in which the later ones can use what the earlier ones wrote."""
    video = name in VIDEO
    medium = home / ("clips" if video else "photos")
    one = medium / ("0.mp4" if video else "0.png")
    clip, group = (["--clip", "8"], ["--group", "8"]) if name in CLIPS else ([], [])
    device = ["--device", "cpu"]
    frames = ["--frames", "8"] if video else []
    yield "info", ["info", place, "--json"]
    yield "import", ["import", place, "--out", out / "imported"]
    yield "reconstruct", ["reconstruct", place, one, "--out", out / "made", *clip, *device]
    yield "eval", ["eval", place, "--data", medium, "--size", "32", *frames, "--out", out / "report", *device]
    yield (
        "tokenize",
        ["tokenize", place, medium, "--out", out / "set", "--size", "32", "--workers", "0", *clip, *device],
    )
    yield "decode", ["decode", out / "set", "--tokenizer", place, "--out", out / "decoded", *device]
    yield "compress", ["compress", one, out / "a.smt", "--tokenizer", place, *group, *device]
    back = out / ("back.mp4" if video else "back.png")
    yield "decompress", ["decompress", out / "a.smt", back, "--tokenizer", place, *device]
    yield "export", ["export", place, "--out", out / "onnx"]
    settings = [f"init={place}", f"data.path={medium}", "data.size=32", "steps=1", "batch_size=2", "validation=null"]
    settings += ["workers=0", "sample_every=9", *(["data.frames=8", "data.stride=1"] if video else [])]
    recipe = "finetune-video" if video else "finetune-image"
    pairs = [word for setting in settings for word in ("--set", setting)]
    yield "train", ["train", recipe, "--tiny", "--out", out / "run", *pairs, *device]
    yield "inflate", ["inflate", place, "--out", out / "inflated", "--time-strides", "2"]


def answers(name, home, out, capsys, left_out):
    """Verb -> (exit code, standard output, standard error) of each command on a container, but those `left_out`."""
    place, found = container(name, home), {}
    for verb, arguments in commands(name, place, home, out):
        if verb in left_out:
            continue
        words = [str(argument) for argument in arguments]
        if verb == "export" and HAS_ONNX:  # a tracer's sizes are no whole numbers for the checks of annotations
            ended = subprocess.run(
                [sys.executable, "-m", "smalti", *words], capture_output=True, text=True, timeout=3600
            )
            found[verb] = (ended.returncode, ended.stdout, ended.stderr)
            continue
        capsys.readouterr()
        found[verb] = (run(words), *capsys.readouterr())
    return found


def check(name, home, out, capsys, left_out):
    found = answers(name, home, out, capsys, left_out)
    for verb, (code, _, err) in found.items():
        why = REFUSED.get((verb, name))
        if verb == "export" and why is None and not HAS_ONNX:
            why = "onnx"
        if verb == "decompress" and ("compress", name) in REFUSED:
            continue  # there is no file to read
        if why is None:
            assert code == 0, (verb, err)
            continue
        lines = err.strip().splitlines()
        assert (code in (2, 5, 6), len(lines)) == (True, 1), (verb, code, err)
        assert why in lines[0], (verb, err)
    family = name.split(",")[0].split(" ")[0]
    facts = json.loads(found["info"][1])
    assert facts["source"]["family"] == family
    assert facts["source"]["licence"]
    assert facts["source"]["licence_source"]
    assert facts["is_streamable"] == (name not in CLIPS)
    tokenizer = smalti.load(container(name, home))
    assert smalti.load(out / "imported").fingerprint == tokenizer.fingerprint == facts["fingerprint"]
    assert smalti.load(out / "run").source == tokenizer.source
    rows = TokenSet(out / "set")
    assert rows.tokenizer_info == tokenizer.info
    ids = rows.row(0).tensor()[None]
    ids = ids if ids.ndim == 4 else ids[:, None]
    there = tokenizer.source_ids(ids)
    assert torch.equal(tokenizer.ids_from_source(there, ids.shape[1:]), ids)
    for verb, place in (("inflate", "inflated"), ("compress", "a.smt"), ("export", "onnx")):
        assert (out / place).exists() == (verb in found and found[verb][0] == 0), (verb, "nothing half-written")
    if HAS_ONNX and "export" in found:
        check_parity(json.loads((out / "onnx" / "parity.json").read_text()), is_video=name in VIDEO)


def check_parity(parity, *, is_video):
    """The ids of 8 photographs, and of 4 clips, are those of PyTorch but for ties, and so are the pixels nearly."""
    for program, counts in parity["programs"].items():
        assert counts["media"] == (12 if is_video else 8), program
        if "ids" in counts:
            assert counts["differing"] == counts["ties"] <= 1e-3 * counts["ids"], (program, counts)
        else:
            assert counts["largest_difference"] < 1e-3, (program, counts)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        *(pytest.param(name, ["export"], id=f"{name}, no export") for name in FAST),
        *(pytest.param(name, [], marks=pytest.mark.slow, id=name) for name in (*SHIPPED, *MADE)),
    ],
)
def test_every_command_takes_a_container_by_its_name_or_says_why_not(
    name, left_out, home, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check(name, home, tmp_path, capsys, left_out)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("showo", "maskgit") else pytest.mark.slow) for n in (*SHIPPED, *MADE)]
)
def test_the_stream_of_every_causal_container_is_one_shot_in_float64_and_others_have_none(
    name, home, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = smalti.load(container(name, home), dtype=torch.float64)
    frames = torch.rand(1, 3, 11, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert tokenizer.is_causal == tokenizer.facts()["is_streamable"] == (name not in CLIPS)
    with torch.inference_mode():
        if not tokenizer.is_causal:
            with pytest.raises(ConfigError, match="not causal"):
                next(tokenizer.encode_stream([frames]))
            return
        ids = tokenizer.encode(frames)
        whole = tokenizer.decode(ids)
        assert torch.equal(torch.cat(list(tokenizer.encode_stream(frames.split([1, 6, 4], 2))), 1), ids)
        made = torch.cat(list(tokenizer.decode_stream(ids.split(2, 1))), 2)
        assert (made - whole).abs().max() <= 1e-12 * whole.abs().max()
        with pytest.raises(ConfigError, match="not tile-exact"):
            tokenizer.encode(frames, tile=32)
    assert not tokenizer.is_tile_exact


def test_the_table_of_the_page_is_that_of_these_tests():
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    table = re.search(r"## Every family and every command\n.*?\n((?:\|[^\n]*\n)+)", page, re.DOTALL)[1]
    head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines())
    assert head[1:] == list(VERBS)
    found = {row[0]: dict(zip(VERBS, row[1:], strict=True)) for row in rows}
    assert found == {
        name: {verb: "no" if (verb, name) in REFUSED else "yes" for verb in VERBS} for name in (*SHIPPED, *MADE)
    }
