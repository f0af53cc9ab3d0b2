"""Small true tokenizers on disk, small true media, and the command line as a function."""

import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch

from smalti.cli.main import run
from smalti.data import write_video
from smalti.data.bundled import photos
from smalti.tokenizer import Tokenizer, TokenizerConfig

SMALL = {"width": 8, "multipliers": (1, 2), "depth": 1, "decoder_depth": 1, "middle": 0}
FPS = 24000 / 1001


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def smalti(capsys):
    """Run a command in this process: `smalti("info", folder)`."""

    def command(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return command


def save(folder, **config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Tokenizer(TokenizerConfig(**SMALL, **config)).save(folder)
    return folder


@pytest.fixture(scope="session")
def image_tokenizer(tmp_path_factory):
    return save(tmp_path_factory.mktemp("image") / "tokenizer", strides=((1, 2),))


@pytest.fixture(scope="session")
def video_tokenizer(tmp_path_factory):
    return save(tmp_path_factory.mktemp("video") / "tokenizer", strides=((2, 2),), time_kernel=2)


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory):
    """Not causal."""
    return save(tmp_path_factory.mktemp("clip") / "tokenizer", strides=((2, 2),), time_kernel=2, norm="clip")


def moving(frames, height, width):
    """A bright square that travels over a ramp."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    for i in range(frames):
        video[i, 4:14, i : i + 10] = (255, 200, 40)
    return video


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """A video of 24 frames (no legal length), 32 x 46 pixels, 23.976 per second."""
    path = tmp_path_factory.mktemp("film") / "square.mp4"
    write_video(path, list(moving(24, 32, 46)), FPS)
    return path


@pytest.fixture
def pictures(tmp_path):
    """A folder of two good pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for source in sorted(photos("heldout").iterdir())[:2]:
        shutil.copy(source, folder)
    return folder


@pytest.fixture
def mixed(pictures):
    """Two good pictures, and one that was cut in the middle."""
    good = sorted(pictures.iterdir())[0]
    (pictures / "cut.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    return pictures


def assert_one_line(ended, code, *parts):
    """The contract of every error: a code, one line on stderr that has these parts, nothing on stdout."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert len(ended.err) <= 420
    for part in parts:
        assert str(part) in ended.err
