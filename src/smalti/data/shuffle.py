"""The order of the data as a pure function: no state but one running number, for any number of workers or ranks."""

from functools import lru_cache

import torch

_MASK = (1 << 64) - 1
_ROUNDS = 6


def mix(*numbers: int) -> int:
    """Hash whole numbers to 64 bits (splitmix64, chained): the same on every machine and in every version."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def sample_rng(seed: int, epoch: int, index: int) -> torch.Generator:
    """Return the generator that decides the augmentation of a sample: its crop is the same wherever it is loaded."""
    return torch.Generator().manual_seed(mix(seed, epoch, index) >> 1)


class Order:
    """The order of an endless run: position 0, 1, 2, ... to (epoch, index), each epoch another permutation.

    Needs no memory and no replay, whatever the length: a Feistel network of six keyed rounds permutes the smallest
    2^k >= length numbers, and is applied again until it lands below the length (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains"): less than twice on average.
    """

    def __init__(self, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"an order of {length} samples: at least 1 is needed")
        self.length = length
        self.seed = seed
        bits = max(4, (length - 1).bit_length())
        self._halves = (bits // 2, bits - bits // 2)
        self._keys = lru_cache(maxsize=4)(self._make_keys)

    def __call__(self, position: int) -> tuple[int, int]:
        """Return (epoch, index) of a position."""
        if position < 0:
            raise ValueError(f"position {position} is below 0")
        epoch, number = divmod(position, self.length)
        keys = self._keys(epoch)
        number = self._permute(number, keys)
        while number >= self.length:
            number = self._permute(number, keys)
        return epoch, number

    def _permute(self, number: int, keys: tuple[int, ...]) -> int:
        high, low = self._halves
        left, right = number >> low, number & (1 << low) - 1
        for key in keys:  # the halves change places, and so do their widths; after six rounds they are back
            hashed = (right ^ key) * 0xBF58476D1CE4E5B9 & _MASK
            hashed = (hashed ^ hashed >> 29) * 0x94D049BB133111EB & _MASK
            left, right = right, left ^ hashed >> 64 - high
            high, low = low, high
        return left << low | right

    def _make_keys(self, epoch: int) -> tuple[int, ...]:
        return tuple(mix(self.seed, epoch, i) for i in range(_ROUNDS))
