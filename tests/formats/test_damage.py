"""Damage of files of every kind: refused by name in one line, or read; where there are digests, as it was written."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.damage import READ, Kind, damaged, trials
from tests.formats.kinds import FROZEN, kinds

FEW = 7
"""One of each way to damage a file."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """All kinds by name; their folder is the working directory of the module."""
    before, cache = Path.cwd(), os.environ.get("XDG_CACHE_HOME")
    yield kinds(tmp_path_factory.mktemp("kinds"))
    os.chdir(before)
    os.environ.pop("XDG_CACHE_HOME")
    if cache is not None:
        os.environ["XDG_CACHE_HOME"] = cache


@pytest.mark.parametrize("count", [FEW, pytest.param(1000, marks=pytest.mark.slow)])
def test_damage_of_any_kind_of_file_is_refused_by_name_or_read_as_it_was(files, count):
    total = Counter[str]()
    for name, kind in files.items():
        if count == FEW and name.startswith("comparison/tokenizer"):
            continue
        found = trials(kind, count)
        print(f"{name}: {dict(found)}")
        assert found.total() == count
        assert count == FEW or found[READ] < count or kind.path.name in ("made.json", "log.jsonl"), name
        total += found
    print(f"{total.total():,} damages of {len(files)} kinds: {dict(total)}")


def test_files_of_every_writer_are_among_the_kinds(files):
    """Every name in the folder of frozen files, but for documents, inputs, and what has no content."""
    known = {kind.path.name for kind in files.values()}
    kept = [path for path in FROZEN.rglob("*") if path.is_file() and path.stat().st_size and path.suffix != ".md"]
    written = {
        path.name for path in kept if path.relative_to(FROZEN).parts[0] in ("tokenizers", "runs", "sets", "bench")
    }
    assert len(written) > 20
    assert written - known <= {"report.json", *(name for name in written if name.startswith("tokens-"))}


def test_the_law_sees_content_that_is_read_in_silence_and_errors_of_other_kinds(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(64)))
    with pytest.raises(AssertionError, match="other content was read in silence"):
        trials(Kind(path, path.read_bytes), 7)
    with pytest.raises(AssertionError, match="UnicodeDecodeError"):
        trials(Kind(path, path.read_text, exact=False), 49)
    assert path.read_bytes() == bytes(range(64))


def test_no_damage_is_the_file_itself():
    for number in range(700):
        data = bytes(range(number % 90 + 1)) * (1 + number % 40)
        assert damaged(data, random.Random(number), number) != data
