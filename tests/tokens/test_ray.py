"""Token sets on a Ray cluster of three nodes on this machine, of which one loses a worker and one goes away."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from smalti.errors import MachineError
from smalti.tokens.config import TokenizeOptions
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import pending_shards
from tests.rules.tree import ROOT
from tests.token_sets import corpus, digest, make_set, prepare, save_tokenizer

OPTIONS = TokenizeOptions(shard_files=48)
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra: pip install 'smalti[ray]'")


def scenario(tokenizer: str, data: str, out: str, faults: str) -> None:
    """Make a set on a cluster of three nodes, in a process of its own; with `faults`, kill a worker and a node."""
    import ray
    from ray.cluster_utils import Cluster

    from smalti.tokens.finalize import finish_set
    from smalti.tokens.ray_engine import RayLimits, run_on_ray

    small = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    plan, worker, _ = prepare(Path(tokenizer), Path(data), Path(out), OPTIONS)
    done = {"killed": 0, "removed": 0}

    def sabotage() -> None:
        while not (workers := tasks()):
            time.sleep(0.2)
        os.kill(workers[0], signal.SIGKILL)
        done["killed"] = 1
        while len(list((Path(out) / "reports").glob("*.json"))) < 2:
            time.sleep(0.2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        done["removed"] = 1

    if faults:
        threading.Thread(target=sabotage, daemon=True).start()
    run_on_ray(plan, worker, pending_shards(plan), RayLimits())
    summary = finish_set(plan)
    print(json.dumps({**done, "nodes": len(ray.nodes()), "bad": summary.bad, "whole": summary.is_whole}))
    ray.shutdown()
    cluster.shutdown()


def tasks() -> list[int]:
    """The processes in which Ray runs our task."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::make_one"):
            found.append(int(folder.name))
    return found


def on_cluster(tokenizer: Path, data: Path, out: Path, faults: str = "") -> dict[str, object]:
    program = "import sys; from tests.tokens.test_ray import scenario; scenario(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(tokenizer), str(data), str(out), faults]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout.splitlines()[-1])
    print(told)
    return told


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_and_a_node_gives_the_bytes_of_one_process(tmp_path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    names = corpus(tmp_path / "data", good=500, bad=80)
    make_set(tokenizer, tmp_path / "data", tmp_path / "here", options=OPTIONS)
    told = on_cluster(tokenizer, tmp_path / "data", tmp_path / "there", faults="worker and node")
    assert told == {"killed": 1, "removed": 1, "nodes": 3, "bad": len(names), "whole": True}
    assert digest(tmp_path / "there") == digest(tmp_path / "here")


@needs_ray
@pytest.mark.slow
def test_a_file_that_kills_its_reader_is_left_out_on_a_cluster_too(tmp_path, monkeypatch):
    from tests.tokens.test_poison import DOUBLE, listed, poison

    (tmp_path / "double").mkdir()
    (tmp_path / "double" / "sitecustomize.py").write_text(DOUBLE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "double"), prepend=os.pathsep)
    data = poison(tmp_path / "data", ["001-crash.png"], 60)
    on_cluster(save_tokenizer(tmp_path / "tokenizer"), data, tmp_path / "set")
    assert listed(tmp_path / "set") == {"001-crash.png": "crash"}
    assert len(TokenSet(tmp_path / "set")) == 60


def test_without_ray_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    from smalti.tokens.ray_engine import RayLimits, run_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    plan, worker, _ = prepare(save_tokenizer(tmp_path / "tokenizer"), _data(tmp_path), tmp_path / "set", OPTIONS)
    with pytest.raises(MachineError, match=r"pip install 'smalti\[ray\]'"):
        run_on_ray(plan, worker, [0], RayLimits())


def _data(folder: Path) -> Path:
    corpus(folder / "data", good=2, bad=0)
    return folder / "data"
