"""A learned prior over ids: the probabilities of a token's symbols, given the tokens around it that are known by then.

A network of three layers in whole numbers. Encoder and decoder must agree on every probability to the last bit, on any
machine, so nothing may depend on the order in which a sum is taken: weights are int16, activations whole numbers up to
2^15, and layers have at most 2^12 inputs, so that every partial sum stays below 2^43. Those are exact in float64, whose
matrix products are fast, in any order, fused or not, by any number of threads. Activations are cut by floor, and
probabilities are powers of two from a table of integer roots.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from smalti.codec.contexts import Float64, Integers
from smalti.errors import IntegrityError
from smalti.files import fingerprint, load_tensors, read_notes, save_tensors
from smalti.text import printable

PRIOR_FILE = "prior.safetensors"
"""Name of a prior beside the weights of its tokenizer."""
SPACE = tuple((0, y, x) for y in (-2, -1, 0) for x in range(-2, 3) if y < 0 or x < 0)
TIME = (*((-1, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)), (-2, 0, 0))
NEIGHBOURS = SPACE + TIME
"""Offsets (frames, rows, columns) of the tokens that a token is predicted from."""
ONE = 1 << 10
"""Fixed point of activations and of logarithms: 1."""
LARGEST = (1 << 15) - 1
"""Largest activation and largest weight, in whole numbers."""
_FRONT = (5, 3, 1)
"""Tokens of one value of 5 t + 3 y + x depend on lower values alone: they are computed and coded together."""
_BEFORE, _AFTER = (2, 2, 2), (0, 1, 2)
"""Margin of the canvas before and after each axis: the reach of the neighbours."""
_WIDEST = 1 << 12
_BITS = 30
_VERSION = "1"

Int16 = NDArray[np.int16]


class Layer(NamedTuple):
    """A matrix of whole numbers with a row of biases, in units of 2^-shift."""

    weight: Float64
    """`inputs outputs`."""
    bias: Float64
    """`outputs`."""
    shift: int

    def __call__(self, inputs: Float64) -> Float64:
        """Return the exact sums, in units of 2^-shift / ONE."""
        return inputs @ self.weight + self.bias * ONE

    def floor(self, sums: Float64) -> Float64:
        """Return sums in units of 1 / ONE, rounded down."""
        return np.floor(sums * 2.0**-self.shift)


class Prior:
    """A prior over the symbols of one tokenizer's ids; `sizes` are the alphabets of the symbols of a token."""

    def __init__(self, tokenizer: str, sizes: Sequence[int], tensors: Mapping[str, Integers], shifts: Sequence[int]):
        self.tokenizer, self.sizes = tokenizer, tuple(sizes)
        """Fingerprint of the tokenizer."""
        self._tensors = {name: np.ascontiguousarray(values, np.int16) for name, values in sorted(tensors.items())}
        self._shifts = tuple(shifts)
        exact = {name: values.astype(np.float64) for name, values in self._tensors.items()}
        self._context, self._middle, self._heads, self._out = (
            Layer(exact[f"{name}.weight"], exact[f"{name}.bias"], shift)
            for name, shift in zip(("context", "middle", "heads", "out"), self._shifts, strict=True)
        )
        self._known = exact["known.weight"] * ONE
        self._starts = np.cumsum([0, *self.sizes])
        self._head = self._heads.bias.size // len(self.sizes)
        self.digest = fingerprint(self._facts(), {n: torch.from_numpy(t) for n, t in self._tensors.items()})[:16]
        """Name of the prior in files: the first 64 bits of a sha256 over its numbers and its tokenizer."""

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(values.size for values in self._tensors.values())

    def heads(self, context: Int16) -> Float64:
        """Return the state of all symbols of tokens with this context, `n heads`, none of the symbols known."""
        first = self._rectified(self._context, self._context(context.astype(np.float64)))
        return self._heads(self._rectified(self._middle, self._middle(first)))

    def learn(self, state: Float64, number: int, symbols: Integers) -> Float64:
        """Return the state with symbol `number` of each token known, too."""
        return state + self._known[self._starts[number] + symbols]

    def weights(self, state: Float64, number: int) -> Integers:
        """Return positive or zero integers for every value of symbol `number`, `n size`, the largest 2^30."""
        mine = slice(number * self._head, (number + 1) * self._head)
        values = slice(self._starts[number], self._starts[number + 1])
        active = self._rectified(self._heads, state[:, mine])
        sums = active @ self._out.weight[:, values] + self._out.bias[values] * ONE
        logits = self._out.floor(sums).astype(np.int64)
        below = logits.max(-1, keepdims=True) - logits
        return powers()[below % ONE] >> np.minimum(below // ONE, 2 * _BITS)

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, whole or not at all."""
        notes = {name: json.dumps(value) for name, value in self._facts().items()}
        save_tensors(path, {name: torch.from_numpy(values) for name, values in self._tensors.items()}, notes)

    @staticmethod
    def load(path: Path) -> "Prior":
        """Read what `save` wrote. Raises InputError where there is no file, IntegrityError for one that is no prior."""
        tensors = {name: values.numpy() for name, values in load_tensors(path).items()}
        notes = read_notes(path)
        try:
            facts = {name: json.loads(text) for name, text in notes.items()}
            if facts["prior"] != _VERSION:
                raise IntegrityError(f"{printable(path)}: a prior of format {facts['prior']}: update smalti")
            sizes, shifts = [int(n) for n in facts["sizes"]], [int(n) for n in facts["shifts"]]
            _check_shapes(tensors, sizes, shifts)
            whole = {name: values.astype(np.int64) for name, values in tensors.items()}
            return Prior(str(facts["tokenizer"]), sizes, whole, shifts)
        except (KeyError, TypeError, ValueError):
            raise IntegrityError(f"{printable(path)}: not a prior of smalti; give a file of `smalti prior`") from None

    def _facts(self) -> dict[str, object]:
        return {
            "prior": _VERSION,
            "tokenizer": self.tokenizer,
            "sizes": list(self.sizes),
            "shifts": list(self._shifts),
        }

    @staticmethod
    def _rectified(layer: Layer, sums: Float64) -> Float64:
        return np.clip(layer.floor(sums), 0, LARGEST)


class Canvas:
    """The symbols of a block that are known so far, as inputs of a prior; zero where nothing is known."""

    def __init__(self, shape: tuple[int, int, int], sizes: Sequence[int]) -> None:
        padded = [before + n + after for n, before, after in zip(shape, _BEFORE, _AFTER, strict=True)]
        frame, row = padded[1] * padded[2], padded[2]
        self.cells = np.zeros((padded[0] * frame, len(sizes) + 1), np.int16)
        """Inputs of every symbol and ONE for each cell of the block and of the margins around it."""
        self.offsets = np.array([t * frame + y * row + x for t, y, x in NEIGHBOURS])
        """Distance in cells of each neighbour."""
        self._inputs = [inputs_of(size) for size in sizes]
        t, y, x = np.indices(shape).reshape(3, -1)
        self.at = (t + _BEFORE[0]) * frame + (y + _BEFORE[1]) * row + x + _BEFORE[2]
        """Cell of each token."""

    def context(self, at: Integers) -> Int16:
        """Return the inputs of a prior for the tokens at flat positions `at`, `n inputs`."""
        return self.cells[self.at[at, None] + self.offsets].reshape(at.size, -1)

    def write(self, at: Integers, symbols: Iterable[Integers]) -> None:
        """Make the symbols of the tokens at `at` known."""
        cells = [inputs[values] for inputs, values in zip(self._inputs, symbols, strict=True)]
        self.cells[self.at[at]] = np.stack([*cells, np.full(at.size, ONE)], -1)


@lru_cache(maxsize=8)  # of the sizes of neighbouring blocks: 8 bytes a token each
def fronts(shape: tuple[int, int, int]) -> tuple[Integers, ...]:
    """Return all flat positions of a block `t h w`, in groups whose neighbours are all in the groups before."""
    order = sum(step * axis for step, axis in zip(_FRONT, np.indices(shape), strict=True)).reshape(-1)
    places = np.argsort(order, kind="stable")
    return tuple(np.split(places, np.flatnonzero(np.diff(order[places])) + 1))


@cache
def inputs_of(size: int) -> Integers:
    """Return the input of each value of a symbol: from -ONE to ONE in even steps."""
    return (2 * ONE * np.arange(size) + (size - 1) // 2) // (size - 1) - ONE


@cache
def powers() -> Integers:
    """Return 2^(30 - i / ONE) for i below ONE, by roots of whole numbers: the same on every machine."""
    fine, table = 2 * _BITS, np.full(ONE, 1 << _BITS, dtype=object)
    root = 1 << (fine - 1)
    for bit in reversed(range(ONE.bit_length() - 1)):
        root = math.isqrt(root << fine)  # 2^-(2^bit / ONE)
        table = np.where(np.arange(ONE) >> bit & 1, table * root >> fine, table)
    return table.astype(np.int64)


def quantized(tokenizer: str, sizes: Sequence[int], layers: Mapping[str, NDArray[np.float32]]) -> Prior:
    """Make a prior of a trained network's numbers, each part in the finest units in which it fits int16.

    `layers` are NAME.weight and NAME.bias of context, middle, heads and out, and known.weight in the units of heads.
    """
    tensors, shifts = dict[str, Integers](), []
    for part in ("context", "middle", "heads", "out"):
        names = [name for name in layers if name.startswith((f"{part}.", "known." if part == "heads" else f"{part}."))]
        peak = max(float(np.abs(layers[name]).max()) for name in names)
        shift = max(0, min(14, math.floor(math.log2(LARGEST / max(peak, 1e-9)))))
        shifts.append(shift)
        tensors |= {n: np.clip(np.rint(layers[n] * 2.0**shift), -LARGEST, LARGEST).astype(np.int64) for n in names}
    return Prior(tokenizer, sizes, tensors, shifts)


def shipped_prior(tokenizer: str) -> Prior | None:
    """Return the prior that ships with the package for the tokenizer of this fingerprint; None where there is none."""
    for path in sorted((Path(__file__).parents[1] / "weights").glob(f"*/{PRIOR_FILE}")):
        if json.loads(read_notes(path).get("tokenizer", "null")) == tokenizer:
            return Prior.load(path)
    return None


def _check_shapes(tensors: Mapping[str, NDArray[Any]], sizes: Sequence[int], shifts: Sequence[int]) -> None:
    """Raise ValueError unless these are the int16 tensors of a prior of these alphabets."""
    inputs, width = tensors["context.weight"].shape
    heads = tensors["heads.weight"].shape[1]
    rows, values = heads // max(1, len(sizes)), sum(sizes)
    wanted: dict[str, tuple[int, ...]] = {
        "context.weight": (len(NEIGHBOURS) * (len(sizes) + 1), width),
        "context.bias": (width,),
        "middle.weight": (width, width),
        "middle.bias": (width,),
        "heads.weight": (width, rows * len(sizes)),
        "heads.bias": (heads,),
        "known.weight": (values, heads),
        "out.weight": (rows, values),
        "out.bias": (values,),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    is_int16 = all(tensor.dtype == np.int16 for tensor in tensors.values())
    if shapes != wanted or not is_int16 or max(inputs, width, heads) > _WIDEST or min(sizes, default=0) < 2:
        raise ValueError("shapes")
    if len(shifts) != 4 or not all(0 <= shift <= 14 for shift in shifts):
        raise ValueError("shifts")
