"""The check of annotations at run time, for the first calls of each function in each test."""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import beartype

CALLS = 16  # of one function in one test
checked: Counter[tuple[str, ...]] = Counter()


def first_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the first `CALLS` calls since `checked` was cleared: a shape that is wrong is wrong at once, and to check
    the thousand calls of a loop took longer than the calls.

    jaxtyping gives functions without a body, one for parameters and one for the result: what is not checked returns.
    """
    name = (function.__module__, function.__qualname__, *function.__annotations__)  # the latter tell the two apart
    check: Callable[..., Any] | None = None

    @wraps(function)
    def checked_at_first(*args: Any, **options: Any) -> Any:
        nonlocal check
        checked[name] += 1
        if checked[name] > CALLS:
            return None
        if check is None:  # a millisecond for each of three thousand, of which a test calls a few
            check = beartype(function)
        return check(*args, **options)

    return checked_at_first
