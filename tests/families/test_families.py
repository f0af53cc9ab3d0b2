"""Tokenizers of other projects: latents, ids, codes and pixels of their own code (tests/goldens), and their files."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

import smalti
from smalti.errors import IntegrityError
from smalti.families import import_checkpoint
from smalti.tokenizer import Tokenizer
from tests.families.golden import golden_model, listed, read_shapes
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


ROWS = [Row("showo_magvitv2_w32_64x96", "showo_magvitv2_w32", "showo", turned=True)]
FILES = [File("showo_tiny", "showo_tiny", "showo")]
FULL = [Full("showo_magvitv2_full", 95_493_513, constant=8192 * 13 + 13)]


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
    tokenizer, family, _, golden = golden_model(row.golden, row.keys, **row.options)
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
    _, model = read_shapes(shapes, **row.options)
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
    assert len(told) == len(set(told))
    assert report.missing == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.golden)
def test_a_half_of_a_checkpoint_is_refused_by_the_name_of_what_is_missing(row, tmp_path):
    _, family, model, _ = golden_model(row.golden, row.keys, **row.options)
    shapes = listed(row.keys)
    for gone in (model.links[3].source, model.links[-1].source):
        half = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items() if name != gone}
        torch.save(half, tmp_path / "half.pt")
        with pytest.raises(IntegrityError) as error:
            import_checkpoint(tmp_path / "half.pt", **row.options)
        assert family.title in str(error.value)
        assert gone in str(error.value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.golden)
def test_a_newer_layout_is_refused_and_another_constant_too(row, tmp_path):
    _, _, model, _ = golden_model(row.golden, row.keys, **row.options)
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in listed(row.keys).items()} | dict(model.constants)
    torch.save({**tensors, "encoder.conv_in.gate": torch.zeros(1)}, tmp_path / "newer.pt")
    with pytest.raises(IntegrityError, match=r"encoder\.conv_in\.gate.*a newer layout"):
        import_checkpoint(tmp_path / "newer.pt", **row.options)
    for name, constant in model.constants.items():
        torch.save({**tensors, name: constant + 1}, tmp_path / "other.pt")
        with pytest.raises(IntegrityError, match="other values"):
            import_checkpoint(tmp_path / "other.pt", **row.options)
