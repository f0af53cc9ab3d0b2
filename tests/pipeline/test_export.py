"""An exported tokenizer gives the ids of the tokenizer, whole and streamed, where there is no smalti."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

import smalti
from smalti.errors import ConfigError, MachineError
from smalti.files import check_manifest
from smalti.pipeline.parity import margins
from smalti.pipeline.runtimes import Exported
from smalti.quantize import CodebookConfig, DSQConfig, FSQConfig, LFQConfig
from smalti.tokenizer import ConditionalConfig, TokenizerConfig
from tests.randomise import random_tokenizer

ABSENT = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
with_onnx = pytest.mark.skipif(bool(ABSENT), reason="needs the extra `export`")
SMALL = {"width": 16, "multipliers": (1, 2), "depth": 1, "decoder_depth": 1, "middle": 0}
IMAGE = TokenizerConfig(**SMALL, strides=((1, 2),), patch=2, quantizer=LFQConfig(bits=8))
CONDITIONAL = ConditionalConfig(image=IMAGE, group=2, width=8)
VIDEO = TokenizerConfig(**SMALL, strides=((2, 2),), patch=2, quantizer=DSQConfig(levels=(5, 4, 3)), time_kernel=3)


def saved(config, folder):
    """A tokenizer whose every weight is random, in a folder."""
    tokenizer = random_tokenizer(config)
    tokenizer.save(folder)
    return tokenizer


def exported(config, folder, *options):
    """(tokenizer, folder of its export), made by the command: checks of annotations are no part of a graph."""
    tokenizer = saved(config, folder / "tokenizer")
    command = [
        sys.executable,
        "-m",
        "smalti",
        "export",
        str(folder / "tokenizer"),
        "--out",
        str(folder / "out"),
        *options,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert not ended.stderr.strip(), ended.stderr
    return tokenizer, folder / "out"


def programs(folder):
    """The programs of an export as functions of tensors."""
    import onnxruntime

    about = json.loads((folder / "config.json").read_text())["programs"]

    def function(name):
        session = onnxruntime.InferenceSession(folder / about[name]["file"])
        names = [port.name for port in session.get_inputs()]
        assert names == list(about[name]["inputs"])
        assert [port.name for port in session.get_outputs()] == list(about[name]["outputs"])
        return lambda *x: [
            torch.from_numpy(y) for y in session.run(None, dict(zip(names, (t.numpy() for t in x), strict=True)))
        ]

    return {name: function(name) for name in about}


@pytest.mark.slow
@with_onnx
def test_one_file_serves_images_of_every_size(tmp_path):
    tokenizer, folder = exported(IMAGE, tmp_path, "--weights", "float16")
    run = programs(folder)
    with torch.no_grad():
        for parameter in (*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()):
            parameter.copy_(parameter.half())
        for size in [(1, 3, 1, 1, 1), (1, 3, 1, 4, 4), (2, 3, 1, 33, 18), (1, 3, 3, 7, 40)]:
            video = torch.rand(size) * 2 - 1
            ids = tokenizer.encode(video)
            assert torch.equal(run["encode"](video)[0], ids)
            assert torch.allclose(run["decode"](ids)[0], tokenizer.decode(ids), rtol=0, atol=1e-5)
    check_manifest(folder)
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["weights"] == "float16"
    assert parity["programs"]["encode"]["ids"] > 10_000
    about = json.loads((folder / "config.json").read_text())
    assert about["tokenizer"]["fingerprint"] == smalti.load(tmp_path / "tokenizer").fingerprint
    assert about["programs"]["encode"]["inputs"]["video"]["shape"] == ["batch", 3, "frames", "height", "width"]
    weights = sum(p.numel() for p in tokenizer.encoder.parameters())
    assert (folder / "encode.onnx").stat().st_size < 3 * weights + 100_000
    assert str(tmp_path).encode() not in (folder / "encode.onnx").read_bytes()
    assert b"smalti/tokenizer/tokenizer.py" not in (folder / "encode.onnx").read_bytes()


@with_onnx
@pytest.mark.slow
def test_a_stream_of_chunks_gives_the_ids_and_pixels_of_the_whole(tmp_path):
    tokenizer, folder = exported(VIDEO, tmp_path)
    run = programs(folder)
    assert set(run) == {"encode", "encode_step", "decode", "decode_step"}
    with torch.no_grad():
        for size, chunks in [((1, 3, 7, 16, 20), (1, 2, 4)), ((2, 3, 9, 5, 4), (3, 4, 2)), ((1, 3, 3, 4, 4), (1, 2))]:
            video = torch.rand(size) * 2 - 1
            ids = tokenizer.encode(video)
            assert torch.equal(run["encode"](video)[0], ids)
            parts, state = [], []
            for number, chunk in enumerate(video.split(chunks, 2)):
                y, *state = run["encode_step" if number else "encode"](chunk.contiguous(), *state)
                parts.append(y)
            assert torch.equal(torch.cat(parts, 1), ids)
            parts, state = [], []
            for number, chunk in enumerate(ids.split(1, 1)):
                y, *state = run["decode_step" if number else "decode"](chunk.contiguous(), *state)
                parts.append(y)
            assert torch.allclose(torch.cat(parts, 2), tokenizer.decode(ids), rtol=0, atol=1e-5)
    parity = json.loads((folder / "parity.json").read_text())["programs"]
    assert {name for name, row in parity.items() if "ids" in row} == {"encode", "encode_step"}
    assert all(row["differing"] == row["ties"] for row in parity.values() if "ids" in row)


WITHOUT = """
import json, pathlib, sys
sys.modules["smalti"] = None  # an import of it fails
import torch

folder, cases = pathlib.Path(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
about = json.loads((folder / "config.json").read_text())["programs"]
run = {name: torch._inductor.aoti_load_package(str(folder / one["file"])) for name, one in about.items()}

def same(found, wanted):
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * found.is_floating_point()), found.shape

for case in cases:
    for kind, axis in (("encode", 2), ("decode", 1)):
        x, y, sizes = case[kind]
        if not sizes or case["whole"]:
            same(run[kind](x)[0], y)
        parts, state = [], []
        for number, chunk in enumerate(x.split(sizes, axis) if sizes else ()):
            found, *state = run[f"{kind}_step" if number else kind](chunk.contiguous(), *state)
            parts.append(found)
        if parts:
            same(torch.cat(parts, 3 - axis), y)
print(len(cases), sorted(run))
"""


def case(tokenizer, size, chunks=(), whole=True):
    """Inputs and results of a tokenizer, and the lengths of the chunks of its video and of its ids."""
    video = torch.rand(size) * 2 - 1
    with torch.no_grad():
        ids = tokenizer.encode(video)
        pixels = tokenizer.decode(ids)
    tokens = [1] * ids.shape[1] if chunks else []
    return {"encode": (video, ids, list(chunks)), "decode": (ids, pixels, tokens), "whole": whole}


SIZES = ((1, 3, 1, 4, 4), (2, 3, 1, 33, 18), (3, 3, 1, 12, 40), (1, 3, 3, 7, 50))
CLIPS = (((1, 3, 7, 16, 20), (1, 2, 2, 2)), ((2, 3, 9, 5, 4), (3, 2, 2, 2)), ((1, 3, 3, 4, 4), (1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "halves", "video", "conditional"])
def test_a_package_runs_in_a_process_without_smalti(tmp_path, kind):
    config = {"video": VIDEO, "conditional": CONDITIONAL}.get(kind, IMAGE)
    weights = ("--weights", "float16") if kind == "halves" else ()
    tokenizer, folder = exported(config, tmp_path, "--to", "pt2", *weights)
    if weights:
        with torch.no_grad():
            for parameter in (*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()):
                parameter.copy_(parameter.half())
    if config is IMAGE:
        cases = [case(tokenizer, size) for size in SIZES]
    elif config is VIDEO:
        cases = [case(tokenizer, size, chunks) for size, chunks in CLIPS]
    else:
        cases = [case(tokenizer, size, (1, 2, 2), whole=False) for size in [(1, 3, 5, 8, 12), (2, 3, 5, 12, 4)]]
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, "-I", "-c", WITHOUT, str(folder), str(tmp_path / "cases.pt")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    steps = ["decode", "decode_step", "encode", "encode_step"]
    assert ended.stdout.strip() == f"{len(cases)} {steps if config is not IMAGE else ['decode', 'encode']}"
    check_manifest(folder)
    about = json.loads((folder / "config.json").read_text())["programs"]
    view = torch.rand(1, 3, 1, 24, 28)[..., 3:20, 5:26]  # not contiguous, which a package itself does not see
    assert torch.equal(Exported(folder, about, "pt2").run("encode", view)[0], tokenizer.encode(view))
    parity = json.loads((folder / "parity.json").read_text())
    rows = [row for row in parity["programs"].values() if "ids" in row]
    assert weights or all(row["differing"] == row["ties"] for row in rows)
    assert sum(row["ids"] for row in rows) > 1_000


def test_a_package_needs_a_compiler(tmp_path):
    saved(IMAGE, tmp_path / "tokenizer")
    command = [*(sys.executable, "-m", "smalti", "export", "tokenizer", "--to", "pt2", "--out", "out")]
    environment = {**os.environ, "CXX": "/bin/none"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == MachineError.exit_code
    assert ended.stderr.strip() == "error: pt2: no C++ compiler found; install g++, or name one by the variable CXX"
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    "config", [LFQConfig(bits=6), FSQConfig(levels=(5, 4)), DSQConfig(levels=(5, 4))], ids=lambda c: c.kind
)
def test_the_margin_of_an_id_is_the_way_out_of_its_cell(config):
    """By definition: just before it the id is the old one, just after it another."""
    quantizer = config.build()
    z = torch.randn(1, quantizer.dim, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = quantizer.encode(z)
    digits = quantizer.digits(ids)
    digits[:, 0] = (digits[:, 0] + 1) % quantizer.levels[0]
    others = quantizer.ids(digits)
    up = quantizer.decode(others)[:, 0] > quantizer.decode(ids)[:, 0]
    found = margins(quantizer, z, ids, others).view(1, 1, 8, 8)
    for share, same in ((0.999, True), (1.001, False)):
        moved = z.clone()
        moved[:, 0] += torch.where(up, found * share, -found * share)
        kept = quantizer.encode(moved) == ids
        assert bool(kept[found.isfinite()].all()) if same else not bool(kept[found.isfinite()].any())


def test_the_margin_of_a_row_is_the_distance_to_the_border():
    quantizer = CodebookConfig(size=16, dim=3).build()
    with torch.no_grad():
        quantizer.codebook.copy_(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)))
        z = torch.randn(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        distances = (z.movedim(1, -1).unsqueeze(-2) - quantizer.table()).square().sum(-1)
        near, second = distances.topk(2, largest=False).indices.unbind(-1)
        rows = quantizer.table()[near], quantizer.table()[second]
        gap = distances.gather(-1, second[..., None]) - distances.gather(-1, near[..., None])
        wanted = gap[..., 0] / (2 * (rows[0] - rows[1]).norm(dim=-1))
        found = margins(quantizer, z, quantizer.encode(z), second)
    assert torch.allclose(found, wanted.flatten(), rtol=1e-3, atol=1e-6)


def test_what_cannot_be_exported_is_refused_first(tmp_path):
    tokenizer = saved(IMAGE, tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="already exists; choose another name"):
        smalti.export(tokenizer, tmp_path / "tokenizer")
    if ABSENT:
        with pytest.raises(MachineError, match=r"not installed; pip install 'smalti\[export\]'$"):
            smalti.export(tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
