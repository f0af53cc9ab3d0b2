"""One grammar of names: every door gives the same tokenizer for a name, or one line that says which names there are."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import smalti
from smalti.errors import ConfigError, InputError, SmaltiError
from smalti.families import import_checkpoint
from smalti.families.names import FORMS, TINY_IMAGE, HubName, find_tokenizer, full_name
from smalti.tokenizer import Tokenizer, TokenizerConfig
from tests import programs
from tests.goldens.rule import FOLDER

SMALL = TokenizerConfig(width=4, multipliers=(1, 2), strides=((1, 2),), depth=1, decoder_depth=1, middle=0)
FOREIGN = f"{FOLDER}/maskgit_tiny.bin:lookup=euclidean"
NAMES = ("tokenizer", "run", TINY_IMAGE, "owner/name", FOREIGN)

DOORS = """
import contextlib, io, json, sys, warnings
warnings.simplefilter("error", UserWarning)
from pathlib import Path
import torch
import smalti
from smalti.cli.main import main
from smalti.codec.codec import read_info
from smalti.data.bundled import photos
from smalti.recipes import find
from smalti.tokens.reader import TokenSet
from smalti.training.distributed import World
from smalti.training.tokenizer_state import start_tokenizer

def verb(*words):
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main(list(map(str, words)))
    except SystemExit as end:
        assert not end.code, words
    return out.getvalue()

def doors(name, scratch):
    photo = photos("heldout") / "owl.jpg"
    yield "load", smalti.load(name).fingerprint
    yield "info", json.loads(verb("info", name, "--json"))["fingerprint"]
    verb("compress", photo, scratch / "a.smt", "--tokenizer", name, "--device", "cpu")
    yield "compress", read_info(scratch / "a.smt").head.tokenizer
    verb("tokenize", name, photo, "--out", scratch / "set", "--size", "32", "--workers", "0", "--device", "cpu")
    yield "tokenize", TokenSet(scratch / "set").tokenizer_info.fingerprint
    verb("decode", scratch / "set", "--out", scratch / "decoded", "--device", "cpu")  # by the name in the set
    config = find("tiny", tiny=True).override([f"init={name}", "lpips=null"])
    config = config.replace({"tokenizer": smalti.load(name).config})
    yield "init", start_tokenizer(config, World(0, 1, torch.device("cpu"))).tokenizer.fingerprint
    done = json.loads(verb("reconstruct", name, photo, "--out", scratch / "out", "--json", "--device", "cpu"))["done"]
    yield "reconstruct", done[0]["psnr"]

print(json.dumps({name: dict(doors(name, Path(f"scratch{i}"))) for i, name in enumerate(sys.argv[1:])}))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder with a tokenizer, a run with two checkpoints, and a hub cache that has `owner/name`."""
    for seed, folder in enumerate(
        (
            "tokenizer",
            "run/step-00000002/tokenizer",
            "run/step-00000010/tokenizer",
            "cache/models--owner--name/snapshots/c0",
        )
    ):
        torch.manual_seed(seed)
        Tokenizer(SMALL).save(tmp_path / folder)
    refs = tmp_path / "cache" / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("c0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_door_gives_one_answer_for_a_name(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "converted"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(home / "converted")
    ended = programs.run("-c", DOORS, *NAMES, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout)
    fingerprints = {  # a compressed file has the first half
        name: {answer[:32] for answer in doors.values() if isinstance(answer, str)} for name, doors in answers.items()
    }
    assert {name: len(answers) for name, answers in fingerprints.items()} == dict.fromkeys(NAMES, 1)
    by_folder = {
        "tokenizer": home / "tokenizer",
        "run": home / "run" / "step-00000010" / "tokenizer",
        "owner/name": home / "cache" / "models--owner--name" / "snapshots" / "c0",
    }
    for name, folder in by_folder.items():
        assert fingerprints[name] == {Tokenizer.load(folder).fingerprint[:32]}
    assert fingerprints[FOREIGN] == {smalti.load(FOREIGN).fingerprint[:32]}
    assert fingerprints[TINY_IMAGE] == {smalti.load(TINY_IMAGE).fingerprint[:32]}


def test_a_finished_tokenizer_comes_before_checkpoints_and_a_folder_before_the_hub(home):
    assert find_tokenizer("run") == Path("run/step-00000010/tokenizer")
    shutil.copytree("tokenizer", "run/tokenizer")
    assert find_tokenizer("run") == find_tokenizer(Path("run")) == Path("run/tokenizer")
    assert find_tokenizer("owner/name") == find_tokenizer("hf:owner/name") == HubName("owner/name", None)
    shutil.copytree("tokenizer", "owner/name")
    assert find_tokenizer("owner/name") == Path("owner/name")
    assert find_tokenizer("hf:owner/name") == HubName("owner/name", None)


def test_full_names_hold_in_every_folder(home):
    names = {"tokenizer": str(home / "tokenizer"), "run": str(home / "run/step-00000010/tokenizer")}
    names |= {TINY_IMAGE: TINY_IMAGE, "owner/name": "hf:owner/name", "owner/name@v1": "hf:owner/name@v1"}
    assert {name: full_name(name) for name in names} == names
    assert {name: full_name(name) for name in names.values()} == {name: name for name in names.values()}


ABSENT = ["absent", "./absent", "/absent/there", "a/b/c", "what is this?", "hf:absent", "runs/absent.ckpt"]


@pytest.mark.parametrize("name", ABSENT)
def test_a_name_of_nothing_is_one_line_with_the_forms_that_names_have(name, home):
    with pytest.raises(InputError) as error:
        smalti.load(name)
    assert str(error.value).startswith(f"{name}: ")
    assert FORMS in str(error.value)
    assert "\n" not in str(error.value)


def test_a_revision_is_that_of_a_hub_repository(home):
    assert find_tokenizer("owner/name@refs/pr/1") == HubName("owner/name", "refs/pr/1")
    for name in ("tokenizer", TINY_IMAGE, "owner/name@other"):
        with pytest.raises(ConfigError, match="revision v1"):
            smalti.load(name, revision="v1")


def test_device_and_number_type_are_as_asked(home):
    tokenizer = smalti.load("tokenizer", device="cpu", dtype=torch.bfloat16)
    assert (tokenizer.dtype, tokenizer.device.type, tokenizer.training) == (torch.bfloat16, "cpu", False)
    assert smalti.load("tokenizer").dtype == torch.float32
    assert repr(tokenizer) == "image tokenizer: 1x2x2 pixels a token, 64,000 codes, 6,405 parameters, bfloat16 on cpu"


def test_a_number_type_without_convolutions_is_refused(home):
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.complex64):
        with pytest.raises(ConfigError, match=r"no type of weights; give torch.float32"):
            smalti.load("tokenizer", dtype=dtype)


def test_an_option_has_one_value(home):
    twice = [f"{FOREIGN}:lookup=euclidean,lookup=inner", f"{FOREIGN}:pixels=unit,lookup=inner,pixels=unit"]
    for name in twice:
        with pytest.raises(ConfigError, match="twice"):
            smalti.load(name)
    for load in (smalti.load, import_checkpoint):
        with pytest.raises(ConfigError, match=r"lookup: inner is given beside .*, which says euclidean; give it once"):
            load(f"{FOREIGN}:lookup=euclidean", lookup="inner")


@pytest.mark.parametrize("name", ["a" * 300, "owner/" + "a" * 300, "a" * 300 + ".ckpt:lookup=inner"])
def test_a_name_that_no_file_can_have_is_one_line(name, home):
    for kind in (str, Path):
        with pytest.raises(SmaltiError):
            smalti.load(kind(name))
