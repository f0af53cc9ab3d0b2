"""The adaptive model as docs/codec.md tells it: every sum taken anew, every table of every context, in int64."""

import numpy as np

from smalti.codec.contexts import COARSE, FINEST, Integers, Visit

ONE = 1 << 16


class PlainContexts:
    """Counts of one symbol by (class of the value before it, twice the mean of its neighbours)."""

    def __init__(self, size: int) -> None:
        self.size, self.classes = size, size if size <= FINEST else COARSE
        self.counts = np.zeros((self.classes + 1, 2 * self.classes, size), np.int64)

    def rows(self, plane: Integers, before: Integers | None, visit: Visit) -> Integers:
        """Return the context of each position of a visit."""
        found = []
        for at, *around in zip(visit.at, *visit.neighbours, strict=True):
            time = self.classes if before is None else self.class_of(before[at])
            seen = [self.class_of(plane[place]) for place in around if place >= 0]
            space = 1 + (4 * sum(seen) + len(seen)) // (2 * len(seen)) if seen else 0
            found.append(time * 2 * self.classes + space)
        return np.array(found, np.int64)

    def weights(self) -> Integers:
        """Return the weights of all contexts, `contexts size`."""
        counts = self.counts
        anywhere = shrunk(counts.sum((0, 1)), np.full(self.size, ONE // self.size), 4)
        space = shrunk(counts.sum(0), anywhere, 16)
        time = shrunk(counts.sum(1), anywhere, 16)
        product = time[:, None] * space // anywhere
        product = np.maximum(1, product * ONE // product.sum(-1, keepdims=True))
        return shrunk(counts, product, 32).reshape(-1, self.size)

    def learn(self, rows: Integers, symbols: Integers) -> None:
        """Count the symbols of a visit."""
        np.add.at(self.counts.reshape(-1, self.size), (rows, symbols), 1)

    def class_of(self, value: int) -> int:
        """Return the class of a value."""
        return value if self.classes == self.size else value * self.classes // self.size


def shrunk(counts: Integers, prior: Integers, strength: int) -> Integers:
    """(counts + strength * prior) / (all + strength) in fixed point, at least 1."""
    return np.maximum(1, (counts * ONE + strength * prior) // (counts.sum(-1, keepdims=True) + strength))
