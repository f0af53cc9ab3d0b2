"""The classes of samples: whole numbers keep their value, names are numbered in byte order."""

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from smalti.errors import InputError

LARGEST_CLASS = 1_000_000

_WHOLE = re.compile(r"-?[0-9]+")


class Classes(NamedTuple):
    """The class of each sample, and what the classes are called."""

    labels: tuple[int, ...] | None
    """Indices into `names`; None where there are no classes."""
    names: tuple[str, ...]


NO_CLASSES = Classes(None, ())


class Classed:
    """What every store says of its classes."""

    def __init__(self, classes: Classes, *, numbered: bool | None = None) -> None:
        self._classes = classes
        self.numbered = all(map(str.isdigit, classes.names)) if numbered is None else numbered
        """Whether classes are whole numbers, which mean the same in every file."""

    def label(self, index: int) -> int | None:
        """The class of a sample, an index into `classes`, or None where there are none."""
        return None if self._classes.labels is None else self._classes.labels[index]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self._classes.names


def number_classes(
    given: Sequence[str | None], *, where: str, named: Callable[[int], str] = str, whole_numbers: bool = True
) -> Classes:
    """The classes of samples that say `given`: where all are whole numbers they keep them, else names are numbered.

    None everywhere means no classes. Raises InputError where only some have a class (`named` names the first that has
    none), and where a number is below 0 or above 1,000,000.
    """
    said = [one for one in given if one is not None]
    if not said:
        return NO_CLASSES
    if len(said) < len(given):
        first = named(next(i for i, one in enumerate(given) if one is None))
        missing = f"{len(given) - len(said):,} of {len(given):,} samples have no class"
        raise InputError(f"{where}: {missing}, the first is {first}; give all a class, or none")
    names = set(said)
    if whole_numbers and all(map(_WHOLE.fullmatch, names)):
        wrong = next((n for n in names if n.startswith("-") or len(n) > 9 or int(n) > LARGEST_CLASS), None)
        if wrong is not None:
            raise InputError(f"{where}: class {wrong[:20]} is no class number (0 to {LARGEST_CLASS:,}); mend it")
        numbers = tuple(map(int, said))
        return Classes(numbers, tuple(map(str, range(max(numbers) + 1))))
    ordered = tuple(sorted(names, key=os.fsencode))
    number = {name: i for i, name in enumerate(ordered)}
    return Classes(tuple(number[name] for name in said), ordered)
