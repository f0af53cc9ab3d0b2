"""Checks of the arguments of the product's functions, by their own annotations: one line that names the argument."""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from smalti.errors import ConfigError
from smalti.text import nearest

_PLAIN: Mapping[object, tuple[type, str]] = {
    str: (str, "text"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "True or False"),
    NoneType: (NoneType, "None"),
}
"""Annotation -> what it takes, and its words."""


def check_arguments(
    function: Callable[..., Any], values: Mapping[str, object], remedies: Mapping[str, str] | None = None
) -> None:
    """Raise ConfigError, naming the argument, where one of `values` is not what `function` is annotated with.

    Text must not be empty, nor a list unless its default is; numbers are finite. `remedies` say, by the name of an
    argument, what to give instead. A function calls this first, with its `locals()`.
    """
    for name, (annotation, default) in _parameters(function).items():
        value = values[name]
        if value is default or (_is_empty(value) and _is_empty(default)) or _fits(value, annotation):
            continue
        remedy = f"; {remedies[name]}" if remedies is not None and name in remedies else ""
        choices = [choice for choice in _choices(annotation) if choice is not None]
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"{name}: is empty text{remedy}")
        if isinstance(value, str | bytes) and any(_is_list(one) for one in _alternatives(annotation)):
            raise ConfigError(f"{name}: give a list, as [{value!r}]{remedy}")
        if isinstance(value, Sequence) and not value and any(_is_list(one) for one in _alternatives(annotation)):
            raise ConfigError(f"{name}: is empty; give at least one{remedy}")
        if choices and not remedy:
            check_choice(name, value, choices)
        raise ConfigError(f"{name}: must be {_words(annotation)} (found {_quotation(value)}){remedy}")


def check_out_folder(name: str, folder: str | os.PathLike[str] | None) -> None:
    """Raise ConfigError, naming the argument, where a folder to write is a file, or below one; None is always right."""
    if folder is None:
        return
    path = Path(folder)
    for place in (path, *path.parents):
        if place.is_dir():
            return
        if os.path.lexists(place):
            raise ConfigError(f"{name}: {place} is a file; give a folder")


def check_least(arguments: Mapping[str, tuple[int | float | None, int | float]]) -> None:
    """Raise ConfigError, naming the argument, for one below the least value that it may have; None is always right."""
    for name, (value, least) in arguments.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name}: {value} is below {least:g}, the least that is allowed")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ConfigError, naming the argument and the nearest choice, for a value that is none of `choices`."""
    if value not in choices:
        near = nearest(value, map(str, choices)) if isinstance(value, str) else ""
        raise ConfigError(f"{name}: {_quotation(value)} is none of {', '.join(map(repr, choices))}{near}")


@lru_cache(maxsize=64)
def _parameters(function: Callable[..., Any]) -> dict[str, tuple[object, object]]:
    """Return annotation and default of each parameter of a function; one without a default has `Parameter.empty`."""
    hints = get_type_hints(function)
    return {
        name: (hints.get(name, object), parameter.default)
        for name, parameter in signature(function).parameters.items()
        if name not in ("self", "cls") and parameter.kind is not Parameter.VAR_POSITIONAL
    }


def _is_empty(value: object) -> bool:
    return isinstance(value, list | tuple) and not value


def _alternatives(annotation: object) -> list[object]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in _alternatives(part)]
    return [annotation]


def _choices(annotation: object) -> list[object]:
    return [c for one in _alternatives(annotation) if get_origin(one) is Literal for c in get_args(one)]


def _is_list(annotation: object) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Sequence) and not issubclass(origin, str | tuple)


def _fits(value: object, annotation: object) -> bool:
    return any(_fits_one(value, one) for one in _alternatives(annotation))


def _fits_one(value: object, one: object) -> bool:
    origin, parts = get_origin(one), get_args(one)
    if one in (object, Any):
        return True
    if one in _PLAIN:
        fits = isinstance(value, _PLAIN[one][0]) and isinstance(value, bool) == (one is bool)
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return fits and not (isinstance(value, str) and not value.strip())
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in parts)
    if origin is tuple and (len(parts) < 2 or parts[1] is not ...):
        return (
            isinstance(value, tuple | list)
            and len(value) == len(parts)
            and all(_fits(item, part) for item, part in zip(value, parts, strict=True))
        )
    if _is_list(one) or origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
            return False
        return all(_fits(item, parts[0]) for item in value if parts)
    kind = origin or one
    if _is_callback(kind):
        return callable(value)
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return isinstance(value, os.PathLike)
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_callback(kind: object) -> bool:
    return kind is Callable or getattr(kind, "_is_protocol", False)


def _words(annotation: object) -> str:
    words = [_words_of(one) for one in _alternatives(annotation)]
    words = [word for word in dict.fromkeys(words) if word != "None"] + ["None"] * ("None" in words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words_of(one: object) -> str:
    origin, parts = get_origin(one), get_args(one)
    if one in _PLAIN:
        return _PLAIN[one][1]
    if origin is Literal:
        return ", ".join(map(repr, parts))
    if origin is tuple and (len(parts) < 2 or parts[1] is not ...):
        return f"({', '.join(_words(part) for part in parts)})"
    if _is_list(one) or origin is tuple:
        return f"a list of {_words(parts[0])}" if parts else "a list"
    kind = origin or one
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if _is_callback(kind):
        return "a function"
    return str(getattr(kind, "__qualname__", kind))


def _quotation(value: object) -> str:
    plain = isinstance(value, str | int | float | bool | None | list | tuple | os.PathLike)
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= 60 and "\n" not in text else f"{type(value).__name__} {text[:50]!r}..."
