"""The versions that are tested are those that pyproject.toml allows: its lower bounds, and nothing beyond it."""

import re
import sys

import pytest

from tests.rules.tree import ROOT

if sys.version_info < (3, 11):
    pytest.skip("tomllib is of Python 3.11", allow_module_level=True)

import tomllib

NOT_TESTED = {"ray", "smalti", "vector-quantize-pytorch"}
"""Ray takes 210 MB, and its tests are long ones; the last is a peer of the benchmarks."""
LINE = re.compile(r"([A-Za-z0-9_-]+)(\[.*\])?([<>=].*)?")


def parts(line: str) -> tuple[str, dict[str, str]]:
    """(name, {operator: version}) of a requirement."""
    name, _, bounds = LINE.fullmatch(line.replace(" ", "")).groups()
    return name.lower().replace("_", "-"), dict(re.findall(r"([<>=]=?)([^,<>=]+)", bounds or ""))


def version(text: str) -> tuple[int, ...]:
    """The numbers of a release without zeros at its end."""
    numbers = [int(number) for number in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def required() -> dict[str, dict[str, str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {name: bounds for name, bounds in map(parts, lines) if name not in NOT_TESTED}


def pinned(name: str) -> dict[str, dict[str, str]]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return dict(parts(line) for line in lines if line and not line.startswith("#"))


def test_the_lowest_versions_are_the_lower_bounds():
    bounds, lowest = required(), pinned("lowest")
    assert bounds.keys() <= lowest.keys()
    wrong = [n for n in bounds if version(bounds[n].get(">=", bounds[n].get("==", ""))) != version(lowest[n]["=="])]
    assert not wrong


def test_the_newest_versions_are_allowed():
    bounds, newest = required(), pinned("newest")
    assert bounds.keys() == newest.keys()
    for name, allowed in bounds.items():
        assert version(allowed[">="]) <= version(newest[name]["<="]), name
        assert "<" not in allowed or version(newest[name]["<="]) < version(allowed["<"]), name


def test_nothing_takes_a_newer_torch_away():
    assert required()["torch"].keys() == {">="}
