"""The rows of a token set that a generator can be trained on: those of the shape of its grid."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from smalti.errors import ConfigError
from smalti.generation import GeneratorConfig
from smalti.tokens.dataset import Example, TokenDataset


class _Row(NamedTuple):
    number: int
    """In the set."""
    ids: np.ndarray
    label: int | None


class GridRows(TokenDataset):
    """Rows of the shape of a generator's grid; others (the short clip that ends a video) are left out.

    All are read and checked at once and held in memory, 2 to 8 bytes a token. Raises ConfigError for a set that is not
    what the generator is for, naming the field to set.
    """

    def __init__(self, path: Path, model: GeneratorConfig) -> None:
        super().__init__(path, cache=0)  # every group is read once
        tokens = self.tokens
        if tuple(model.levels) != tuple(tokens.tokenizer_info.levels):
            found = _listed(tokens.tokenizer_info.levels)
            raise ConfigError(f"{path}: its ids have the levels {found}; `set` generator.levels={found}")
        smallest = np.min_scalar_type(tokens.tokenizer_info.codebook_size - 1)
        rows = [_Row(i, tokens.ids(i).numpy().astype(smallest), tokens.label(i)) for i in range(len(tokens))]
        fitting = [row for row in rows if row.ids.shape == tuple(model.grid)]
        if not fitting:
            found = _listed(max((row.ids.shape for row in rows), key=math.prod))
            raise ConfigError(f"{path}: its rows are {found} (frames, rows, columns); `set` generator.grid={found}")
        _check_classes(path, model.classes, [row.label for row in fitting], tokens.classes)
        self.rows = fitting
        self.other_shapes = len(rows) - len(fitting)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        number, ids, label = self.rows[index]
        return Example(torch.from_numpy(ids.astype(np.int64)), -1 if label is None else label, number)


def _check_classes(path: Path, classes: int, labels: list[int | None], names: tuple[str, ...]) -> None:
    """Raise ConfigError where a model of so many classes cannot learn these labels."""
    if not classes:
        return
    if None in labels:
        raise ConfigError(
            f"{path}: has rows without labels; `set` generator.classes=0, or give the set labels (of folders: "
            "`smalti tokenize --set inputs.class_folders=true`)"
        )
    count = len(names) or 1 + max(label for label in labels if label is not None)
    if count > classes or (names and count != classes):
        raise ConfigError(f"{path}: has {count:,} classes; `set` generator.classes={count}")


def _listed(numbers: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, numbers)) + "]"
