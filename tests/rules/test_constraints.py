"""The versions that are tested are those that pyproject.toml allows: its lower bounds, and nothing beyond it."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.rules.tree import ROOT

if sys.version_info < (3, 11):
    pytest.skip("tomllib is of Python 3.11", allow_module_level=True)

import tomllib

NOT_TESTED = {"ray", "smalti", "diffusers", "openvino", "vector-quantize-pytorch"}
"""Ray takes 210 MB, and its tests are long ones; the last three are peers of the benchmarks."""
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


def audit(root, *arguments):
    ended = subprocess.run([sys.executable, root / ".ci" / "audit.py", *arguments], capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def test_no_version_has_a_known_fault_and_each_bound_that_has_one_says_why_it_stays():
    code, said = audit(ROOT)
    assert code == 0, said


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("constraints/newest.txt", "pillow<=13.0.0", "pillow<=12.2.0", "pillow 12.2.0: CVE-2026-59199"),
        ("constraints/newest.txt", "torch<=2.13.0", "torch<=2.12.1", "torch 2.12.1: GHSA-rrmf-rvhw-rf47"),
        ("pyproject.toml", "filelock>=3.20.3", "filelock>=3.20.1", "filelock 3.20.1: CVE-2026-22701"),
        ("pyproject.toml", "pyarrow>=17", "pyarrow>=14.0.0", "pyarrow 14.0.0: PYSEC-2023-238"),
        ("installed.txt", "werkzeug==3.1.6", "werkzeug==3.1.5", "werkzeug 3.1.5: GHSA-29vq-49wr-vm6x"),
        ("installed.txt", "protobuf==6.33.5", "protobuf==6.31.0", "protobuf 6.31.0: GHSA-8qvm-5x2c-j2w7"),
        ("installed.txt", "torch==2.13.0+cpu", "torch==2.12.0+cpu", "torch 2.12.0+cpu: GHSA-rrmf-rvhw-rf47"),
    ],
)
def test_a_version_with_a_known_fault_is_named(tmp_path, file, old, new, fault):
    for name in (".ci", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    installed = tmp_path / "installed.txt"
    installed.write_text("werkzeug==3.1.6\nprotobuf==6.33.5\ntorch==2.13.0+cpu\n")
    assert audit(tmp_path, installed)[0] == 0
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / file).write_text(text.replace(old, new), encoding="utf-8")
    code, said = audit(tmp_path, installed)
    assert code == 1
    assert fault in said


def test_calls_that_a_kept_advisory_calls_absent_are_absent():
    source = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    kept = json.loads((ROOT / ".ci" / "advisories.json").read_text(encoding="utf-8"))["advisories"]
    names = [(one["id"], name) for one in kept for name in one.get("database_specific", {}).get("absent", ())]
    assert len(names) > 20
    code = {path: re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL) for path, text in source.items()}
    wrong = [f"{path}: {name} ({id_})" for id_, name in names for path, text in code.items() if name in text]
    assert not wrong
