"""Checks of arguments that the functions behind the commands share: the command line's own ranges, for Python."""

from collections.abc import Collection, Mapping

from smalti.errors import ConfigError


def check_least(arguments: Mapping[str, tuple[int | float | None, int | float]]) -> None:
    """Raise ConfigError, naming the argument, for one below the least value that it may have; None is always right."""
    for name, (value, least) in arguments.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name}: {value} is below {least:g}, the least that is allowed")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ConfigError, naming the argument, for a value that is none of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(map(repr, choices))}")


def check_list(name: str, value: object) -> None:
    """Raise ConfigError, naming the argument, for one text where a list of them is meant."""
    if isinstance(value, str | bytes):
        raise ConfigError(f"{name}: give a list, as [{value!r}]")
