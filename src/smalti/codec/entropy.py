"""Ids as bytes and back: digits under a model of integer weights, through the range coder of `constriction`.

A model gives every symbol integer weights. They are scaled to frequencies f with sum f = 2^24 - n over the n symbols of
an alphabet, and a symbol has the probability (f + 1) / 2^24. These integers are below 2^24, so the float32 in which
the library takes them is exact: encoder and decoder agree on any machine, to the last bit.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from smalti.codec.contexts import Contexts, Flags, Float64, Integers, Visit, visits
from smalti.codec.prior import Canvas, Prior, fronts
from smalti.errors import MachineError

Model = Literal["uniform", "static", "adaptive", "prior"]
"""`uniform`: all values of a digit alike. `static`: a table for each digit, measured over the block and stored in it.
`adaptive`: counts in contexts, learnt on the way by both sides. `prior`: a network trained for the tokenizer."""

PRECISION = 24
"""Bits of a probability."""
LARGEST_ALPHABET = 256
"""A digit of more levels is cut into several symbols."""
_TABLE_PEAK = 255
_GROUP = 1 << 10
"""Tokens of fronts that go through a prior at once in writing: their tables fit the cache of a processor."""


class Coded(NamedTuple):
    """The bytes of a block of ids, and the bits that the model asks for."""

    data: bytes
    bits: float
    """The sum of -log2 of the probabilities, and the bits of a static table."""
    model: Model
    """Model that was used: `uniform` where the requested one would be larger."""


def encode_ids(
    ids: Integers, levels: Sequence[int], model: Model, prior: Prior | None = None, held: Flags | None = None
) -> Coded:
    """Encode ids `t h w` as bytes. Never more bytes than under `uniform`, and with a `prior`, which that model needs,
    than under `adaptive`. Those that are `held` are left out, which `adaptive` cannot. Raises ValueError for an id out
    of range."""
    planes = split(ids if held is None else np.where(held, 0, ids), levels)
    others: tuple[Model, ...] = ("adaptive", "uniform") if model == "prior" and held is None else ("uniform",)
    coded = [_encode(planes, alphabets(levels), name, prior, held) for name in dict.fromkeys((model, *others))]
    return min(coded, key=lambda one: len(one.data))  # the first of equals


def decode_ids(
    data: bytes,
    shape: tuple[int, int, int],
    levels: Sequence[int],
    prior: Prior | None = None,
    held: Flags | None = None,
) -> Integers:
    """Decode the ids `t h w` that `encode_ids` encoded with the same `prior` and `held`; what they are where they are
    held, says nothing. Raises ValueError for bytes that it cannot have written."""
    names: tuple[Model, ...] = get_args(Model)
    if not data or data[0] >= len(names) or len(data) % 4 != 1:
        raise ValueError("it is not a block of coded ids")
    alphabet_sizes = alphabets(levels)
    planes, decoder = np.zeros((len(alphabet_sizes), *shape), np.int64), _Decoder(data[1:])
    _walk(planes, alphabet_sizes, names[data[0]], decoder, prior, held)
    if not decoder.is_exhausted:
        raise ValueError("it has more bytes than ids")
    return join(planes, levels)


def alphabets(levels: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the symbols that ids are coded as: the levels, but for digits above `LARGEST_ALPHABET`."""
    return tuple(size for level in levels for size in _radices(level))


def split(ids: Integers, levels: Sequence[int]) -> Integers:
    """Split ids `t h w` into symbols `k t h w`, each below its alphabet. Raises ValueError for an id out of range."""
    end = math.prod(levels)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < end:
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"id {wrong} is outside [0, {end})")
    planes, rest = [], ids.astype(np.int64)
    for level in levels:
        rest, digit = np.divmod(rest, level)
        for size in _radices(level):
            digit, symbol = np.divmod(digit, size)
            planes.append(symbol)
    return np.stack(planes)


def join(planes: Integers, levels: Sequence[int]) -> Integers:
    """Join symbols to ids. Raises ValueError for a digit out of range, which alphabets of cut digits leave room for."""
    ids, basis, at = np.zeros(planes.shape[1:], np.int64), 1, 0
    for level in levels:
        digit, place = np.zeros_like(ids), 1
        for size in _radices(level):
            digit += planes[at] * place
            place, at = place * size, at + 1
        if digit.size and int(digit.max()) >= level:
            raise ValueError(f"digit {int(digit.max())} is outside [0, {level})")
        ids += digit * basis
        basis *= level
    return ids


def _radices(level: int) -> tuple[int, ...]:
    """The least number of alphabets, nearly alike, whose product holds `level`."""
    count = 1
    while LARGEST_ALPHABET**count < level:
        count += 1
    radix = next(r for r in range(2, LARGEST_ALPHABET + 1) if r**count >= level)
    return (*[radix] * (count - 1), -(-level // radix ** (count - 1)))


class _Encoder:
    """Writes symbols. `code` and `table` are those of `_Decoder`, which returns what it reads under the same tables.

    Weights are one table `size` for all symbols, or several `m size`; `rows` is the table of each symbol, and without
    it each has its own.
    """

    def __init__(self) -> None:
        self._coder = _library().stream.queue.RangeEncoder()
        self._family = _library().stream.model.Categorical(perfect=False)
        self._tables = b""
        self._chosen = list[Float64 | Integers]()

    def code(self, symbols: Integers, weights: Float64 | Integers, rows: Integers | None = None) -> Integers:
        table = _frequencies(weights)
        if weights.ndim == 1:
            model = _library().stream.model.Categorical(table.astype(np.float32), perfect=False)
            self._coder.encode(symbols.astype(np.int32), model)
            return self._count(symbols, table[symbols])
        table = table if rows is None else table[rows]
        self._coder.encode(symbols.astype(np.int32), self._family, table.astype(np.float32))
        return self._count(symbols, table[np.arange(symbols.size), symbols])

    @property
    def bits(self) -> float:
        """The sum of -log2 of the probabilities so far, and the bits of the tables."""
        chosen = np.concatenate([*self._chosen, np.zeros(0)])
        return 8.0 * len(self._tables) + PRECISION * chosen.size - float(np.log2(chosen + 1).sum())

    def _count(self, symbols: Integers, frequencies: Float64 | Integers) -> Integers:
        self._chosen.append(frequencies)
        return symbols

    def table(self, weights: Integers) -> Integers:
        self._tables += weights.astype(np.uint8).tobytes()
        return weights

    def finish(self) -> bytes:
        """Return the tables, filled up with zeros to whole words, and the words of the range coder."""
        words = self._coder.get_compressed().astype("<u4").tobytes()
        return self._tables + bytes(-len(self._tables) % 4) + words


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self._data, self._read = data, 0
        self._coder: Any = None
        self._family = _library().stream.model.Categorical(perfect=False)

    def code(self, symbols: Integers, weights: Float64 | Integers, rows: Integers | None = None) -> Integers:
        exact = _frequencies(weights).astype(np.float32)
        coder = self._started()
        try:
            if weights.ndim == 1:
                model = _library().stream.model.Categorical(exact, perfect=False)
                return np.asarray(coder.decode(model, symbols.size), np.int64)
            return np.asarray(coder.decode(self._family, exact if rows is None else exact[rows]), np.int64)
        except AssertionError:  # the library's word for bytes that no encoder writes
            raise ValueError("it was not written under this model") from None

    def table(self, weights: Integers) -> Integers:
        end = self._read + weights.size
        if end > len(self._data):
            raise ValueError("its tables are cut")
        read = np.frombuffer(self._data[self._read : end], np.uint8).astype(np.int64)
        self._read = end
        if not read.any():
            raise ValueError("a table is empty")
        return read

    @property
    def is_exhausted(self) -> bool:
        """Whether all words were used."""
        return bool(self._started().maybe_exhausted())

    def _started(self) -> Any:
        if self._coder is None:
            words = np.frombuffer(self._data[self._read + -self._read % 4 :], "<u4")
            self._coder = _library().stream.queue.RangeDecoder(words.astype(np.uint32))
        return self._coder


def _encode(
    planes: Integers, sizes: Sequence[int], model: Model, prior: Prior | None, held: Flags | None = None
) -> Coded:
    encoder = _Encoder()
    _walk(planes, sizes, model, encoder, prior, held)
    return Coded(bytes([get_args(Model).index(model)]) + encoder.finish(), encoder.bits, model)


def _walk(
    planes: Integers,
    sizes: Sequence[int],
    model: Model,
    coder: _Encoder | _Decoder,
    prior: Prior | None,
    held: Flags | None,
) -> None:
    """Code all symbols `k t h w` but those of `held` tokens, in the order that both sides follow; the decoder's come
    into `planes`."""
    new = np.ones(_shape(planes), bool) if held is None else ~held
    if model == "prior":
        if prior is None or prior.sizes != tuple(sizes):
            raise ValueError("it was coded with a prior, which is not given")
        if isinstance(coder, _Encoder):
            _write_prior(planes, new, prior, coder)
        else:
            _read_prior(planes, new, prior, coder)
        return
    if model == "adaptive":
        if held is not None:
            raise ValueError("it has held tokens, and counts around them")
        _walk_adaptive(planes, sizes, coder)
        return
    tables = [np.ones(size, np.int64) for size in sizes]
    if model == "static":
        tables = [coder.table(_measured(plane, size)) for plane, size in zip(planes, sizes, strict=True)]
    for plane, table in zip(planes, tables, strict=True):
        if new.any():
            plane[new] = coder.code(plane[new], table, None)


def _walk_adaptive(planes: Integers, sizes: Sequence[int], coder: _Encoder | _Decoder) -> None:
    """Frame by frame, digit by digit, from coarse positions to fine ones; what is known grows with every call."""
    count, frames, height, width = planes.shape
    order: tuple[Visit, ...] = visits(height, width)
    contexts = [Contexts(size) for size in sizes]
    flat = np.zeros((count, frames, height * width + 1), np.int64)  # one more, which is what lies beyond the edge
    flat[..., :-1] = planes.reshape(count, frames, -1)
    for t in range(frames):
        for plane, known in zip(flat, contexts, strict=True):
            for visit in order:
                rows = known.rows(plane[t], plane[t - 1] if t else None, visit)
                symbols = coder.code(plane[t, visit.at], *known.weights(rows))
                plane[t, visit.at] = symbols
                known.learn(rows, symbols)
    planes[:] = flat[..., :-1].reshape(planes.shape)


def _write_prior(planes: Integers, new: Flags, prior: Prior, encoder: _Encoder) -> None:
    """Write what `_read_prior` reads; the network takes many fronts at once, as all tokens are known."""
    shape, flat = _shape(planes), planes.reshape(len(planes), -1)
    canvas, unheld = Canvas(shape, prior.sizes), new.reshape(-1)
    canvas.write(np.flatnonzero(unheld), flat[:, unheld])
    order = [front for front in (front[unheld[front]] for front in fronts(shape)) if front.size]
    if not order:
        return
    ends = np.cumsum([front.size for front in order])
    for group in np.split(np.arange(len(order)), np.flatnonzero(np.diff(ends // _GROUP)) + 1):
        at = np.concatenate([order[number] for number in group])
        state, tables = prior.heads(canvas.context(at)), list[Integers]()
        for number, plane in enumerate(flat):
            tables.append(prior.weights(state, number))
            state = prior.learn(state, number, plane[at])
        first = ends[group[0]] - order[group[0]].size
        for number in group:
            here = slice(ends[number] - order[number].size - first, ends[number] - first)
            for plane, table in zip(flat, tables, strict=True):
                encoder.code(plane[order[number]], table[here])


def _read_prior(planes: Integers, new: Flags, prior: Prior, decoder: _Decoder) -> None:
    """Read front by front through space and time at once; in a front digit by digit, each given those before. Of a held
    token nothing is known."""
    shape, flat = _shape(planes), planes.reshape(len(planes), -1)
    canvas, unheld = Canvas(shape, prior.sizes), new.reshape(-1)
    for front in fronts(shape):
        if not (at := front[unheld[front]]).size:
            continue
        state = prior.heads(canvas.context(at))
        for number, plane in enumerate(flat):
            plane[at] = decoder.code(plane[at], prior.weights(state, number))
            state = prior.learn(state, number, plane[at])
        canvas.write(at, flat[:, at])


def _shape(planes: Integers) -> tuple[int, int, int]:
    _, frames, height, width = planes.shape
    return frames, height, width


def _measured(plane: Integers, size: int) -> Integers:
    """How often each value stands in a plane, as weights of one byte; a value that is there has at least 1."""
    counts = np.bincount(plane.reshape(-1), minlength=size)
    peak = max(1, int(counts.max()))
    return np.maximum((counts * _TABLE_PEAK + peak // 2) // peak, counts > 0)


def _frequencies(weights: Float64 | Integers) -> Float64 | Integers:
    """The integers f >= 0 of each row, in the ratio of the weights, with the sum 2^24 - n; the rounding goes to the
    first. Weights in float64 are below 2^28."""
    total, ones = (1 << PRECISION) - weights.shape[-1], np.ones(weights.shape[-1], weights.dtype)
    table = weights * total
    if table.dtype == np.float64:
        table /= (weights @ ones)[..., None]
        np.floor(table, table)
    else:
        table //= (weights @ ones)[..., None]
    table[..., 0] += total - table @ ones
    return table


def _library() -> Any:
    """The range coder. Raises MachineError where it is not installed."""
    try:
        import constriction
    except ImportError:
        raise MachineError(
            "the codec needs constriction, which is not installed: pip install 'smalti[codec]'"
        ) from None
    return constriction
