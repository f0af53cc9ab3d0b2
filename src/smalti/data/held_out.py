"""Samples of a source that are kept from training: a function of the seed and of their names."""

import hashlib
from collections.abc import Sequence
from heapq import nsmallest
from typing import NamedTuple

from smalti.data.images import Images
from smalti.data.source import Store, Subset
from smalti.data.videos import Videos


class HeldOut(NamedTuple):
    """A source in two parts that share no sample and no bytes."""

    train: Subset
    """Samples to train on, in the order of the source."""
    held_out: Sequence[int]
    """Indices of the samples that are held out, in the order of the source."""
    copies: int
    """Number of samples that have the bytes of one that is held out: they are in neither part."""


def hold_out(source: Images | Videos, count: int, seed: int) -> HeldOut:
    """Hold out `count` samples, but at most a tenth (and at least one of two or more): those of the smallest hash.

    The hash is that of (seed, name), so the choice depends on no order and no random generator. Samples whose bytes
    are those of a held-out one are not trained on either: among the samples of equal size, whose sha256 is compared.
    That is not done for Parquet files, where it would read every cell.
    """
    total = len(source)
    count = min(count, max(1, total // 10)) if total > 1 else 0
    chosen = set(nsmallest(count, range(total), key=lambda i: (_hash(seed, source.key(i)), i)))
    copies = _copies(source.store, chosen) if chosen else set()
    train = [i for i in range(total) if i not in chosen and i not in copies]
    return HeldOut(Subset(source, train if count else range(total)), sorted(chosen), len(copies))


def _hash(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _copies(store: Store, chosen: set[int]) -> set[int]:
    """Return the other samples that have the bytes of a chosen one."""
    sizes = store.sizes()
    if sizes is None:
        return set()
    wanted = {sizes[i] for i in chosen if sizes[i] > 0}
    alike = [i for i in range(len(store)) if i not in chosen and sizes[i] in wanted]
    digests = {store.digest(i) for i in chosen} - {None} if alike else set()
    return {i for i in alike if store.digest(i) in digests}
