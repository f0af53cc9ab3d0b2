"""Mutants of the formulas: each is one text of the package replaced by another that changes what is computed.

A mutant is written by hand, so that each differs from the original for some input: it is a fault that a hand could make
(a sign, a factor, an off-by-one, a term dropped or applied to all). Its tests are those that say what the line means.
`mutants.jsonl` has one a line.
"""

import json
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "src" / "smalti"


class Mutant(NamedTuple):
    """A text of a file, what replaces it, and the tests that must then fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"

    def applied(self, text: str) -> str:
        """Return a file's text with the mutant in it. Raises ValueError unless the old text is there once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self}: the text is there {text.count(self.old)} times")
        return text.replace(self.old, self.new)


def read_mutants() -> tuple[Mutant, ...]:
    """Read `mutants.jsonl`."""
    lines = Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(Mutant(row["file"], row["old"], row["new"], tuple(row["tests"])) for row in rows)


MUTANTS = read_mutants()
"""All mutants, by file."""
