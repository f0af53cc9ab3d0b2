"""The zoo: every row is what its network is, and its line loads it."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import smalti
from smalti.cli.main import run
from smalti.data.bundled import photos
from smalti.errors import IntegrityError
from smalti.families import import_checkpoint, magicmaster, zoo
from smalti.families.checkpoint import FAMILIES
from smalti.families.cosmos import video_strides
from smalti.families.links import assemble
from smalti.quantize import FSQConfig, LFQConfig
from smalti.tokenizer import CosmosConfig, OpenMagvit2Config, Tokenizer, VidTokConfig
from tests.families.golden import listed, read_shapes
from tests.goldens.rule import FOLDER
from tests.rules.tree import ROOT

AMUSED = {"_class_name": "VQModel", "norm_num_groups": 32}
FULL = {
    "showlab/magvitv2": ("showo_magvitv2_full", {}),
    "TencentARC/IBQ-Tokenizer-262144": ("ibq_262144_full", {"lookup": "inner"}),
    "BAAI/Emu3.5-VisionTokenizer": ("emu3p5_ibq_full", {"lookup": "inner"}),
    "vqgan_imagenet_f16_1024.ckpt:lookup=euclidean": ("taming_f16_1024_full", {"lookup": "euclidean"}),
    "FoundationVision/LlamaGen": ("llamagen_vq16_full", {}),
    "FoundationVision/LlamaGen/vq_ds8_c2i.pt": ("llamagen_vq8_full", {}),
    "deepseek-ai/Janus-Pro-1B": ("llamagen_vq16_full", {}),
    "amused/amused-256": (
        "amused_vqvae_full",
        {"config": {"_class_name": "VQModel", "norm_num_groups": 32}, "pixels": "unit"},
    ),
    "fun-research/TiTok": ("maskgit_vqgan_1024_full", {}),
    "markweber/maskbit_tokenizer_14bit": ("maskbit_14bit_full", {}),
}
"""Listings of the tensors of published files, and options of their import."""


def config_of(row):
    """The config of a row's network at full size."""
    if row.name in FULL:
        listing, options = FULL[row.name]
        return read_shapes(listed(listing), **options)[1].config
    if "IBQ" in row.name:
        shapes = {**listed("ibq_262144_full"), "quantize.embedding.weight": (row.codes, 256)}
        return read_shapes(shapes, lookup="inner")[1].config
    if row.family == "maskbit":
        bits = row.codes.bit_length() - 1
        shapes = {name: tuple(bits if n == 14 else n for n in s) for name, s in listed("maskbit_14bit_full").items()}
        return read_shapes({**shapes, "quantize.codebook": (1 << bits, bits)})[1].config
    if row.family == "magicmaster":
        shapes = listed("magicmaster_3d" if row.strides[0] > 1 else "magicmaster_2d")
        return magicmaster.recognise_generator(shapes, (8, 8, 8, 5, 5, 5), "here").config
    if row.family == "open-magvit2":
        bits = row.codes.bit_length() - 1
        small = {"multipliers": (1, 2, 2, 4)} if row.strides[1] == 8 else {}
        video = {"time_kernel": 3, "time_strides": (1, 2, 2)} if row.strides[0] > 1 else {}
        return OpenMagvit2Config(quantizer=LFQConfig(bits=bits), **small, **video)
    if row.family == "vidtok":
        channels = next(n for n in range(1, 9) if 8**n == row.codes)
        changes = {(4, 16, 16): {"multipliers": (1, 2, 4, 4, 4), "time_down": (2, 3)}}
        changes |= {(8, 8, 8): {"time_down": (0, 1, 2), "time_up": (1, 2, 3)}}
        later = {"start": "repeat", "interpolation": "linear"} if "v1_1" in row.name else {}
        later |= {"start": "around"} if "noncausal" in row.name else {}
        quantizer = FSQConfig(levels=(8,) * channels)
        return VidTokConfig(quantizer=quantizer, **changes.get(row.strides, {}), **later)
    if row.family == "cosmos":
        if row.strides[0] == 1:
            strides = ((1, 2), (1, 2 if row.strides[1] == 16 else 1))
            return CosmosConfig(strides=strides, decoder_strides=strides)
        down, up = video_strides(row.strides, 4, 3)
        return CosmosConfig(time_kernel=3, latent=16, strides=down, decoder_strides=up)
    raise AssertionError(f"{row.name}: nothing here says its config")


ROWS = {row.name: row for row in zoo()}


@pytest.mark.parametrize("name", ROWS)
def test_parameters_strides_codes_and_labels_are_those_of_the_networks(name):
    row = ROWS[name]
    config = config_of(row)
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
    assert sum(p.numel() for p in tokenizer.parameters()) == row.parameters
    assert (tokenizer.strides, tokenizer.codebook_size) == (row.strides, row.codes)
    assert (tokenizer.is_causal, tokenizer.is_tile_exact) == (row.is_causal, row.is_tile_exact)
    assert ("late" in row.streams) == (tokenizer.lookahead > 0)
    assert row.streams.startswith("no") == (not row.is_causal)


def test_every_family_has_a_row_and_every_row_its_golden_and_source():
    assert {row.family for row in ROWS.values()} == {family.name for family in FAMILIES}
    for row in ROWS.values():
        assert (FOLDER / f"{row.golden}.safetensors").is_file()
        assert bool(row.score) == bool(row.source)
        assert row.licence


def test_licences_and_names_are_those_of_the_families():
    published = {row.repository: row for family in FAMILIES for row in family.published}
    for row in ROWS.values():
        known = published.get("/".join(row.name.split("/")[:2]))
        assert known is None or known.licence == row.licence, row.name


def test_the_ten_lines_of_the_tutorial_run(tmp_path, monkeypatch):
    """With the small weights of the golden in place of the published ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    block = re.search(r"## Show-o's tokenizer in ten lines\n\n```py\n(.*?)```", page, re.DOTALL)[1]
    photo = min(photos("heldout").rglob("*.*"))
    Image.open(photo).resize((46, 31)).save("photo.jpg")  # its attention is over a quarter of all pixels
    there = {}
    exec(block.replace('"showlab/magvitv2"', repr(str(FOLDER / "showo_tiny"))), there)
    assert there["pixels"].shape == there["image"].shape
    assert there["row"].shape == (1, there["ids"].numel())
    assert json.dumps(there["tokenizer"].source.plain())
    assert smalti.load(FOLDER / "showo_tiny").fingerprint == there["tokenizer"].fingerprint


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(tmp_path, monkeypatch, capsys):
    """With the small weights of the golden in place of the published ones, in a folder with photographs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    (tmp_path / "photos").mkdir()
    for i, photo in enumerate(sorted(photos("heldout").rglob("*.*"))[:2]):
        Image.open(photo).resize((64, 48)).save(tmp_path / "photos" / f"{i}.jpg")
    shutil.copy(tmp_path / "photos" / "0.jpg", "photo.jpg")
    lines = re.search(r"The same from the command line:\n\n```sh\n(.*?)```", page, re.DOTALL)[1].splitlines()
    assert len(lines) >= 4
    for line in lines:
        words = line.replace("showlab/magvitv2", str(FOLDER / "showo_tiny")).split()
        more = ["--size", "32", "--workers", "0"] if words[1] == "tokenize" else []
        more += ["--size", "32"] if words[1] == "eval" else []
        assert run([*words[1:], *more]) == 0, (line, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("listing", "stray", "options"),
    [
        ("om2_image128L_w32_32px", "encoder.mid_block.999999999.norm1.weight", {}),
        ("vidtok_v10_fsq488_w32_t9_32px", "encoder.down.0.block.999999999.norm1.norm.weight", {"version": "1.0"}),
        ("cosmos_di8x8_w32_64px", "encoder.down.0.block.999999999.norm1.weight", {}),
    ],
)
def test_a_name_that_claims_a_billion_blocks_is_refused_at_once(listing, stray, options):
    shapes = {**listed(listing), stray: (32,)}
    model = read_shapes(shapes, **options)[1]
    assert stray not in {link.source for link in model.links}
    with pytest.raises(IntegrityError, match="tensors are missing"):
        assemble(Tokenizer(model.config), model.links, {key: torch.empty(shape) for key, shape in shapes.items()}, "x")


def test_a_shape_that_claims_more_memory_than_there_is_is_refused_before_it_is_taken(tmp_path):
    """One tensor of 60,000 x 1 names convolutions of 60,000 x 60,000 x 9: 130 GB."""
    tensors = {key: torch.zeros(shape) for key, shape in listed("om2_image128L_w32_32px").items()}
    tensors["encoder.down.1.block.0.conv1.weight"] = torch.zeros(60_000, 1, 1, 1)
    save_file(tensors, tmp_path / "wide.safetensors")
    with pytest.raises(IntegrityError, match="its shapes name a network of"):
        import_checkpoint(tmp_path / "wide.safetensors")
