"""Walk the opcodes of a pickle without building a single object of anybody's.

`pickletools.genops` only splits the bytes; nothing is imported, looked up or called. Plain values become plain values,
names become `Foreign`, and the few names that stand for data (`known`) become data.
"""

import pickletools
from collections.abc import Callable
from io import BufferedReader, BytesIO
from typing import IO, Any, cast

from smalti.inert.known import Known, key
from smalti.inert.records import Fault, Foreign, shown

LINE = 1 << 20
"""Bytes of the longest line (a name, a number in digits) that is read."""
OPCODES = 20_000_000
"""Most that a pickle may have; the largest envelope seen, 6 GB with 40 k log entries, has 300 thousand."""

_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"}
    | {"SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"}
    | {"BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], object]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Window:
    """A file as `genops` reads it, that never asks for more memory than there are bytes."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self.file = file
        self.size = size

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        return self.file.read(count if count < 4096 else min(count, self.size - self.file.tell()))

    def readline(self) -> bytes:
        """A line, or its first MiB."""
        return self.file.readline(LINE)

    def tell(self) -> int:
        """The place in the file."""
        return self.file.tell()


class Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self, source: BytesIO | Window) -> object:
        """The value of the pickle at `source`, which is left behind its end. Raises Fault."""
        count = 0
        try:
            for opcode, arg, place in pickletools.genops(cast("IO[bytes]", source)):
                count += 1
                if count > OPCODES:
                    raise Fault(f"its pickle has more than {OPCODES:,} steps")
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, arg, place)
        except Fault:
            raise
        # What genops raises on bytes that are no pickle; a Warning of an odd escape where warnings are errors.
        except (ValueError, OverflowError, MemoryError, Warning) as error:
            raise Fault(f"its pickle is damaged ({shown(error)})") from None
        raise Fault("its pickle has no end")

    def _step(self, name: str, arg: Any, place: int | None) -> None:
        if name in _VALUES:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif not (self._shape(name) or self._remember(name, arg) or self._fill(name) or self._call(name, arg)):
            raise Fault(f"its pickle has the step {name} at byte {place}, which no saved weights have")

    def _pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Fault("its pickle takes a value that is not there")
        return self.stack.pop()

    def _top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Fault("its pickle takes a value that is not there")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            raise Fault("its pickle goes back to a mark that is not there")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _shape(self, name: str) -> bool:
        """Steps that move or bind what is on the stack."""
        if name in _TUPLES:
            parts = [self._pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(parts)))
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            self.stack.append(tuple(self._since_mark()))
        elif name == "LIST":
            self.stack.append(self._since_mark())
        elif name == "DICT":
            self.stack.append(self._pairs({}, self._since_mark()))
        elif name == "FROZENSET":
            self.stack.append(frozenset(key(value) for value in self._since_mark()))
        elif name == "POP_MARK" or (name == "POP" and self.marks and self.marks[-1] == len(self.stack)):
            self._since_mark()
        elif name == "POP":
            self._pop()
        elif name == "DUP":
            self.stack.append(self._top())
        else:
            return name in ("PROTO", "FRAME")
        return True

    def _remember(self, name: str, arg: Any) -> bool:
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if arg not in self.memo:
                raise Fault("its pickle takes a value that was never kept")
            self.stack.append(self.memo[arg])
        else:
            return False
        return True

    def _fill(self, name: str) -> bool:
        if name == "APPEND":
            values = [self._pop()]
            self._extend(self._top(), values)
        elif name in ("APPENDS", "ADDITEMS"):
            values = self._since_mark()
            self._extend(self._top(), values)
        elif name in ("SETITEM", "SETITEMS"):
            flat = self._since_mark() if name == "SETITEMS" else [self._pop(), self._pop()][::-1]
            target = self._top()
            if isinstance(target, Foreign):
                target.items = {} if target.items is None else target.items
                target = target.items
            self._pairs(target, flat)
        else:
            return False
        return True

    def _extend(self, target: object, values: list[Any]) -> None:
        if isinstance(target, Foreign):
            target.items = [] if target.items is None else target.items
            target = target.items
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(key(value) for value in values)
        else:
            raise Fault(f"its pickle appends to a {type(target).__name__}")

    def _pairs(self, target: object, flat: list[Any]) -> object:
        if not isinstance(target, dict) or len(flat) % 2:
            raise Fault("its pickle sets entries of what is no dict")
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            target[key(name)] = value
        return target

    def _call(self, name: str, arg: Any) -> bool:
        """Steps with which a common reader imports and calls; here they write records."""
        if name == "GLOBAL":
            self.stack.append(self.known.name(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            last, first = self._pop(), self._pop()
            if not (isinstance(first, str) and isinstance(last, str)):
                raise Fault("its pickle names a class by what is no text")
            self.stack.append(self.known.name(first, last))
        elif name in ("REDUCE", "NEWOBJ"):
            args, what = self._pop(), self._pop()
            self.stack.append(self.known.call(what, _tuple(args)))
        elif name == "NEWOBJ_EX":
            named, args, what = self._pop(), self._pop(), self._pop()
            self.stack.append(self.known.call(what, (*_tuple(args), named) if named else _tuple(args)))
        elif name == "OBJ":
            what, *rest = self._since_mark() or [None]
            self.stack.append(self.known.call(what, tuple(rest)))
        elif name == "INST":
            what = self.known.name(*arg.split(" ", 1))
            self.stack.append(self.known.call(what, tuple(self._since_mark())))
        elif name == "BUILD":
            state, target = self._pop(), self._top()
            if isinstance(target, Foreign):
                target.state = state
            # Attributes of a dict or a tensor (`_metadata` of a state dict) are no data.
        elif name in ("PERSID", "BINPERSID"):
            self.stack.append(self.known.persistent(arg if name == "PERSID" else self._pop()))
        else:
            return False
        return True


def _tuple(args: object) -> tuple[object, ...]:
    if not isinstance(args, tuple):
        raise Fault("its pickle gives arguments that are no tuple")
    return args
