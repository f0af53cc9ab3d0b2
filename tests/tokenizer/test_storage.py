"""Laws of a stored tokenizer: what is loaded is what was saved, bit for bit, or one line says what is wrong."""

import json
import os
import random
import time
from pathlib import Path

import pytest
import torch

import smalti
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.files import FORMAT_VERSION, MANIFEST, fingerprint, load_tensors, save_tensors
from smalti.quantize import DSQConfig, FSQConfig, LFQConfig, QuantizerConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig
from tests import programs

LAYOUT = {"config.json", "model.safetensors", MANIFEST}
QUANTIZERS = [LFQConfig(bits=5), FSQConfig(levels=(8, 5, 5, 5)), DSQConfig(levels=(8, 5, 3))]


def make(quantizer: QuantizerConfig, **fields: object) -> Tokenizer:
    small = {"width": 4, "multipliers": (1, 2), "strides": ((2, 2),), "depth": 1, "decoder_depth": 1, "time_kernel": 3}
    tokenizer = Tokenizer(TokenizerConfig(quantizer=quantizer, **{**small, "middle": 0, **fields}))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.1)
    return tokenizer.eval()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    tokenizer = make(FSQConfig(levels=(8, 5, 5, 5)))
    folder = tmp_path_factory.mktemp("stored") / "tokenizer"
    tokenizer.save(folder)
    return tokenizer, folder


@pytest.fixture
def copy(stored, tmp_path):
    """A copy of a stored tokenizer, to be damaged."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for file in stored[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def refused(folder: Path | str, kind: type[SmaltiError] = IntegrityError) -> str:
    with pytest.raises(SmaltiError) as fault:
        smalti.load(folder)
    assert type(fault.value) is kind, fault.value
    message = str(fault.value)
    assert "\n" not in message
    assert message.startswith((str(folder), str(Path(folder))))
    return message


def edit(folder: Path, change) -> None:
    """Change `config.json` and take the manifest away, as somebody with an editor would."""
    path = folder / "config.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    (folder / MANIFEST).unlink(missing_ok=True)


def reseal(folder: Path) -> None:
    """Give config and weights a fingerprint that fits them: only the strict loading is left to find the fault."""
    config = TokenizerConfig.parse(json.loads((folder / "config.json").read_text())["tokenizer"])
    known = fingerprint(config.essence(), load_tensors(folder / "model.safetensors"))
    edit(folder, lambda about: about.update(fingerprint=known))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: q.kind)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(quantizer, dtype, tmp_path):
    tokenizer = make(quantizer).to(dtype)
    tokenizer.save(tmp_path / "t")
    loaded = smalti.load(tmp_path / "t")
    assert loaded.config == tokenizer.config
    assert loaded.fingerprint == tokenizer.fingerprint
    assert not loaded.training
    weights, back = tokenizer.state_dict(), loaded.state_dict()
    assert weights.keys() == back.keys()
    assert all(back[name].dtype == w.dtype and torch.equal(back[name], w) for name, w in weights.items())
    video = torch.rand(1, 3, 5, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        ids = tokenizer.encode(video)
        assert torch.equal(loaded.encode(video), ids)
        assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))


def test_the_folder_has_the_layout_of_the_hub(stored):
    tokenizer, folder = stored
    assert {p.name for p in folder.iterdir()} == LAYOUT
    about = json.loads((folder / "config.json").read_text())
    assert about["format"] == FORMAT_VERSION
    assert about["smalti"] == smalti.__version__
    assert about["fingerprint"] == tokenizer.fingerprint
    assert TokenizerConfig.parse(about["tokenizer"]) == tokenizer.config
    assert json.loads((folder / MANIFEST).read_text()).keys() == LAYOUT - {MANIFEST}


def test_saving_twice_gives_the_same_bytes_and_refuses_to_replace_unasked(stored, tmp_path):
    tokenizer, folder = stored
    smalti.load(folder).save(tmp_path / "again")
    for name in LAYOUT:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(ConfigError, match="already exists"):
        tokenizer.save(tmp_path / "again")
    make(LFQConfig(bits=3)).save(tmp_path / "again", replace=True)
    assert smalti.load(tmp_path / "again").codebook_size == 8


def test_loading_leaves_the_global_random_numbers_alone_for_the_weights(stored):
    """Two loads at different states of the global generator give one tokenizer: no weight is left to chance."""
    torch.manual_seed(1)
    first = smalti.load(stored[1])
    torch.manual_seed(2)
    assert smalti.load(stored[1]).fingerprint == first.fingerprint == stored[0].fingerprint


def test_one_flipped_bit_of_any_weight_changes_the_fingerprint(stored):
    tokenizer, folder = stored
    known, weights, rng = tokenizer.fingerprint, load_tensors(folder / "model.safetensors"), random.Random(0)
    assert fingerprint(tokenizer.config.essence(), weights) == known
    for name, weight in weights.items():
        bits = weight.clone().view(torch.uint8).reshape(-1)
        bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        flipped = bits.view(weight.dtype).view(weight.shape)
        assert fingerprint(tokenizer.config.essence(), weights | {name: flipped}) != known


@pytest.mark.parametrize(
    "change",
    [
        {"quantizer": FSQConfig(levels=(5, 8, 5, 5))},
        {"quantizer": FSQConfig(levels=(8, 5, 5, 5), temperature=0.5)},
        {"quantizer": DSQConfig(levels=(8, 5, 5, 5))},
        {"norm": "frame"},
        {"start": "zero"},
        {"strides": ((1, 2),)},
        {"head_kernel": 1},
    ],
    ids=str,
)
def test_any_change_of_the_config_changes_the_fingerprint(change, stored):
    tokenizer, _ = stored
    changed = TokenizerConfig(**{**{n: getattr(tokenizer.config, n) for n in TokenizerConfig.model_fields}, **change})
    assert fingerprint(changed.essence(), tokenizer.state_dict()) != tokenizer.fingerprint


class Later(TokenizerConfig):
    """A config as a later version may have it: one field more."""

    quantizer: LFQConfig | FSQConfig | DSQConfig = FSQConfig()
    ripples: int = 0


def test_a_field_that_is_added_later_leaves_fingerprints_as_they_were(stored):
    tokenizer, _ = stored
    now = {name: getattr(tokenizer.config, name) for name in TokenizerConfig.model_fields}
    assert fingerprint(Later(**now).essence(), tokenizer.state_dict()) == tokenizer.fingerprint
    assert fingerprint(Later(**now, ripples=1).essence(), tokenizer.state_dict()) != tokenizer.fingerprint


PLAIN = "da5e56b2fc086a03d7a037f2e9f109961ceb907c7a345bf397aa2e0ee9387d19"
NAMED = "328c8852426a5a5852ea16352da7da12f2a74a8b842d5f67cbdb8cf10b7997c3"
DEFAULTS = {
    **{"quantizer": {"kind": "fsq", "levels": [8, 8, 8, 5, 5, 5], "losses": [], "temperature": 1.0}},
    **{"width": 64, "multipliers": [1, 2, 4], "strides": [[1, 2], [1, 2]], "depth": 2, "decoder_depth": 3, "middle": 2},
    **{"patch": 1, "stem_kernel": 3, "stem_time": None, "code_kernel": 3, "head_kernel": 3, "head_time": None},
    **{"norm": "position", "groups": 32, "final_norm": True, "adaptive": "position", "adaptive_source": "codes"},
    **{"activate_upsample": False, "bias": True, "time_kernel": 1, "past_kernel": "point", "start": "repeat"},
}


def test_fingerprints_of_this_format_stay():
    """These stand in token sets. A default that changes would give two meanings to one fingerprint: it may not."""
    assert fingerprint(TokenizerConfig().essence(), {}) == PLAIN
    named = TokenizerConfig(quantizer=LFQConfig(bits=18), width=96, patch=8, time_kernel=4, strides=((4, 1), (1, 1)))
    assert fingerprint(named.essence(), {"weight": torch.arange(6.0).reshape(2, 3)}) == NAMED
    plain = TokenizerConfig().plain()
    assert DEFAULTS["quantizer"].items() <= plain["quantizer"].items()  # fields that came later are not hashed
    assert {name: plain[name] for name in DEFAULTS} == DEFAULTS | {"quantizer": plain["quantizer"]}


@pytest.mark.parametrize("name", sorted(LAYOUT))
def test_one_flipped_bit_of_any_file_is_found(name, copy):
    rng, file = random.Random(name), copy / name
    content = file.read_bytes()
    for _ in range(25):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        refused(copy)
    file.write_bytes(content)
    smalti.load(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_cut_file_is_found_with_and_without_the_manifest(name, copy):
    content = (copy / name).read_bytes()
    for _ in range(2):
        for length in (0, 1, 9, len(content) // 2, len(content) - 2):
            (copy / name).write_bytes(content[:length])
            assert name in refused(copy)
        (copy / MANIFEST).unlink(missing_ok=True)


def test_a_flipped_weight_is_found_by_the_fingerprint_alone(copy):
    (copy / MANIFEST).unlink()
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "the weights or the config have changed" in refused(copy)


def test_a_config_of_other_levels_is_found(copy):
    edit(copy, lambda about: about["tokenizer"]["quantizer"].update(levels=[5, 8, 5, 5]))
    assert "the weights or the config have changed" in refused(copy)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda about: about.pop("tokenizer"), "not the config of a smalti tokenizer"),
        (lambda about: about.update(format=FORMAT_VERSION + 1, smalti="9.0"), "by smalti 9.0; this is smalti"),
        (lambda about: about.pop("format"), "format None"),
        (lambda about: about.pop("fingerprint"), "the weights or the config have changed"),
        (lambda about: about["tokenizer"].update(widht=3), "did you mean 'width'?"),
        (lambda about: about["tokenizer"].update(width="8"), "width: "),
        (lambda about: about["tokenizer"].update(kind="os.system"), "kind: "),
        (lambda about: about.update(tokenizer=None), "not a config"),
    ],
)
def test_a_config_that_is_not_ours_is_found(change, wanted, copy):
    edit(copy, change)
    assert wanted in refused(copy)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda w: w.pop("encoder.stem.now.weight"), "1 missing (encoder.stem.now.weight)"),
        (lambda w: w.update(extra=torch.zeros(3)), "1 unexpected (extra)"),
        (lambda w: w.update({"encoder.stem.now.bias": torch.zeros(9)}), "1 of another shape (encoder.stem.now.bias)"),
        (lambda w: w.update({"encoder.stem.now.bias": torch.zeros(4).half()}), "1 of another type (encoder.stem.now.b"),
        (lambda w: w.clear(), "missing"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_counted_and_named(change, wanted, copy):
    weights = load_tensors(copy / "model.safetensors")
    change(weights)
    save_tensors(copy / "model.safetensors", weights)
    reseal(copy)
    assert wanted in refused(copy)


def test_a_pointer_of_git_lfs_is_told_apart(copy):
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert "run `git lfs pull`" in refused(copy)


def test_files_beside_the_tokenizer_do_no_harm(copy):
    (copy / "README.md").write_text("# A model card")
    assert smalti.load(copy).codebook_size == 1000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_an_input_error(name, copy):
    (copy / name).unlink()
    assert name in refused(copy, InputError)


def test_a_folder_that_is_not_there_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "absent", Path("absent"), str(tmp_path / "absent"), "./absent", "../absent/there"):
        assert "no such file or folder" in refused(name, InputError)
    for name in ("a/b/c", "what is this?", "-x/y"):
        assert "neither a file, a folder nor the name of a hub repository" in refused(name, InputError)
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", IntegrityError)  # it may be a checkpoint of another project, and is none


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=str)
def test_a_name_of_the_hub_without_network_is_told_in_seconds(environment, tmp_path):
    program = (
        "import sys, time, smalti\nfrom smalti.errors import SmaltiError\nimport smalti.tokenizer, huggingface_hub\n"
        "began = time.perf_counter()\n"
        "try:\n    smalti.load('someone/something')\n"
        "except SmaltiError as error:\n    print(time.perf_counter() - began, type(error).__name__, error)\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {**kept, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    began = time.perf_counter()
    found = programs.run("-c", program, env=settings, timeout=60)
    assert time.perf_counter() - began < 60
    assert found.returncode == 0, found.stderr
    seconds, kind, message = found.stdout.strip().split(" ", 2)
    assert "\n" not in message
    assert kind == MachineError.__name__
    fault = "was not asked, because" if "HF_HUB_OFFLINE" in environment else "could not be reached ("
    assert message.startswith(f"someone/something: no such folder here, and the hub {fault}")
    assert float(seconds) < 5
