"""The rows of a token set that a generator can be trained on: those of the shape of its grid."""

import math
from pathlib import Path

from smalti.errors import ConfigError
from smalti.generate import GeneratorConfig
from smalti.tokens.dataset import Example, TokenDataset


class GridRows(TokenDataset):
    """Rows of the shape of a generator's grid; others (the short clip that ends a film) are left out.

    Shapes are read where the number of tokens says that some differ. Raises ConfigError for a set that is not what the
    generator is for, naming the field to set.
    """

    def __init__(self, path: Path, model: GeneratorConfig) -> None:
        super().__init__(path)
        self.model, tokens = model, self.tokens
        if tuple(model.levels) != tuple(tokens.about.levels):
            found = _listed(tokens.about.levels)
            raise ConfigError(f"{path}: its ids have the levels {found}; --set generator.levels={found}")
        same = tokens.totals["tokens"] == len(tokens) * math.prod(model.grid)
        shapes = (
            {0: tuple(tokens.ids(0).shape)} if same else {i: tuple(tokens.ids(i).shape) for i in range(len(tokens))}
        )
        fitting = [row for row, shape in shapes.items() if shape == tuple(model.grid)]
        if not fitting:
            found = _listed(max(shapes.values(), key=math.prod))
            raise ConfigError(f"{path}: its rows are {found} (frames, rows, columns); --set generator.grid={found}")
        self.chosen: range | list[int] = range(len(tokens)) if same else fitting
        self.left_out = len(tokens) - len(self.chosen)
        if model.classes and tokens.label(self.chosen[0]) is None:
            raise ConfigError(f"{path}: its rows have no labels; --set generator.classes=0")
        if model.classes and tokens.classes and len(tokens.classes) != model.classes:
            count = len(tokens.classes)
            raise ConfigError(f"{path}: has {count:,} classes; --set generator.classes={count}")

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Example:
        return super().__getitem__(self.chosen[index])


def _listed(numbers: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, numbers)) + "]"
