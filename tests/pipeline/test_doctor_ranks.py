"""`smalti doctor RECIPE` under torchrun: one table, and one line where processes disagree or one cannot go on."""

import os
import shutil
import subprocess
import sys

import pytest

from smalti.data import bundled

pytestmark = pytest.mark.slow

RANK = """
import os, sys
from smalti.cli.main import run
rank = int(os.environ["RANK"])
os.chdir(sys.argv[1 + rank])
sys.exit(run(["doctor", "tiny", "--tiny", "--device", "cpu", *sys.argv[3].replace("RANK", str(rank)).split()]))
"""
DATA = "--set data.path=photos --set validation=null"


def doctor(tmp_path, options, counts=(3, 3)):
    """Run it in two processes, each in a folder of its own with so many photos; (code, standard output, errors)."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    nodes = [tmp_path / name for name in ("node-0", "node-1")]
    for node, count in zip(nodes, counts, strict=True):
        (node / "photos").mkdir(parents=True)
        for photo in sorted(bundled.photos("heldout").glob("*.jpg"))[:count]:
            shutil.copy(photo, node / "photos")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [*launch, str(script), *map(str, nodes), f"{DATA} {options}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


def test_two_processes_that_agree_give_one_table(tmp_path):
    code, said, errors = doctor(tmp_path, "")
    assert code == 0, errors[-3000:]
    assert said.count("2 processes agree on settings and data") == 1
    names = [line[8:28].strip() for line in said.splitlines() if not line.startswith(" ")]
    assert len(names) == len(set(names)) > 8
    assert "broken" not in said


@pytest.mark.parametrize(
    ("options", "counts", "cause"),
    [
        ("--set seed=RANK", (3, 3), "the 2 processes have different settings"),
        ("--set optimizer.lr=1e-RANK", (3, 3), "the 2 processes have different settings"),
        ("", (3, 2), "the 2 processes have different lists of data"),
        ("", (3, 0), "photos: no file ends in"),
        ("", (0, 3), "photos: no file ends in"),
    ],
)
def test_processes_that_disagree_or_lack_their_data_say_so_once(tmp_path, options, counts, cause):
    code, said, errors = doctor(tmp_path, options, counts)
    assert code != 0
    both = said + errors
    assert both.count(cause) == 1, both[-3000:]
    assert "agree on settings" not in both
    assert "Traceback" not in said + errors.split("ChildFailedError")[0].rpartition("Traceback")[0]
    assert "internal error" not in both
