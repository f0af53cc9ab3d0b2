"""The product is the same from Python and from the command line: one function a command, its options by name."""

import inspect
from pathlib import Path

import pytest
import typer

import smalti
from smalti.arguments import check_choice
from smalti.cli.main import app
from smalti.errors import ConfigError

DOORS = {
    "train": "train",
    "eval": "evaluate",
    "reconstruct": "reconstruct",
    "tokenize": "tokenize",
    "decode": "decode",
    "generate": "generate",
    "export": "export",
    "compress": "compress",
    "decompress": "decompress",
}
"""Command -> function of the package."""
RENAMED = {"class": "label", "from": "source", "targets": "target", "lambda": "price"}
"""Options that are words of Python, and the arguments that a command takes several of -> parameters."""
PRINTED = {"json", "help", "h"}
"""Options of how the command line prints."""
CALLBACKS = {"progress", "on_file", "on_row"}
"""Parameters that report what is done; the command line prints it."""


def options(command: str) -> set[str]:
    params = typer.main.get_command(app).commands[command].params
    names = {name for p in params for name in (p.opts if p.param_type_name == "option" else [p.name])}
    return {name.lstrip("-").replace("-", "_") for name in names} - PRINTED


@pytest.mark.parametrize(("command", "function"), DOORS.items())
def test_a_function_takes_the_options_of_its_command_by_name(command, function):
    found = {RENAMED.get(name, name) for name in options(command)}
    if command == "reconstruct":  # [TOKENIZER] INPUT... is one list on the command line
        found = found - {"names"} | {"tokenizer", "inputs"}
    if command == "eval":  # the result that the function returns writes itself
        found = found - {"out"}
    assert set(inspect.signature(getattr(smalti, function)).parameters) - CALLBACKS == found


@pytest.mark.parametrize(("command", "function"), DOORS.items())
def test_defaults_of_functions_are_those_of_the_commands(command, function):
    parameters = inspect.signature(getattr(smalti, function)).parameters
    for option in typer.main.get_command(app).commands[command].params:
        if option.param_type_name != "option":
            continue
        name = max(option.opts, key=len).lstrip("-").replace("-", "_")
        parameter = parameters.get(RENAMED.get(name, name))
        if parameter is None or parameter.default is inspect.Parameter.empty:
            continue
        given = str(option.default) if isinstance(option.default, Path) else option.default
        assert given == parameter.default or (given in (None, []) and parameter.default in ((), None)), name


def test_every_name_of_the_package_is_there_and_documented():
    for name in smalti.__all__:
        assert inspect.getdoc(getattr(smalti, name)), name


def least(command: str) -> list[tuple[str, float]]:
    """Return (parameter, least value) of the options of a command that have one."""
    params = typer.main.get_command(app).commands[command].params
    ranged = [
        (p, getattr(p, "min", getattr(getattr(p, "type", None), "min", None)))
        for p in params
        if p.param_type_name == "option"
    ]
    found = [(max(p.opts, key=len).lstrip("-").replace("-", "_"), number) for p, number in ranged]
    return [(RENAMED.get(name, name), number) for name, number in found if number is not None]


LEAST = [(command, *pair) for command in DOORS for pair in least(command)]


@pytest.mark.parametrize(("command", "name", "number"), LEAST)
def test_a_function_refuses_what_its_command_refuses(command, name, number, tmp_path):
    function = getattr(smalti, DOORS[command])
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is inspect.Parameter.empty]
    arguments = [[tmp_path / p.name] if p.name == "inputs" else tmp_path / p.name for p in needed]
    with pytest.raises(ConfigError, match=rf"^{name}: .* is below"):
        function(*arguments, **{name: number - 1})
    assert not list(tmp_path.iterdir())


def test_a_text_is_no_list(tmp_path):
    for call in (
        lambda: smalti.train("tiny", tmp_path / "run", set="steps=2"),
        lambda: smalti.reconstruct(None, "photo.jpg", tmp_path / "out"),
        lambda: smalti.decode(tmp_path, tmp_path / "out", key="a.png"),
    ):
        with pytest.raises(ConfigError, match=r"^(set|inputs|key): give a list"):
            call()


def test_a_choice_is_one_of_those_there_are():
    check_choice("model", "static", ("adaptive", "static"))
    with pytest.raises(ConfigError, match=r"^model: 'best' is none of 'adaptive', 'static'$"):
        check_choice("model", "best", ("adaptive", "static"))


def test_there_are_least_values_to_refuse():
    assert len(LEAST) > 20
