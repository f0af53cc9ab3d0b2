"""Walks through what was read: tensors filled, tensors by name."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

from smalti.errors import IntegrityError
from smalti.inert.known import key
from smalti.inert.records import Fault, Foreign, shown

DEPTH = 128
"""Levels of the deepest tree that is read; a module saved whole takes three for each module within a module."""
VISITS = 1_000_000
"""Most entries that the parts with tensors may have, those that are there twice counted twice."""
T = TypeVar("T")
_BUSY = object()


class Copy:
    """A copy of a tree in which `leaf` has replaced what it knows; what was shared stays shared."""

    def __init__(self, leaf: Callable[[object], object | None]) -> None:
        self.leaf = leaf
        self.made: dict[int, Any] = {}

    def of(self, node: object, depth: int = 0) -> Any:
        """Raises Fault where the tree is too deep or a tuple holds itself."""
        if node is None or isinstance(node, str | int | float | complex | bytes):
            return node
        if depth > DEPTH:
            raise Fault(f"it is nested deeper than {DEPTH} levels")
        made = self.made.get(id(node))
        if made is _BUSY:
            raise Fault("it holds itself")
        if made is None:
            made = self._new(node, depth + 1)
            self.made[id(node)] = made
        return made

    def _new(self, node: object, depth: int) -> Any:
        if isinstance(node, dict):
            # Registered before it is filled, as it may hold itself.
            return self._filled(self._keep(node, {}), node, depth)
        if isinstance(node, list):
            values: list[object] = self._keep(node, [])
            values.extend(self.of(value, depth) for value in node)
            return values
        if isinstance(node, tuple | set | frozenset):
            self.made[id(node)] = _BUSY
            parts = [self.of(value, depth) for value in node]
            return tuple(parts) if isinstance(node, tuple) else type(node)(key(part) for part in parts)
        made = self.leaf(node)
        if made is None and isinstance(node, Foreign):
            made = self._keep(node, Foreign(node.name))
            made.args, made.state = self.of(node.args, depth), self.of(node.state, depth)
            made.items = self.of(node.items, depth)
        return node if made is None else made

    def _filled(self, made: dict[Any, Any], node: dict[Any, Any], depth: int) -> dict[Any, Any]:
        for name, value in node.items():
            made[key(self.of(name, depth))] = self.of(value, depth)
        return made

    def _keep(self, node: object, made: Any) -> Any:
        self.made[id(node)] = made
        return made


def branches(node: object) -> list[tuple[str, object]]:
    """What hangs below a node, by name: entries, items, or attributes; those of a module as its state dict has them."""
    if isinstance(node, dict):
        return [(str(name), value) for name, value in node.items() if isinstance(name, str | int)]
    if isinstance(node, list | tuple):
        return [(str(index), value) for index, value in enumerate(node)]
    if not isinstance(node, Foreign):
        return []
    state = node.state
    if isinstance(state, dict) and isinstance(state.get("_modules"), dict):
        parts = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
        return [pair for part in parts for pair in branches(part)]
    return branches(state) + branches(node.items)


def named(tree: object, kind: type[T]) -> dict[str, T]:
    """All of a kind by dotted name. Raises IntegrityError on two of one name, or a tree that never ends."""
    search = _Search(kind)
    search.below(tree, "")
    return search.found


class _Search(Generic[T]):
    """One walk; a part without any of the kind is walked once, however often it is there."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        self.found: dict[str, T] = {}
        self.barren: set[int] = set()
        self.above: set[int] = set()
        self.left = VISITS

    def below(self, node: object, name: str) -> None:
        if isinstance(node, self.kind):
            if self.found.setdefault(name, node) is not node:
                raise IntegrityError(f"two tensors have the name {shown(name)!r}; read one part alone")
            return
        if id(node) in self.barren or id(node) in self.above:
            return
        if len(self.above) >= DEPTH:
            raise IntegrityError(f"nested deeper than {DEPTH} levels; read one part alone")
        parts, count = branches(node), len(self.found)
        self.above.add(id(node))
        for part, value in parts:
            if isinstance(value, self.kind | dict | list | tuple | Foreign):
                self.below(value, f"{name}.{part}" if name else part)
        self.above.discard(id(node))
        if len(self.found) == count:
            self.barren.add(id(node))
            return
        self.left -= len(parts)
        if self.left < 0:
            raise IntegrityError("its parts hold each other over and over; read one part alone")


def tensors(tree: object) -> dict[str, Tensor]:
    """The tensors of a tree that was read, by dotted name: nested dicts, lists, TorchScript objects, whole modules."""
    return named(tree, Tensor)
