"""Every benchmark can be started, and the small forms of those of speed run to their ends."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks import coder
from benchmarks.__main__ import main
from benchmarks.measure import TINY

HERE = Path(benchmarks.__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_imported_without_the_packages_that_it_compares_with(name):
    importlib.import_module(f"benchmarks.{name}")


def test_a_benchmark_that_is_not_there_is_one_line(capsys):
    assert main(["speeed"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_small_form_of_the_coder_codes_each_model_in_fewer_bits_than_the_one_before(monkeypatch):
    monkeypatch.setenv(TINY, "1")
    _, rows = coder.measure()
    bits = [row["bits a token"] for row in rows]
    assert [row["model"] for row in rows] == ["uniform", "static", "adaptive", "prior"]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] == pytest.approx(math.log2(64_000))
    assert all(row[f"{way}, tokens/s"] > 0 for row in rows for way in ("encode", "decode"))


@pytest.mark.slow
def test_the_small_form_of_the_table_of_speed_has_a_share_for_each_part():
    # A process of its own: types are not checked in it, and a graph can be traced for the other runtimes.
    program = "import json; from benchmarks import speed; print(json.dumps(speed.measure()))"
    command, environment = [sys.executable, "-c", program], {**os.environ, TINY: "1"}
    ended = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    note, rows = json.loads(ended.stdout.splitlines()[-1])
    assert "float32" in note
    for part in (
        "image 128 x 128: encode",
        "stream 32 x 32, 4 frames: decode",
        "MagicMaster 2d",
        "MagicMaster 3d",
        "tokenize 5 frames",
        "masked",
        "autoreg",
        "step",
    ):
        found = [row for row in rows if part in row["what"]]
        assert found, part
        assert all(0 < row["share"] < 4 and row["ms"] > 0 for row in found), part
    beside = [row["what"] for row in rows if row["ONNX Runtime"] is not None]
    assert beside == ["image 128 x 128: encode", "image 128 x 128: decode"]
