"""Token sets for training: a torch Dataset whose order is a function of (seed, epoch) and resumes at any step."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from smalti.data.loader import check_part, planned_loader
from smalti.data.source import Order
from smalti.devices import send
from smalti.errors import InputError
from smalti.tokens.reader import CACHE, TokenSet


class Example(NamedTuple):
    """A row as a token model needs it."""

    ids: Int[Tensor, "t h w"]
    label: int
    """Number of the class, -1 where there is none."""
    row: int
    """Number of the row in the set."""


class TokenBatch(NamedTuple):
    """Rows of one step."""

    ids: Int[Tensor, "b t h w"]
    labels: Int[Tensor, " b"]
    """Numbers of the classes, -1 where there is none."""
    rows: Int[Tensor, " b"]
    """Numbers of the rows in the set."""
    step: int

    def to(self, device: torch.device) -> "TokenBatch":
        """Return the batch with its ids and labels on a device; the program does not wait for a CUDA device."""
        return self._replace(ids=send(self.ids, device), labels=send(self.labels, device))


class TokenDataset(Dataset[Example]):
    """The rows of a token set, for any DataLoader. `order` tells which row is where in an endless shuffled run."""

    def __init__(self, path: str | Path | TokenSet, *, verify: bool = True, cache: int = CACHE) -> None:
        self.tokens = path if isinstance(path, TokenSet) else TokenSet(path, verify=verify, cache=cache)
        if not len(self.tokens):
            raise InputError(f"{self.tokens.path}: the token set has no rows")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Example:
        label = self.tokens.label(index)
        return Example(self.tokens.ids(index), -1 if label is None else label, index)

    def order(self, seed: int) -> Order:
        """Return the order of positions 0, 1, 2, ... as (epoch, row): another permutation in every epoch, without
        memory."""
        return Order(len(self), seed)


class _Steps(Dataset[TokenBatch]):
    """Whole steps: what a reading process makes of a list of rows."""

    def __init__(self, rows: TokenDataset) -> None:
        self.rows = rows

    def __getitem__(self, step: tuple[int, list[int]]) -> TokenBatch:
        number, chosen = step
        examples = [self.rows[index] for index in chosen]
        odd = next((example for example in examples if example.ids.shape != examples[0].ids.shape), None)
        if odd is not None:
            first = examples[0]
            shapes = [" x ".join(map(str, example.ids.shape)) for example in (first, odd)]
            raise InputError(
                f"{self.rows.tokens.path}: row {first.row} has ids of {shapes[0]}, row {odd.row} of {shapes[1]}: "
                "make the set with `size` and `clip`, or take batches of 1"
            )
        labels, indices = (torch.tensor([getattr(e, name) for e in examples]) for name in ("label", "row"))
        return TokenBatch(torch.stack([example.ids for example in examples]), labels, indices, number)


def token_batches(
    rows: TokenDataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Iterator[TokenBatch]:
    """Yield the batches of an endless shuffled run, from `start_step` on.

    The GLOBAL batch of step n is positions n B ... n B + B - 1 of the order; of these, `part` (r, W) takes r, r + W,
    .... So ranks, workers and restarts change nothing, and the only state is the step. Raises InputError where rows
    differ in shape, ConfigError where there are more ranks than rows of a batch.
    """
    rank, world = check_part(part, batch_size)
    order = rows.order(seed)
    plan = (
        (step, [order(step * batch_size + i)[1] for i in range(rank, batch_size, world)]) for step in count(start_step)
    )
    return planned_loader(_Steps(rows), plan, workers, reading=lambda: str(rows.tokens.path))
