"""Token sets under kills, duplicate writers and changed worker counts: the bytes of a quiet run, each id once."""

import os
import random
import time
from pathlib import Path

import pytest

from smalti.tokens.config import TokenizeOptions
from smalti.tokens.plan import load_plan
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import pending_shards
from tests.token_sets import corpus, digest, kill_group, make_set, save_tokenizer, start_child

OPTIONS = TokenizeOptions(shard_files=4)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """(tokenizer, data, a set made without disturbance, the seconds it took)."""
    folder = tmp_path_factory.mktemp("kills")
    tokenizer = save_tokenizer(folder / "tokenizer")
    corpus(folder / "data", good=24, bad=12)
    began = time.perf_counter()
    make_set(tokenizer, folder / "data", folder / "quiet", options=OPTIONS)
    return tokenizer, folder / "data", folder / "quiet", time.perf_counter() - began


def disturbed(quiet, out: Path, kills: int, rng: random.Random, *, workers: int = 0) -> int:
    """Make a set with so many rounds of SIGKILL at random times, each with another number of writers at once."""
    tokenizer, data, _, seconds = quiet
    killed = 0

    def write() -> None:
        make_set(tokenizer, data, out, options=OPTIONS, workers=workers)

    while killed < kills and not (out / "dataset.json").exists():
        wanted = done(out) + rng.choice((0, 0, 0, 1, 1))  # by shards and not by seconds: the machine may be busy
        writers = [start_child(write) for _ in range(rng.randint(1, 3))]
        while done(out) < wanted and not (out / "dataset.json").exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, seconds / 16))
        killed += sum(kill_group(writer) for writer in writers)
    writers = [start_child(write) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) for writer in writers] == [0, 0]
    return killed


def done(out: Path) -> int:
    return len(list((out / "reports").glob("*.json")))


def check(quiet, out: Path) -> None:
    assert digest(out) == digest(quiet[2])
    tokens = TokenSet(out)
    keys = [row.key for row in tokens]
    assert len(set(keys)) == len(keys) == tokens.totals["rows"]


def test_two_runs_under_kills_have_the_bytes_of_a_quiet_one(quiet, tmp_path):
    rng = random.Random(0)
    killed = 0
    for run in range(2):
        killed += disturbed(quiet, tmp_path / f"{run}", 4, rng)
        check(quiet, tmp_path / f"{run}")
    assert killed >= 4


@pytest.mark.slow
def test_twenty_runs_under_a_hundred_kills_have_the_bytes_of_a_quiet_one(quiet, tmp_path):
    rng = random.Random(1)
    killed = 0
    for run in range(20):
        killed += disturbed(quiet, tmp_path / f"{run}", 8, rng, workers=2 if run % 10 == 9 else 0)
        check(quiet, tmp_path / f"{run}")
    print(f"{killed} SIGKILLs in 20 runs")
    assert killed >= 100


@pytest.mark.parametrize("point", ["write_bytes:before-rename", "write_shard:before-report"])
def test_a_kill_at_the_worst_places_is_mended_by_the_next_run(quiet, point, tmp_path):
    tokenizer, data, _, _ = quiet

    def write() -> None:
        os.environ["SMALTI_FAULT"] = point
        make_set(tokenizer, data, tmp_path / "set", options=OPTIONS)

    assert os.waitstatus_to_exitcode(os.waitpid(start_child(write), 0)[1]) == -9
    make_set(tokenizer, data, tmp_path / "set", options=OPTIONS)
    check(quiet, tmp_path / "set")
    assert not list((tmp_path / "set").rglob(".*"))


def test_parts_of_the_work_add_up_to_the_whole_in_any_order(quiet, tmp_path):
    tokenizer, data, _, _ = quiet
    for part in (2, 0, 1):
        summary = make_set(tokenizer, data, tmp_path / "set", options=OPTIONS, part=(part, 3))
        assert summary.is_whole is (part == 1)
    check(quiet, tmp_path / "set")


def test_a_shard_that_was_cut_is_made_anew(quiet, tmp_path):
    tokenizer, data, _, _ = quiet
    make_set(tokenizer, data, tmp_path / "set", options=OPTIONS)
    plan = load_plan(tmp_path / "set")
    shard = plan.shard_path(1)
    shard.write_bytes(shard.read_bytes()[:-1])
    plan.report_path(2).write_bytes(b"{}")
    assert sorted(pending_shards(plan)) == [1, 2]
    make_set(tokenizer, data, tmp_path / "set", options=OPTIONS)
    check(quiet, tmp_path / "set")
