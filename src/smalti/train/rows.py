"""The rows of a token set that a generator can be trained on: those of the shape of its grid."""

import math
from pathlib import Path

import numpy as np
import torch

from smalti.errors import ConfigError
from smalti.generate import GeneratorConfig
from smalti.tokens.dataset import Example, TokenDataset


class GridRows(TokenDataset):
    """Rows of the shape of a generator's grid; others (the short clip that ends a film) are left out.

    All are read and checked at once and held in memory, 2 to 8 bytes a token. Raises ConfigError for a set that is not
    what the generator is for, naming the field to set.
    """

    def __init__(self, path: Path, model: GeneratorConfig) -> None:
        super().__init__(path)
        tokens, grid = self.tokens, tuple(model.grid)
        if tuple(model.levels) != tuple(tokens.about.levels):
            found = _listed(tokens.about.levels)
            raise ConfigError(f"{path}: its ids have the levels {found}; --set generator.levels={found}")
        smallest = np.min_scalar_type(tokens.about.codebook_size - 1)
        rows = {row: tokens.ids(row).numpy().astype(smallest) for row in range(len(tokens))}
        largest = max((ids.shape for ids in rows.values()), key=math.prod)
        rows = {row: ids for row, ids in rows.items() if ids.shape == grid}
        if not rows:
            found = _listed(largest)
            raise ConfigError(f"{path}: its rows are {found} (frames, rows, columns); --set generator.grid={found}")
        labels = [tokens.label(row) for row in rows]
        _check_classes(path, model.classes, labels, tokens.classes)
        self.ids = np.stack(list(rows.values()))
        self.labels = [-1 if label is None else label for label in labels]
        self.rows = list(rows)
        self.left_out = len(tokens) - len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        return Example(ids, self.labels[index], self.rows[index])


def _check_classes(path: Path, classes: int, labels: list[int | None], names: tuple[str, ...]) -> None:
    """Raise ConfigError where a model of so many classes cannot learn these labels."""
    if not classes:
        return
    if None in labels:
        raise ConfigError(
            f"{path}: has rows without labels; --set generator.classes=0, or give the set labels (of folders: "
            "`smalti tokenize --set inputs.class_folders=true`)"
        )
    count = len(names) or 1 + max(label for label in labels if label is not None)
    if count > classes or (names and count != classes):
        raise ConfigError(f"{path}: has {count:,} classes; --set generator.classes={count}")


def _listed(numbers: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, numbers)) + "]"
