"""Tokenizers of other projects: latents, ids, codes and pixels of their own code (tests/goldens), and their files."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

import smalti
from smalti.data.bundled import photos
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.families import import_checkpoint
from smalti.families.names import TINY_IMAGE
from smalti.files import save_tensors
from smalti.foreign import read_checkpoint, tensors
from smalti.tokenizer import Tokenizer
from smalti.tokens.reader import TokenSet
from tests import programs
from tests.families.golden import golden_model, listed, read_shapes, write_torchscript
from tests.goldens.rule import FOLDER, load

CLOSE = {"rtol": 1e-5, "atol": 5e-5}
"""A norm with an epsilon of 1e-5 in place of 1e-6 hides below 1e-4."""


class Row(NamedTuple):
    """A golden, its listing of names, and what its files do not say."""

    golden: str
    keys: str
    family: str
    turned: bool = False
    """Whether channels are in the other order here."""
    options: Mapping = MappingProxyType({})


class File(NamedTuple):
    """A file or folder in the form that its project writes, and the golden with what it gives."""

    name: str
    golden: str
    family: str
    options: Mapping = MappingProxyType({})
    copy: str = "bare"


class Full(NamedTuple):
    """The listing of a published network, how many numbers are in it, and how many of them are no weights."""

    keys: str
    numbers: int
    constant: int = 0
    options: Mapping = MappingProxyType({})


EUCLIDEAN, INNER = {"lookup": "euclidean"}, {"lookup": "inner"}
UNIT, SIGNED = {"pixels": "unit"}, {"pixels": "signed"}
ROWS = [
    Row("showo_magvitv2_w32_64x96", "showo_magvitv2_w32", "showo", turned=True),
    Row("taming_vqgan_f16_w32_64x96", "taming_vqgan_f16_w32", "taming", options=EUCLIDEAN),
    Row("taming_vqgan_noattn_w32_64x48", "taming_vqgan_noattn_w32", "taming", options=EUCLIDEAN),
    Row("ibq_w32_64x96", "ibq_w32", "taming", options=INNER),
    Row("llamagen_vq16_w32_64px", "llamagen_vq16_w32_64px", "llamagen"),
    Row("diffusers_vq_amused_w32_64x96", "diffusers_vq_amused_w32", "diffusers-vq", options=UNIT),
    Row("diffusers_vq_attn_w32_48x64", "diffusers_vq_attn_w32", "diffusers-vq", options=SIGNED),
    Row("diffusers_vq_attnlevel_w32_64x48", "diffusers_vq_attnlevel_w32", "diffusers-vq", options=SIGNED),
    Row("maskgit_vqgan_w32_64x96", "maskgit_vqgan_w32", "maskgit"),
    Row("maskbit_lfq10_w32_64x96", "maskbit_lfq10_w32", "maskbit"),
    Row("maskbit_vqgan_plus_w32_48x64", "maskbit_vqgan_plus_w32", "maskbit"),
]
FILES = [
    File("showo_tiny", "showo_tiny", "showo"),
    File("taming_tiny.ckpt", "taming_tiny", "taming", EUCLIDEAN),
    File("ibq_tiny.ckpt", "ibq_tiny", "taming", INNER, "average"),
    File("llamagen_tiny.pt", "llamagen_tiny", "llamagen"),
    File("llamagen_tiny_train.pt", "llamagen_tiny", "llamagen", copy="average"),
    File("janus_tiny", "janus_tiny", "llamagen"),
    File("diffusers_tiny", "diffusers_tiny", "diffusers-vq", UNIT),
    File("maskgit_tiny.bin", "maskgit_tiny", "maskgit"),
    File("maskbit_tiny.bin", "maskbit_tiny", "maskbit"),
]
FULL = [
    Full("showo_magvitv2_full", 95_493_513, constant=8192 * 13 + 13),
    Full("taming_f16_1024_full", 72_141_699, options=EUCLIDEAN),
    Full("ibq_262144_full", 173_896_579, options=INNER),
    Full("emu3p5_ibq_full", 455_336_963, options=INNER),
    Full("llamagen_vq16_full", 71_948_939, constant=65_536),
    Full("llamagen_vq8_full", 70_175_371, constant=65_536),
    Full("amused_vqvae_full", 146_244_675, options=UNIT),
    Full("maskgit_vqgan_1024_full", 54_515_587),
    Full("maskbit_14bit_full", 54_718_879, constant=14 + 14 * 2**14),
]


def config_of(row):
    """The config.json that lies beside the weights of a golden, where its family needs one."""
    own = load(row.golden).metadata["config"] if row.family == "diffusers-vq" else {}
    return {"_class_name": "VQModel", **own} if own else {}


def saved(folder, row, tensors):
    """A folder with weights as torch.save writes them, and the config beside them."""
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "given.pt")
    if config := config_of(row):
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "given.pt"


def five(x):
    """Images with a time axis."""
    return x.unsqueeze(2)


def video_of(golden):
    """The golden's images in [-1, 1], whatever range its project has."""
    return five(golden.tensors["input_u8"].float() / 127.5 - 1)


def pixels_of(golden, made):
    """Our pixels in the range of the golden's project."""
    return (made + 1) / 2 if "[0, 1]" in golden.metadata["input"] else made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.golden)
def test_latents_ids_codes_and_pixels_are_the_projects(row):
    tokenizer, family, _, golden = golden_model(row.golden, row.keys, config=config_of(row), **row.options)
    assert family.name == row.family
    seen = {}
    tokenizer.encoder.register_forward_hook(lambda _, __, z: seen.update(z=z))
    tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: seen.update(codes=inputs[0]))
    with torch.no_grad():
        ids = tokenizer.encode(video_of(golden))
        made = tokenizer.decode(ids)
    numbers = golden.tensors
    assert torch.equal(ids.flatten(), numbers["ids"].flatten().long())
    for part, tolerance in (("z", CLOSE), ("codes", {"rtol": 0, "atol": 1e-6})):
        own = seen[part][0]
        torch.testing.assert_close(own.flip(1) if row.turned else own, numbers[part], **tolerance)
    torch.testing.assert_close(pixels_of(golden, made)[:, :, 0], numbers["recon"], **CLOSE)


@pytest.mark.parametrize("row", FULL, ids=lambda row: row.keys)
def test_parameters_of_the_published_network_are_as_many_as_published(row):
    shapes = listed(row.keys)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == row.numbers
    config = {"_class_name": "VQModel"} if "amused" in row.keys else {}
    _, model = read_shapes(shapes, config=config, **row.options)
    with torch.device("meta"):
        tokenizer = Tokenizer(model.config)
    assert sum(p.numel() for p in tokenizer.parameters()) == row.numbers - row.constant


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_the_project_loads_in_one_call_and_gives_its_ids(file, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    golden = load(file.golden)
    tokenizer = smalti.load(FOLDER / file.name, **file.options)
    assert (tokenizer.source.family, tokenizer.source.weights) == (file.family, file.copy)
    with torch.no_grad():
        ids = tokenizer.encode(video_of(golden))
        made = tokenizer.decode(ids)
    assert torch.equal(ids.flatten(), golden.tensors["ids"].flatten().long())
    torch.testing.assert_close(pixels_of(golden, made)[:, :, 0], golden.tensors["recon"], **CLOSE)
    there = tokenizer.source_ids(ids)
    assert torch.equal(tokenizer.ids_from_source(there, ids.shape[1:]), ids)
    # Once converted, it is read from the cache.
    (folder,) = (tmp_path / "smalti" / "tokenizers").iterdir()
    again = smalti.load(FOLDER / file.name, **file.options)
    assert (again.fingerprint, again.source) == (tokenizer.fingerprint, tokenizer.source)
    assert json.loads((folder / "config.json").read_text())["fingerprint"] == tokenizer.fingerprint


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_tensor_of_the_file_is_used_or_left_out_with_a_reason(file):
    report = import_checkpoint(FOLDER / file.name, **file.options).report
    told = [*report.used, *(name for names in report.ignored.values() for name in names)]
    path = FOLDER / file.name
    tree = read_checkpoint(next(path.glob("*.safetensors")) if path.is_dir() else path)
    assert sorted(told) == sorted(tensors(tree.get("state_dict", tree)))
    assert report.missing == []
    assert report.copy == file.copy


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.golden)
def test_a_half_of_a_checkpoint_is_refused_by_the_name_of_what_is_missing(row, tmp_path):
    _, family, model, _ = golden_model(row.golden, row.keys, config=config_of(row), **row.options)
    shapes = listed(row.keys)
    for gone in (model.links[3].source, model.links[-1].source):
        half = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items() if name != gone}
        with pytest.raises(IntegrityError) as error:
            import_checkpoint(saved(tmp_path / "half", row, half), **row.options)
        assert family.title in str(error.value)
        assert gone in str(error.value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.golden)
def test_a_newer_layout_is_refused_and_another_constant_too(row, tmp_path):
    _, _, model, _ = golden_model(row.golden, row.keys, config=config_of(row), **row.options)
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in listed(row.keys).items()} | dict(model.constants)
    newer = {**tensors, "encoder.conv_in.gate": torch.zeros(1)}
    with pytest.raises(IntegrityError, match=r"encoder\.conv_in\.gate.*a newer layout"):
        import_checkpoint(saved(tmp_path / "newer", row, newer), **row.options)
    for name, constant in model.constants.items():
        with pytest.raises(IntegrityError, match="other values"):
            import_checkpoint(saved(tmp_path / "other", row, {**tensors, name: constant + 1}), **row.options)


WATCHED = """
import json, sys
from smalti.families import import_checkpoint
from smalti.families.names import TINY_IMAGE
from smalti.files import save_tensors
from smalti.foreign import read_checkpoint, tensors
files = json.loads(sys.argv[1])
watched = ("pickle.find_class", "exec", "compile", "os.system", "os.exec", "subprocess.Popen", "socket.connect",
           "ctypes.dlopen", "import")
seen, inside = [], False
def hook(event, args):
    if inside and event in watched:
        seen.append(f"{event} {args[0]!r}"[:200])
sys.addaudithook(hook)
for turn in range(2):  # the first turn brings what torch and smalti load late themselves
    inside = turn == 1
    for path, options in files:
        import_checkpoint(path, **options)
print(json.dumps(seen))
"""


def test_no_code_of_a_file_is_run_or_imported(tmp_path):
    """Of each family one container: pickles of three ages, safetensors, TorchScript with its program."""
    files = [(str(FOLDER / file.name), dict(file.options)) for file in FILES]
    files += [(str(FOLDER / name), {}) for name in ("om2_tiny_lightning.ckpt", "mm_envelope_tiny2d.pth")]
    zeros = {key: torch.zeros(shape) for key, shape in listed("cosmos_di8x8_w32_64px").items()}
    write_torchscript(zeros, tmp_path / "autoencoder.jit")
    around = listed("vidtok_v10_noncausal41616_w16_t8_32px")
    torch.save({"state_dict": {key: torch.zeros(shape) for key, shape in around.items()}}, tmp_path / "vidtok.ckpt")
    files += [(str(tmp_path / name), {}) for name in ("autoencoder.jit", "vidtok.ckpt")]
    files = json.dumps(files)
    ended = subprocess.run([sys.executable, "-c", WATCHED, files], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == []


@pytest.mark.parametrize("name", ["taming_tiny.ckpt", "ibq_tiny.ckpt"])
def test_the_law_of_a_codebook_is_asked_for_and_a_known_one_is_not(name, tmp_path):
    with pytest.raises(ConfigError, match="`lookup` euclidean"):
        smalti.load(FOLDER / name)
    shutil.copy(FOLDER / name, tmp_path / "model.ckpt")
    for text, law in (("src.IBQ.models.ibqgan.IBQ", "inner"), ("taming.models.vqgan.VQModel", "euclidean")):
        (tmp_path / "config.yaml").write_text(f"model:\n  target: {text}\n")
        assert import_checkpoint(tmp_path).tokenizer.config.quantizer.by == law
    with pytest.raises(ConfigError, match=r"lookup inner: .* has euclidean"):
        import_checkpoint(tmp_path, lookup="inner")


def test_the_range_of_diffusers_pixels_is_asked_for():
    with pytest.raises(ConfigError, match="`pixels` unit"):
        smalti.load(FOLDER / "diffusers_tiny")


def test_a_name_takes_the_options_everywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = smalti.load(f"{FOLDER}/taming_tiny.ckpt:lookup=euclidean")
    assert one.fingerprint == smalti.load(FOLDER / "taming_tiny.ckpt", lookup="euclidean").fingerprint
    assert one.config.quantizer.by == "euclidean"
    with pytest.raises(ConfigError, match="lokup: no such field; did you mean 'lookup'"):
        smalti.load(f"{FOLDER}/taming_tiny.ckpt:lokup=euclidean")
    with pytest.raises(ConfigError, match="needs no lookup"):
        smalti.load("smalti/tiny-image", lookup="inner")


def hub(folder, repository, files, commit="c0ffee"):
    """Fill a cache of the hub with these files of a repository."""
    home = folder / ("models--" + repository.replace("/", "--"))
    for inside, path in files.items():
        target = home / "snapshots" / commit / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)


HUB = """
import json, sys, warnings
warnings.simplefilter("error", UserWarning)
import smalti
from smalti.errors import SmaltiError
found = {}
for name in sys.argv[1:]:
    try:
        tokenizer = smalti.load(name)
        source = tokenizer.source
        found[name] = [source.family, source.revision, source.licence, source.licence_source,
                       str(getattr(tokenizer.config.quantizer, "by", "")), tokenizer.config.pixels]
    except SmaltiError as error:
        found[name] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


def test_names_of_the_hub_are_found_by_the_real_names_of_their_files_and_known_facts_decide(tmp_path):
    showo = {path.name: path for path in (FOLDER / "showo_tiny").iterdir()}
    amused = {f"vqvae/{path.name}": path for path in (FOLDER / "diffusers_tiny").iterdir()}
    hub(tmp_path / "hub", "showlab/magvitv2", showo)
    hub(tmp_path / "hub", "amused/amused-256", amused)
    hub(tmp_path / "hub", "TencentARC/IBQ-Tokenizer-8192", {"imagenet256_8192.ckpt": FOLDER / "ibq_tiny.ckpt"})
    hub(tmp_path / "hub", "somebody/else", showo)
    hub(tmp_path / "hub", "many/files", {"a.ckpt": FOLDER / "ibq_tiny.ckpt", "b.pt": FOLDER / "llamagen_tiny.pt"})
    names = ["showlab/magvitv2", "amused/amused-256@main", "TencentARC/IBQ-Tokenizer-8192", "somebody/else"]
    names += ["many/files/b.pt", "not/there", "BAAI/Emu3.5-VisionTokenizer"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    ended = programs.run("-c", HUB, *names, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    tag = "the tag of its repository on the hub"
    assert found["showlab/magvitv2"] == ["showo", "c0ffee", "MIT", tag, "", "signed"]
    other = found["somebody/else"]
    assert other == ["showo", "c0ffee", "MIT", "that of Show-o's published weights; this file names none", "", "signed"]
    assert found["amused/amused-256@main"] == ["diffusers-vq", "c0ffee", "openrail++", tag, "euclidean", "unit"]
    assert found["TencentARC/IBQ-Tokenizer-8192"] == ["taming", "c0ffee", "Apache-2.0", tag, "inner", "signed"]
    assert found["many/files/b.pt"][:2] == ["llamagen", "c0ffee"]
    kind, line = found["not/there"]
    assert kind == "MachineError"
    assert "the hub was not asked, because HF_HUB_OFFLINE is set" in line
    assert "\n" not in line
    assert "VisionTokenizer (VQGAN named as in taming): no such folder here" in found[names[-1]][1]


def test_of_a_model_in_shards_those_with_the_tokenizer_are_read(tmp_path):
    whole = read_checkpoint(FOLDER / "janus_tiny" / "model.safetensors")
    inside = [name for name in whole if name.startswith("gen_vision_model.")]
    shards = {
        name: f"model-0000{1 + (i % 2) if name in inside else 3}-of-00003.safetensors" for i, name in enumerate(whole)
    }
    for file in sorted(set(shards.values()))[:2]:  # the third, of the language model, is not there
        save_tensors(tmp_path / file, {name: whole[name] for name in whole if shards[name] == file})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    found = import_checkpoint(tmp_path)
    assert found.tokenizer.fingerprint == import_checkpoint(FOLDER / "janus_tiny").tokenizer.fingerprint
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003"):
        import_checkpoint(tmp_path)


def test_other_autoencoders_are_refused_by_what_they_lack(tmp_path):
    shapes = listed("taming_vqgan_f16_w32")
    without = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items() if "quantize" not in name}
    torch.save(without, tmp_path / "kl.ckpt")  # as latent diffusion's
    with pytest.raises(IntegrityError, match=r"VQGAN named as in taming.*quantize\.embedding\.weight is missing"):
        import_checkpoint(tmp_path / "kl.ckpt")
    gumbel = {**without, "quantize.embed.weight": torch.zeros(4, 4), "quantize.proj.weight": torch.zeros(4, 4, 1, 1)}
    torch.save(gumbel, tmp_path / "gumbel.ckpt")
    with pytest.raises(IntegrityError, match="Gumbel"):
        import_checkpoint(tmp_path / "gumbel.ckpt")
    torch.save({"text_model.layers.0.weight": torch.zeros(2, 2)}, tmp_path / "clip.pt")
    with pytest.raises(IntegrityError, match=r"has text_model; tried magicmaster, showo"):
        import_checkpoint(tmp_path / "clip.pt")


def test_what_a_name_or_a_config_says_is_not_read_from_the_cache_of_another(monkeypatch, tmp_path):
    """One file under two names, and beside two configs: the law and the name are those of the call."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copy(FOLDER / "taming_tiny.ckpt", tmp_path / "model.ckpt")
    for text, law in (("src.IBQ.models.ibqgan.IBQ", "inner"), ("taming.models.vqgan.VQModel", "euclidean")):
        (tmp_path / "config.yaml").write_text(f"model:\n  target: {text}\n")
        assert smalti.load(tmp_path / "model.ckpt").config.quantizer.by == law
    (tmp_path / "mine").mkdir()
    own, mine = FOLDER / "maskbit_tiny.bin", tmp_path / "mine" / "given.bin"
    shutil.copy(own, mine)
    for path in (own, mine, own):
        assert smalti.load(path).source.name == str(path)


def test_a_damaged_cache_is_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = smalti.load(FOLDER / "showo_tiny")
    (folder,) = (tmp_path / "smalti" / "tokenizers").iterdir()
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert smalti.load(FOLDER / "showo_tiny").fingerprint == first.fingerprint
    assert Tokenizer.load(folder).fingerprint == first.fingerprint


def test_a_token_set_carries_the_form_of_the_ids_and_one_of_ours_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, form in ((str(FOLDER / "showo_tiny"), {"layout": "flat", "offset": 0, "word": None}), (TINY_IMAGE, None)):
        out = tmp_path / Path(name).name
        smalti.tokenize(name, photos("heldout"), out, size=32, workers=0, device="cpu")
        facts = json.loads((out / "dataset.json").read_text())["tokenizer"]
        assert facts.get("source_ids") == form
        assert ("source_ids" in facts) == (form is not None)
        assert TokenSet(out).tokenizer_info == smalti.load(name).info
