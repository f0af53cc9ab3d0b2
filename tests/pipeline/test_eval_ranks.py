"""`smalti eval` under torchrun: the report of one process, every clip once, faults told once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from smalti.data import bundled
from smalti.metrics.weights import NETWORKS
from smalti.tokenizer import Tokenizer, TokenizerConfig
from tests.goldens.rule import rule

SMALL = {"width": 8, "multipliers": (1, 2), "depth": 1, "decoder_depth": 1, "middle": 0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("video") / "tokenizer"
    Tokenizer(TokenizerConfig(**SMALL, strides=((2, 2),), time_kernel=2)).save(folder)
    return folder


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file({name: rule(name, shape) for name, shape in NETWORKS["i3d"].shapes.items()}, path)
    return path


def evaluate(ranks, *arguments):
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *launch, "smalti", "eval", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "limit"), [(2, 3), (3, 2)])
def test_ranks_give_the_report_and_the_sheet_of_one_process(tokenizer, i3d, tmp_path, ranks, limit):
    clips = ("--data", bundled.videos("heldout"), "--size", 32, "--frames", 9, "--limit", limit)
    command = (tokenizer, *clips, "--protocol", "smalti-fvd", "--features", i3d)
    found = {}
    for world in (1, ranks):
        ended = evaluate(world, *command, "--out", tmp_path / str(world), "--statistics", tmp_path / f"kept-{world}")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("protocol smalti-fvd") == 1
        found[world] = report_of(tmp_path / str(world))
    one, many = (report.pop("frechet") for report in found.values())
    assert found[ranks] == found[1]
    assert found[1]["clips"] == one["outputs"] == many["outputs"] == limit
    assert many["distance"] == pytest.approx(one["distance"], rel=1e-8)
    assert (tmp_path / "1" / "sheet.png").read_bytes() == (tmp_path / str(ranks) / "sheet.png").read_bytes()
    # What the ranks kept serves one process.
    again = evaluate(1, *command, "--out", tmp_path / "again", "--statistics", tmp_path / f"kept-{ranks}")
    assert again.returncode == 0
    assert report_of(tmp_path / "again")["frechet"]["distance"] == pytest.approx(one["distance"], rel=1e-8)


@pytest.mark.slow
def test_a_bad_file_is_counted_once_and_faults_are_told_once(tokenizer, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(bundled.photos("heldout").iterdir())[:3]:
        shutil.copy(path, folder)
    (folder / "cut.jpg").write_bytes(path.read_bytes()[:5000])
    for world in (1, 2):
        ended = evaluate(world, tokenizer, "--data", folder, "--size", 32, "--out", tmp_path / str(world))
        assert ended.returncode != 0
        assert ended.stderr.count("left out: ") == 1
        assert "error: 1 of 4 files" in ended.stderr
    assert report_of(tmp_path / "1") == report_of(tmp_path / "2")
    missing = evaluate(2, tokenizer, "--data", folder, "--protocol", "smalti-fid", "--features", tmp_path / "none.pth")
    assert missing.returncode != 0
    assert missing.stderr.count("none.pth: no such file") == 1
