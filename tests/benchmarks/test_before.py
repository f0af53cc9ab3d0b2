"""The comparison with the first version: its processes, and that it refuses other ids."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_calls_are_made_in_turns_and_other_ids_are_refused(tmp_path, changed):
    """The version at hand in the place of the first; once with a line that changes its ids."""
    first = tmp_path / "src"
    first.mkdir()
    (first / "smalti").symlink_to(ROOT / "src" / "smalti")
    if changed:
        (first / "sitecustomize.py").write_text(
            "import smalti.tokenizer.tokenizer as t\n"
            "plain = t.Tokenizer.encode\n"
            "t.Tokenizer.encode = lambda *args, **more: plain(*args, **more) + 1\n"
        )
    command = [sys.executable, "-m", "benchmarks.before", tmp_path, "--cases", "image 128: encode"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if changed:
        assert done.returncode == 1
        assert done.stderr.strip() == "image 128: encode: ids are not those of the first version"
        return
    row = json.loads(done.stdout)
    assert row["what"] == "image 128: encode"
    assert row["float32"] > 0
    assert row["bfloat16"] > 0
    assert row["first_ms"] > 0
