"""The check of annotations at run time, for the first calls of each function in each test."""

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from operator import attrgetter
from typing import Any

from beartype import beartype

CALLS = 16  # of one function in one test
checked: Counter[tuple[str, ...]] = Counter()
free: list[Any] = []
"""Functions that had their calls."""


def first_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the first `CALLS` calls since `begin_anew`: a shape that is wrong is wrong at once, and to check the
    thousand calls of a loop took longer than the calls.

    jaxtyping gives functions without a body, one for parameters and one for the result: what is not checked returns.
    """
    name = (function.__module__, function.__qualname__, *function.__annotations__)  # the latter tell the two apart
    check: Callable[..., Any] | None = None

    @wraps(function)
    def checked_at_first(*args: Any, **options: Any) -> Any:
        nonlocal check
        checked[name] += 1
        if checked[name] > CALLS:
            _set_free(function)
            return None
        if check is None:  # a millisecond for each of three thousand, of which a test calls a few
            check = beartype(function)
        return check(*args, **options)

    return checked_at_first


def begin_anew() -> None:
    """Check the first calls once more."""
    checked.clear()
    while free:
        del free.pop().__no_type_check__


def _set_free(stub: Callable[..., Any]) -> None:
    """Mark the function of a stub as `typing.no_type_check` does: jaxtyping then calls it and does nothing more, which
    is a third of the time of networks. One that is inside another function cannot be found, and is not marked."""
    try:
        found = attrgetter(stub.__qualname__)(sys.modules[stub.__module__])
    except (AttributeError, KeyError):
        return
    function = inspect.unwrap(found.fget if isinstance(found, property) else getattr(found, "__func__", found))
    same = getattr(function, "__qualname__", None) == stub.__qualname__ and function.__module__ == stub.__module__
    if same and inspect.isfunction(function) and not hasattr(function, "__no_type_check__"):
        function.__no_type_check__ = True  # type: ignore[attr-defined]
        free.append(function)
