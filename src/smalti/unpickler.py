"""Pickles as data: nothing that they name is imported, looked up or called.

The standard library's own unpickler walks them, with every step that would import, call, set attributes or hash
replaced. `torch.load(weights_only=True)` is no way around that: it reads one protocol of six and no TorchScript, and a
file of 400 bytes with a key that takes 2^60 steps to hash keeps it busy for ever.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from mmap import mmap
from typing import IO, Any, ClassVar, TypeGuard, cast

import torch
from torch import Tensor

from smalti.errors import IntegrityError

READS = 1_500_000
"""Most reads of one pickle, one to three a step: 1 to 4 s. The largest checkpoint seen, 6 GB with 40 k log entries, has
700 k."""
LINE = 1 << 20
"""Bytes of the longest line (a name, a number in digits) of a pickle."""
KEY_PARTS = 20_000
"""Most parts that the tuples among the keys of one pickle have in all; their hashes can be made to collide."""
EXPANDED = 1 << 24
"""Values that a tensor may show beyond those stored (strides of 0); more is taken for a bomb."""

_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()}
_STORAGES |= {"UntypedStorage": torch.uint8, "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8}
_STORAGES |= {"QInt32Storage": torch.int32}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "collections.Counter"}
# A parameter is its tensor, a list with a type tag is the list, a set is the list of its members.
_FIRST_ARGUMENT = {
    "builtins.set",
    "builtins.frozenset",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.restore_type_tag",
}


@dataclass(eq=False, slots=True, repr=False)
class Foreign:
    """A class, function or object of somebody else's program: its name and what it was given. Never looked up."""

    name: str
    """`module.name`; a call of something that is itself the result of a call is named `(call)`."""
    args: tuple[object, ...] | None = None
    """Arguments of the call; None where only the name was stored."""
    state: object = None
    """The argument of `__setstate__`, or the attributes."""
    items: dict[object, object] | list[object] | None = None
    """Entries, where the object is a kind of dict, list or set."""

    def __repr__(self) -> str:
        return f"Foreign({self.name!r})"  # its content may hold itself, or itself a billion times


def shown(text: object) -> str:
    """Cut a foreign text to one short line of ASCII, for messages."""
    line = ascii(str(text)[:81]).replace("\\\\", "\\")[1:-1]
    return line if len(line) <= 80 else line[:77] + "..."


class _Source:
    """The bytes of a pickle as the unpickler reads them, which counts its reads."""

    def __init__(self, source: mmap | BytesIO) -> None:
        self.source = source
        self.left = READS

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise IntegrityError(f"its pickle takes more than {READS:,} reads")

    def read(self, count: int) -> bytes:
        self._count()
        return self.source.read(count)  # at most what is there

    def readline(self) -> bytes:
        self._count()
        line = self.source.readline()
        if len(line) > LINE:
            raise IntegrityError(f"its pickle has a line of {len(line):,} bytes")
        return line


class _Memo(dict[int, Any]):
    def __setitem__(self, number: int, value: Any) -> None:
        if number >= 1 << 32:  # numbers of many digits can be chosen so that their hashes collide
            raise IntegrityError("its pickle keeps a value under a number beyond 32 bits")
        super().__setitem__(number, value)


class Unpickler(pickle._Unpickler):
    """The standard library's unpickler, in its form in Python, without what imports, calls, hashes or sets attributes.

    Names become records, calls of a few known names plain values, all other calls records. (The form in C can neither
    be changed so nor bounded: one step that keeps a value under a high number takes 32 GB.)
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, source: mmap | BytesIO, size: int, bytes_of: Callable[[str, int], Tensor]) -> None:
        """`bytes_of(key, nbytes)` gives the bytes of a storage."""
        super().__init__(cast("IO[bytes]", _Source(source)), encoding="latin1")
        self.memo = _Memo()
        self.bytes_of = bytes_of
        self.storages: dict[str, Tensor] = {}
        self.bytes_left = size
        self.key_parts_left = KEY_PARTS

    def spend(self, nbytes: int) -> None:
        """Count what a conversion copies, so that a small file cannot ask for much."""
        self.bytes_left -= nbytes
        if self.bytes_left < 0:
            raise IntegrityError("its pickle would unfold to more than the file holds")

    def find_class(self, module: str, name: str) -> Any:
        """Write a name down. Python 2 called `builtins` `__builtin__`."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        return _DTYPES.get(full) or Foreign(full)

    def persistent_load(self, pid: Any) -> Any:
        """Give the values of a storage, or the class of a module saved whole."""
        match pid:
            case ("module", Foreign() as what, *_):
                return what
            case ("storage", Foreign(name=name), str(key), _, count, *view) if are_sizes((count,)):
                dtype = _STORAGES.get(name.rpartition(".")[2])
                if dtype is None or not name.startswith("torch."):
                    raise IntegrityError(f"its pickle declares a storage of an unknown kind ({shown(name)})")
                if key not in self.storages:
                    self.storages[key] = self.bytes_of(key, count * dtype.itemsize).view(dtype)
                values = self.storages[key].view(dtype)
                if values.numel() != count:
                    raise IntegrityError(f"its storage {shown(key)!r} is declared with two sizes")
                return _view(values, view[0]) if view and view[0] is not None else values
        raise IntegrityError("its pickle refers to something outside of it")

    def _call(self, what: object, args: object) -> object:
        """Give the plain value that a call stands for, or a record of the call."""
        if not isinstance(what, Foreign) or not isinstance(args, tuple):
            raise IntegrityError(f"its pickle calls a {type(what).__name__} with a {type(args).__name__}")
        if what.args is not None:
            return Foreign("(call)", (what, args))
        match what.name, args:
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (Tensor() as storage, *rest):
                return _tensor(storage, storage.dtype, rest[:3], rest[5:])
            case "torch._utils._rebuild_tensor_v3", (Tensor() as storage, _, _, _, _, _, torch.dtype() as dtype, *rest):
                return _tensor(storage, dtype, args[1:4], rest)
            case "torch._tensor._rebuild_from_type_v2", (function, _, arguments, _):
                return self._call(function, arguments)
            case (("_codecs.encode" | "builtins.bytearray"), (str(text), "latin1" | "latin-1")):
                self.spend(len(text))
                return text.encode("latin-1")
            case (("builtins.bytes" | "builtins.bytearray"), ()):
                return b""
            case "builtins.bytearray", (bytes(data),):
                return data
            case name, (first, *_) if name in _FIRST_ARGUMENT:
                return first
            case name, () | (Foreign() | None,) if name in _DICTS:  # the factory of a defaultdict
                return {}
            case name, (dict() as entries,) if name in _DICTS:
                return entries
            case name, (list() as pairs,) if name in _DICTS:
                self.spend(len(pairs))
                return {self._key(key): value for key, value in pairs}
        return Foreign(what.name, args)

    def _key(self, value: Any) -> Any:
        """Refuse as a key what takes long to hash, or can be chosen so that hashes collide."""
        if isinstance(value, tuple):
            self.key_parts_left -= 1 + len(value)
            if self.key_parts_left < 0:
                raise IntegrityError("the keys of its dicts are tuples that are too deep or too long")
            for part in value:
                self._key(part)
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise IntegrityError("a key of a dict is a number beyond 64 bits")
        elif not isinstance(value, str | bytes | int | float | torch.dtype | Foreign | Tensor | None):
            raise IntegrityError(f"a key of a dict is a {type(value).__name__}")
        return value

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _new_with_names(self) -> None:
        names, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], (args, names) if names else args)

    def _instantiate(self, klass: object, args: list[object]) -> None:
        self.stack.append(self._call(klass, tuple(args)))

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Foreign):  # attributes of a dict or a tensor (`_metadata`) are no data
            self.stack[-1].state = state

    def _set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target.items = {} if target.items is None else target.items
            target = target.items
        if not isinstance(target, dict):
            raise IntegrityError("its pickle sets entries of what is no dict")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            target[self._key(key)] = value

    def _add_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target.items = [] if target.items is None else target.items
            target = target.items
        if not isinstance(target, list):
            raise IntegrityError(f"its pickle appends to a {type(target).__name__}")
        target.extend(values)

    def _dict_of_marked(self) -> None:
        flat = self.pop_mark()
        self.stack.append({})
        self._set_items(flat)

    dispatch |= {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _new_with_names,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: lambda self: self._set_items([self.stack.pop(), self.stack.pop()][::-1]),
        pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
        pickle.DICT[0]: _dict_of_marked,
        pickle.APPEND[0]: lambda self: self._add_items([self.stack.pop()]),
        pickle.APPENDS[0]: lambda self: self._add_items(self.pop_mark()),
        # Sets are read as lists: nothing is hashed. Bytearrays as bytes: no memory is taken before there is content.
        pickle.EMPTY_SET[0]: dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: lambda self: self._add_items(self.pop_mark()),
        pickle.FROZENSET[0]: dispatch[pickle.LIST[0]],
        pickle.BYTEARRAY8[0]: dispatch[pickle.BINBYTES8[0]],
        pickle.FRAME[0]: lambda self: self.read(8),  # a hint to read ahead, which would hide steps from `READS`
    }


def are_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    """Say whether these are whole numbers from 0 on that could be a shape, strides or offsets."""
    return isinstance(values, tuple) and len(values) <= 64 and all(type(n) is int and 0 <= n < 1 << 62 for n in values)


def _view(values: Tensor, view: Any) -> Tensor:
    match view:
        case (_, first, count) if are_sizes((first, count)) and first + count <= values.numel():
            return values[first : first + count]
    raise IntegrityError("its pickle has a view that lies outside of its storage")


def _tensor(storage: Tensor, dtype: torch.dtype, layout: Sequence[Any], rest: Sequence[Any]) -> Tensor:
    """Lay a tensor over a storage by its offset, shape and strides."""
    offset, shape, strides = layout
    if not (are_sizes((offset,)) and are_sizes(shape) and are_sizes(strides) and len(shape) == len(strides)):
        raise IntegrityError("its pickle has a tensor whose shape, strides or offset are no sizes")
    first = storage.storage_offset() * storage.itemsize // dtype.itemsize + offset
    last = first + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    count, numel = storage.untyped_storage().nbytes() // dtype.itemsize, prod(shape)
    if numel and last >= count:
        raise IntegrityError(f"it has a tensor that reaches value {last + 1} of a storage of {count}")
    if numel > max(count, EXPANDED):
        raise IntegrityError(f"it has a tensor that shows {count} stored values over and over")
    tensor = torch.empty(0, dtype=dtype).set_(storage.untyped_storage(), first, shape, strides)
    flags = rest[0] if rest and isinstance(rest[0], dict) else {}
    tensor = tensor.conj() if flags.get("conj") else tensor
    return torch._neg_view(tensor) if flags.get("neg") else tensor
