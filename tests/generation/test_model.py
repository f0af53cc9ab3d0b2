"""A generator's folder: what is written is read, and nothing else."""

import json

import pytest
import torch

from smalti.errors import ConfigError, IntegrityError
from smalti.generation import AutoregressiveConfig, Generator, MaskedConfig, Origin

ORIGIN = Origin(tokenizer="a" * 64, strides=(4, 8, 8), classes=("cat", "dog"), fps=8.0)
SMALL = {"levels": (8, 5, 5), "grid": (2, 2, 3), "classes": 2, "width": 16, "depth": 1, "heads": 2}


@pytest.fixture(params=[MaskedConfig, AutoregressiveConfig], ids=["masked", "autoregressive"])
def generator(request):
    torch.manual_seed(0)
    return Generator(request.param(**SMALL).build(), ORIGIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_generator_is_read_as_it_was_written(generator, dtype, tmp_path):
    generator.model.to(dtype)
    generator.save(tmp_path / "g")
    again = Generator.load(tmp_path / "g")
    assert again.origin == ORIGIN
    assert again.model.config == generator.model.config
    assert again.fingerprint == generator.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), generator.model.parameters(), strict=True))
    assert again.size == (5, 16, 24)


def test_any_changed_byte_is_an_error(generator, tmp_path):
    generator.save(tmp_path / "g")
    for name in ("config.json", "model.safetensors"):
        data = (tmp_path / "g" / name).read_bytes()
        (tmp_path / "g" / name).write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        with pytest.raises(IntegrityError):
            Generator.load(tmp_path / "g")
        (tmp_path / "g" / name).write_bytes(data)


def test_another_origin_is_an_error_without_a_manifest_too(generator, tmp_path):
    generator.save(tmp_path / "g")
    (tmp_path / "g" / "manifest.json").unlink()
    about = json.loads((tmp_path / "g" / "config.json").read_text())
    about["origin"]["tokenizer"] = "b" * 64
    (tmp_path / "g" / "config.json").write_text(json.dumps(about))
    with pytest.raises(IntegrityError, match="have changed"):
        Generator.load(tmp_path / "g")


def test_a_tokenizer_folder_is_no_generator(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1, "tokenizer": {}}')
    with pytest.raises(IntegrityError, match="not the config of a smalti generator"):
        Generator.load(tmp_path)


def test_a_foreign_tokenizer_is_refused():
    ORIGIN.check("a" * 64, "g")
    with pytest.raises(IntegrityError, match="mean nothing"):
        ORIGIN.check("b" * 64, "g")


def test_classes_are_found_by_name_and_number():
    assert [ORIGIN.label(name, 2) for name in ("cat", "dog", "0", "1")] == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="0 to 1; did you mean 'dog'"):
        ORIGIN.label("dogs", 2)
    with pytest.raises(ConfigError, match="0 to 1"):
        ORIGIN.label("2", 2)
    with pytest.raises(ConfigError, match="without any"):
        ORIGIN.label("0", 0)
