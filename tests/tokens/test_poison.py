"""Media that break, hang, crash or overfill their decoder: the job ends, the rest is done, the bad are named."""

import json
import os
from pathlib import Path

import pytest

from smalti.errors import MachineError
from smalti.tokens.config import TokenizeOptions
from smalti.tokens.pool import PoolLimits, run_pool
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import pending_shards
from tests.token_sets import corpus, digest, encoded, make_set, picture, prepare, save_tokenizer

OPTIONS = TokenizeOptions(shard_files=16)

# A true double of a decoder with faults, in every process of this environment: it goes by the name of the file.
DOUBLE = """
import os, time
from PIL import Image
whole = Image.open
def faulty(file, *rest, **options):
    name = os.path.basename(str(getattr(file, "name", "")))
    if "hang" in name:
        time.sleep(1e6)
    if "crash" in name:
        os.abort()
    if "exit" in name:
        os._exit(7)
    if "eat" in name:
        eaten = []
        for _ in range(60):
            eaten.append(b"x" * (20 << 20))
            time.sleep(0.05)
    return whole(file, *rest, **options)
Image.open = faulty
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("poison") / "tokenizer")


@pytest.fixture
def faulty_decoder(tmp_path, monkeypatch):
    (tmp_path / "double").mkdir()
    (tmp_path / "double" / "sitecustomize.py").write_text(DOUBLE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "double"), prepend=os.pathsep)


def listed(folder: Path) -> dict[str, str]:
    """The codes of what is left out, by key."""
    lines = (folder / "bad_files.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["key"]: row["code"] for row in map(json.loads, lines)}


def poison(folder: Path, names: list[str], good: int) -> Path:
    folder.mkdir()
    data = encoded(picture(16, 16), "PNG")
    for i in range(good):
        (folder / f"{i:03d}.png").write_bytes(data)
    for name in names:
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.slow
def test_a_file_that_kills_its_reader_is_left_out_after_three_tries(tokenizer, tmp_path, faulty_decoder):
    data = poison(tmp_path / "data", ["001-crash.png"], 4)
    summary = make_set(tokenizer, data, tmp_path / "set", options=OPTIONS, workers=1)
    assert listed(tmp_path / "set") == {"001-crash.png": "crash"}
    assert (summary.ok, summary.bad, summary.listed) == (4, 1, 5)
    assert "died (SIGABRT), 3 times" in (tmp_path / "set" / "bad_files.jsonl").read_text()
    assert [row.key for row in TokenSet(tmp_path / "set")] == [f"{i:03d}.png" for i in range(4)]


@pytest.mark.slow
def test_files_that_hang_crash_or_eat_memory_cost_their_own_rows_and_nothing_else(tokenizer, tmp_path, faulty_decoder):
    names = ["003-hang.png", "010-crash.png", "020-eat.png", "020-exit.png"]
    data = poison(tmp_path / "data", names, 40)
    for workers in (1, 2):
        limits = {"workers": workers, "timeout": 20.0, "memory": 1.0}
        make_set(tokenizer, data, tmp_path / f"{workers}", options=OPTIONS, **limits)
        codes = {"003-hang.png": "hang", "010-crash.png": "crash", "020-eat.png": "memory", "020-exit.png": "crash"}
        assert listed(tmp_path / f"{workers}") == codes
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    assert len(TokenSet(tmp_path / "1")) == 40


def test_workers_that_cannot_start_end_the_work(tokenizer, tmp_path, monkeypatch):
    data = poison(tmp_path / "data", [], 2)
    (tmp_path / "double").mkdir()
    (tmp_path / "double" / "sitecustomize.py").write_text("import os, sys\nif '-m' in sys.orig_argv: os._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "double"), prepend=os.pathsep)
    plan, worker, _ = prepare(tokenizer, data, tmp_path / "set", OPTIONS)
    with pytest.raises(MachineError, match=r"a worker died \(exit code 9\) before its first file, 3 times"):
        run_pool(plan, worker, pending_shards(plan), PoolLimits(workers=1))


def modes(tokenizer: Path, data: Path, folder: Path) -> None:
    """The same set with 0 and 2 workers, and in three parts."""
    make_set(tokenizer, data, folder / "0", options=OPTIONS)
    make_set(tokenizer, data, folder / "2", options=OPTIONS, workers=2)
    for part in range(3):
        make_set(tokenizer, data, folder / "parts", options=OPTIONS, part=(part, 3))
    assert digest(folder / "0") == digest(folder / "2") == digest(folder / "parts")


def check_corpus(tokenizer: Path, folder: Path, good: int, bad: int) -> None:
    names = corpus(folder / "data", good, bad)
    modes(tokenizer, folder / "data", folder)
    found = listed(folder / "0")
    assert found.keys() == names
    summary = make_set(tokenizer, folder / "data", folder / "0", options=OPTIONS)
    assert (summary.ok, summary.bad, summary.skipped, summary.listed) == (good, len(names), 0, good + len(names))
    assert sum(summary.codes.values()) == len(names)
    assert {"truncated", "empty", "format", "bomb", "lfs-pointer", "sample-format", "missing"} <= summary.codes.keys()
    print(good, "good,", len(names), "bad:", summary.codes)


def test_a_corpus_of_good_and_bad_files_gives_one_set_and_report_in_every_mode(tokenizer, tmp_path):
    check_corpus(tokenizer, tmp_path, 30, 23)


@pytest.mark.slow
def test_five_hundred_good_and_eighty_bad_files_give_one_set_and_report_in_every_mode(tokenizer, tmp_path):
    check_corpus(tokenizer, tmp_path, 500, 80)


def test_a_worker_ends_with_its_parent(tokenizer, tmp_path, faulty_decoder):
    import time

    from tests.token_sets import start_child

    data = poison(tmp_path / "data", ["000-hang.png"], 2)
    plan, worker, _ = prepare(tokenizer, data, tmp_path / "set", OPTIONS)
    seen = tmp_path / "seen"

    def supervise() -> None:
        run_pool(plan, worker, [0], PoolLimits(workers=1), lambda p: seen.write_text("x") if p.items else None)

    parent = start_child(supervise)
    time.sleep(1)
    children = _children(parent)
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        time.sleep(0.2)
        children = _children(parent)
    assert children
    os.kill(parent, 9)
    os.waitpid(parent, 0)
    while any(_lives(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_lives(child) for child in children)


def _children(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def _lives(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
