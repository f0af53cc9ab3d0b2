"""The few foreign names that stand for plain data, and what they stand for."""

from math import prod
from typing import Any, TypeGuard

import numpy as np
import torch

from smalti.inert.records import Fault, Foreign, Storage, Stored, shown

EXPANDED = 1 << 28
"""Values that a tensor may show beyond those stored (strides of 0); more is taken for a bomb."""

_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "collections.Counter"}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
# A parameter is its tensor, a list with a type tag is the list.
_FIRST = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.restore_type_tag",
}
_PLAIN_DTYPE = frozenset("biufc")
_INT64 = 1 << 63
_KEY_DEPTH, _KEY_PARTS = 4, 64
_HASHED = (str, bytes, int, float, complex, type(None), torch.dtype, Foreign, Storage, Stored, torch.Tensor)


def key(value: object) -> Any:
    """A value that may be a key or a member of a set: hashing it costs little and runs nothing."""
    _measure(value, _KEY_DEPTH, [_KEY_PARTS])
    return value


def _measure(value: object, depth: int, parts: list[int]) -> None:
    parts[0] -= 1
    if isinstance(value, tuple):
        if depth == 0 or parts[0] < len(value):
            raise Fault("a key of a dict is a tuple that is too deep or too long")
        for part in value:
            _measure(part, depth - 1, parts)
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise Fault("a key of a dict is a number beyond 64 bits")
    elif not isinstance(value, _HASHED):
        raise Fault(f"a key of a dict is a {type(value).__name__}")


class Known:
    """Turns names, calls and persistent ids of one file into records and plain values. Raises Fault."""

    def __init__(self, nbytes: int) -> None:
        """`nbytes` of the file bounds what conversions may make: nobody converts a value twice."""
        self.left = nbytes
        self.storages: dict[str, Storage] = {}
        """By key, as declared; views are not listed."""

    def spend(self, count: int) -> None:
        """Count what a conversion copies, so that a small file cannot ask for much."""
        self.left -= count
        if self.left < 0:
            raise Fault("its pickle would unfold to more than the file holds")

    def name(self, module: str, name: str = "") -> object:
        """A global. Python 2 called `builtins` `__builtin__`."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        return _DTYPES.get(full) or Foreign(full)

    def call(self, what: object, args: tuple[object, ...]) -> object:
        """The plain value that a call stands for, or a record of the call."""
        if not isinstance(what, Foreign):
            raise Fault(f"its pickle calls a {type(what).__name__}")
        if what.args is not None:
            return Foreign("(call)", (what, *args))
        if what.name in _DICTS:
            return self._dict(what.name, args)
        if what.name in _TENSORS:
            return self._tensor(what.name, args)
        if what.name in _FIRST and args:
            return args[0]
        if what.name == "torch._tensor._rebuild_from_type_v2" and len(args) == 4 and isinstance(args[2], tuple):
            return self.call(args[0], args[2])
        plain = self._plain(what.name, args)
        return Foreign(what.name, args) if plain is None else plain

    def _dict(self, name: str, args: tuple[object, ...]) -> object:
        """`OrderedDict()`, `OrderedDict([[k, v], ...])`, `defaultdict(factory)`, `Counter({...})`."""
        content = args[-1] if args and not name.endswith("defaultdict") else []
        if isinstance(content, dict):
            content = list(content.items())
        if not isinstance(content, list):
            return Foreign(name, args)
        self.spend(len(content))
        made: dict[object, object] = {}
        for pair in content:
            if not (isinstance(pair, list | tuple) and len(pair) == 2):
                return Foreign(name, args)
            made[key(pair[0])] = pair[1]
        return made

    def _plain(self, name: str, args: tuple[object, ...]) -> object | None:
        """Small values, or None if the name stands for none."""
        match name, args:
            case "_codecs.encode", (str(text), "latin1" | "latin-1"):
                return self._latin1(text)
            case "builtins.bytes", ():
                return b""
            case "builtins.bytearray", ():
                return bytearray()
            case "builtins.bytearray", (bytes(data),):
                self.spend(len(data))
                return bytearray(data)
            case "builtins.bytearray", (str(text), "latin1" | "latin-1"):
                return bytearray(self._latin1(text))
            case "builtins.complex", (float() | int() as real, float() | int() as imaginary):
                return complex(real, imaginary)
            case "builtins.set", (list(values),):
                self.spend(len(values))
                return {key(value) for value in values}
            case "builtins.frozenset", (list(values),):
                self.spend(len(values))
                return frozenset(key(value) for value in values)
            case "torch.Size", (tuple(sizes),):
                return sizes
            case (("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar"), (Foreign() as dtype, data)):
                return _scalar(dtype, data)
        return None

    def _latin1(self, text: str) -> bytes:
        self.spend(len(text))
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise Fault("its pickle stores bytes as a text that is not Latin-1") from None

    def persistent(self, identity: object) -> object:
        """A storage, or the class of a module saved whole. The key is a key: no path is ever made of it."""
        if not isinstance(identity, tuple) or not identity:
            raise Fault(f"its pickle refers to something outside of it ({shown(identity)})")
        if identity[0] == "module" and len(identity) >= 2 and isinstance(identity[1], Foreign):
            return identity[1]
        if identity[0] != "storage" or len(identity) not in (5, 6):
            raise Fault("its pickle refers to something outside of it that is no storage")
        _, kind, key, _, count, *rest = identity
        name = kind.name if isinstance(kind, Foreign) else ""
        dtype = _STORAGES.get(name.rpartition(".")[2].removesuffix("Storage")) if name.startswith("torch.") else None
        if dtype is None or not isinstance(key, str) or not _is_size(count):
            raise Fault(f"its pickle declares a storage of an unknown kind ({shown(name or kind)})")
        storage = Storage(key, dtype, count * dtype.itemsize)
        known = self.storages.setdefault(key, storage)
        if known.nbytes != storage.nbytes:
            raise Fault(f"its storage {shown(key)!r} is declared with {known.nbytes} and with {storage.nbytes} bytes")
        return _view(storage, rest[0]) if rest and rest[0] is not None else storage

    def _tensor(self, name: str, args: tuple[object, ...]) -> object:
        """`(storage, offset, shape, strides, requires_grad, hooks, [dtype,] [metadata])`."""
        if len(args) < 4:
            raise Fault("its pickle has a tensor without shape or strides")
        storage, offset, shape, strides = args[:4]
        rest = args[6:]
        if not isinstance(storage, Storage):
            return Foreign(name, args)
        dtype = storage.dtype
        if name.endswith("_v3"):
            if not rest or not isinstance(rest[0], torch.dtype):
                raise Fault("its pickle has a tensor of an unknown type")
            dtype, rest = rest[0], rest[1:]
        if not (_is_size(offset) and _are_sizes(shape) and _are_sizes(strides) and len(shape) == len(strides)):
            raise Fault("its pickle has a tensor whose shape, strides or offset are no sizes")
        flags = rest[0] if rest and isinstance(rest[0], dict) else {}
        stored = Stored(storage, dtype, shape, strides, offset, bool(flags.get("conj")), bool(flags.get("neg")))
        _fits(stored)
        return stored


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 62


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= 64 and all(_is_size(part) for part in value)


def _view(storage: Storage, view: object) -> Storage:
    match view:
        case (_, int(first), int(count)) if _is_size(first) and _is_size(count):
            size = storage.dtype.itemsize
            if (first + count) * size <= storage.nbytes:
                return Storage(storage.key, storage.dtype, count * size, first * size)
    raise Fault(f"its pickle has a view that lies outside of its storage {shown(storage.key)!r}")


def _fits(stored: Stored) -> None:
    """Every value lies inside of the storage, and few are shown more often than they are stored."""
    numel = stored.numel
    if not numel:
        return
    last = stored.offset + sum((n - 1) * step for n, step in zip(stored.shape, stored.strides, strict=True))
    values = stored.storage.nbytes // stored.dtype.itemsize
    if last >= values:
        raise Fault(
            f"it has a tensor of shape {shown(stored.shape)} that reaches value {last + 1} of a storage of {values}"
        )
    if numel > max(values, EXPANDED):
        raise Fault(f"it has a tensor of shape {shown(stored.shape)} that shows {values} stored values over and over")


def plain_dtype(record: object) -> np.dtype | None:
    """numpy's type of numbers for `numpy.dtype('f4', ...)` with its state `(3, '<', ...)`; None if it is another."""
    if not (isinstance(record, Foreign) and record.name == "numpy.dtype" and record.args):
        return None
    code, order = record.args[0], "="
    if isinstance(record.state, tuple) and len(record.state) > 1 and record.state[1] in ("<", ">"):
        order = record.state[1]
    if not (isinstance(code, str) and code[:1] in _PLAIN_DTYPE and code[1:].isascii() and code[1:].isdigit()):
        return None
    try:
        return np.dtype(f"{order}{code}")
    except TypeError:
        return None


def _scalar(record: Foreign, data: object) -> object | None:
    dtype = plain_dtype(record)
    if dtype is None or not isinstance(data, bytes | str):
        return None
    raw = data if isinstance(data, bytes) else data.encode("latin-1", "replace")
    if len(raw) != dtype.itemsize:
        raise Fault("its pickle has a number of the wrong length")
    return np.frombuffer(raw, dtype)[0].item()


def array(record: Foreign, known: Known) -> np.ndarray | None:
    """The array that a record of numpy's stands for, None if its values are objects or texts. Raises Fault."""
    match record.name.rpartition(".")[2], record.args, record.state:
        case "_reconstruct", (Foreign(name="numpy.ndarray"), *_), (_, tuple() as shape, dtype, fortran, data):
            pass
        case "_frombuffer", (data, dtype, tuple() as shape, order), None:
            fortran = order == "F"
        case _:
            return None
    kind = plain_dtype(dtype)
    if kind is None or not record.name.startswith("numpy."):
        return None
    raw = data.encode("latin-1", "replace") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray) or not _are_sizes(shape) or prod(shape) * kind.itemsize != len(raw):
        raise Fault(f"it has an array of shape {shown(shape)} whose bytes do not fill it")
    known.spend(len(raw))
    values = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))
    return values.reshape(shape, order="F" if fortran else "C")
