"""The notebook of the first tokens: valid, without outputs, and each cell runs in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_tokens.ipynb"


def cells():
    """The code of each code cell."""
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_the_notebook_is_of_format_4_and_has_no_outputs():
    content = json.loads(NOTEBOOK.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell.get("outputs", []) == []
    for code in cells():
        compile(code, NOTEBOOK.name, "exec")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom():
    code = "import matplotlib; matplotlib.use('agg')\n" + "\n".join(cells())
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "equal ids: 1.0" in ended.stdout
