"""A rank that dies, stops, is slow or raises ends the run within the time that is set, and the cause is told once."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smalti.files import sha256
from smalti.model_folder import checkpoints

pytestmark = pytest.mark.slow

RANK = """
import os, signal, sys, time
from pathlib import Path
from smalti.cli.main import explain
from smalti.errors import InputError
from smalti.pipeline.train import train
from smalti.text import say
from smalti.recipes import find

out, fault = Path(sys.argv[1]), sys.argv[2]
settings = ["batch_size=2", "steps=6", "save_every=2", "eval_every=1000", "sample_every=1000", "data.size=32",
            "validation=null", "tokenizer.width=8", "lpips=null", "gan=null", "rank_timeout=20",
            "weights={l2: 1.0, batch_entropy: 0.1}"]
first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

def misbehave(done, total=None, note=""):
    if done != 3 or os.environ["RANK"] != "1" or not first:
        return
    Path(f"{out}.pid").write_text(str(os.getpid()))
    if fault == "raise":
        raise InputError("photo.jpg: is no photograph")
    if fault == "slow":
        time.sleep(200)
    if fault in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getpid(), getattr(signal, fault))

try:
    train(find("tiny", tiny=True).override(settings), out, device="cpu", progress=misbehave)
except Exception as error:
    failure = explain(error)
    if str(error):
        say(f"SAID {failure.line}")
    sys.exit(failure.code)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run_ranks(tmp_path: Path, fault: str, *options: str) -> tuple[int, str, float]:
    """The code of torchrun, what all said, and the seconds from the fault to its end."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [*TORCHRUN, *options, str(script), str(tmp_path / "run"), fault],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    fault_file = tmp_path / "run.pid"
    return done.returncode, done.stderr, time.time() - fault_file.stat().st_mtime if fault_file.exists() else 0.0


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raise", "error: photo.jpg: is no photograph"),
        ("SIGKILL", "error: rank 1 of 2 has died or did not answer for 20 s"),
        ("SIGSTOP", "error: rank 1 of 2 has died or did not answer for 20 s"),
        ("slow", "error: rank 1 of 2 has died or did not answer for 20 s"),
    ],
)
def test_a_bad_rank_ends_the_run_in_time_and_its_cause_is_told_once(tmp_path, fault, cause):
    code, said, seconds = run_ranks(tmp_path, fault)
    assert code != 0
    told = re.findall(r"^SAID (.*)$", said, re.MULTILINE)
    assert len(told) == 1, said[-3000:]
    assert told[0].startswith(cause)
    assert "internal error" not in said
    assert "FutureWarning" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "run.pid").read_text()), 0)
    print(f"{fault}: {seconds:.0f} s")
    assert seconds < 60


def test_torchrun_starts_it_again_and_it_goes_on_exactly(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    code, said, _ = run_ranks(tmp_path / "a", "none")
    assert code == 0, said[-3000:]
    code, said, _ = run_ranks(tmp_path / "b", "SIGKILL", "--max-restarts", "1")
    assert code == 0, said[-3000:]
    quiet, restarted = (checkpoints(tmp_path / name / "run")[-1] for name in "ab")
    assert quiet.name == restarted.name == "step-00000006"
    for path in quiet.rglob("*.safetensors"):
        assert sha256(path) == sha256(restarted / path.relative_to(quiet))
