"""The rows of a token set that a generator is trained on, and its classes as they follow from them."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from smalti.errors import ConfigError
from smalti.generation import GeneratorConfig
from smalti.tokens.dataset import Example, TokenDataset
from smalti.training.generator_config import GeneratorTraining

_GIVE_LABELS = "give the set labels (of folders: `smalti tokenize --set inputs.class_folders=true`)"


class _Row(NamedTuple):
    number: int
    """In the set."""
    ids: np.ndarray
    label: int | None


class GridRows(TokenDataset):
    """Rows of the shape of a generator's grid; others (the short clip that ends a video) are left out.

    All are read and checked at once and held in memory, 2 to 8 bytes a token. Classes that have names and no numbers,
    as those of single tars, are numbered in the byte order of the names, or as `classes` does. Raises ConfigError for a
    set that is not what the generator is for, naming the field to set.
    """

    def __init__(self, path: Path, model: GeneratorConfig, classes: tuple[str, ...] = ()) -> None:
        super().__init__(path, cache=0)  # every group is read once
        tokens = self.tokens
        if tuple(model.levels) != tuple(tokens.tokenizer_info.levels):
            levels = _listed(tokens.tokenizer_info.levels)
            raise ConfigError(f"{path}: its ids have the levels {levels}; `set` generator.levels={levels}")
        smallest = np.min_scalar_type(tokens.tokenizer_info.codebook_size - 1)
        rows, names = list[_Row](), list[str | None]()
        for i in range(len(tokens)):
            label, name = tokens.class_of(i)
            rows.append(_Row(i, tokens.ids(i).numpy().astype(smallest), label))
            names.append(name)
        places = [place for place, row in enumerate(rows) if row.ids.shape == tuple(model.grid)]
        if not places:
            grid = _listed(max((row.ids.shape for row in rows), key=math.prod))
            raise ConfigError(f"{path}: its rows are {grid} (frames, rows, columns); `set` generator.grid={grid}")
        self.rows, self.classes = [rows[place] for place in places], tokens.classes
        self.other_shapes = len(rows) - len(places)
        own = [name for name in (names[place] for place in places) if name is not None]
        if not any(row.label is not None for row in self.rows) and len(own) == len(places):
            self.classes = classes or tuple(sorted(set(own), key=str.encode))
            numbers = [_number(path, self.classes, name) for name in own]
            self.rows = [row._replace(label=number) for row, number in zip(self.rows, numbers, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        number, ids, label = self.rows[index]
        return Example(torch.from_numpy(ids.astype(np.int64)), -1 if label is None else label, number)

    @property
    def unlabelled(self) -> int:
        """Number of rows without a class."""
        return sum(row.label is None for row in self.rows)

    @property
    def class_count(self) -> int:
        """Number of classes; 0 where no row has one."""
        labels = [row.label for row in self.rows if row.label is not None]
        return (len(self.classes) or 1 + max(labels)) if labels else 0

    def check_classes(self, classes: int) -> None:
        """Raise ConfigError where a model of so many classes cannot learn these labels."""
        path, count = self.tokens.path, self.class_count
        if not classes:
            return
        if self.unlabelled:
            raise ConfigError(f"{path}: has rows without labels; `set` generator.classes=0, or {_GIVE_LABELS}")
        if count > classes or (self.classes and count != classes):
            raise ConfigError(f"{path}: has {count:,} classes; `set` generator.classes={count}")
        outside = next((row for row in self.rows if row.label is None or not 0 <= row.label < classes), None)
        if outside is not None:
            raise ConfigError(f"{path}: row {outside.number} is of class {outside.label}, outside [0, {classes})")


def settle_classes(
    config: GeneratorTraining, rows: GridRows, previous: GeneratorTraining | None = None
) -> tuple[GeneratorTraining, tuple[str, ...]]:
    """Return the config with `class_conditional` and `generator.classes` set by the rows, and what to say of it.

    `previous` is the config of the run that is resumed; runs of versions without `class_conditional` go on as they
    began. Raises ConfigError where the config asks for classes that the rows do not have.
    """
    if config.class_conditional is None and previous is not None and previous.class_conditional is None:
        return config, ()
    path, classes, wanted = config.data, config.generator.classes, config.class_conditional
    count = 0 if rows.unlabelled else rows.class_count
    if wanted is None:
        wanted = classes > 0 or count > 0
    if not wanted:
        classes = 0
    elif not classes:
        if rows.unlabelled:
            raise ConfigError(f"{path}: has rows without labels; `set` class_conditional=false, or {_GIVE_LABELS}")
        classes = count
    notes = list[str]()
    if wanted and not config.generator.classes:
        notes.append(f"{path}: the model learns its {count:,} classes; class_conditional=false leaves them out")
    elif not wanted and rows.class_count:
        some = f", which {rows.unlabelled:,} of {len(rows):,} rows do not have" if rows.unlabelled else ""
        notes.append(f"{path}: the model does not learn its {rows.class_count:,} classes{some}")
    if rows.other_shapes:
        notes.append(f"{path}: {rows.other_shapes:,} rows of another shape are left out")
    generator = config.generator.replace({"classes": classes})
    return config.replace({"class_conditional": wanted, "generator": generator}), tuple(notes)


def _number(path: Path, classes: tuple[str, ...], name: str) -> int:
    if name not in classes:
        raise ConfigError(f"{path}: its class {name} is none of the {len(classes):,} that are trained on")
    return classes.index(name)


def _listed(numbers: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, numbers)) + "]"
