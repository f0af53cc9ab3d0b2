"""The mutants of `tests/mutation` still apply: each text is in its file once, and its tests exist."""

from pathlib import Path

import pytest

from tests.mutation.mutants import MUTANTS, PACKAGE, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_text_is_there_once_and_the_tests_exist(mutant: Mutant) -> None:
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert mutant.tests
    assert all((ROOT / test.split("::")[0]).exists() for test in mutant.tests)


def test_no_mutant_is_there_twice() -> None:
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS) >= 100
