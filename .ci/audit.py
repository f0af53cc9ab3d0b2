#!/usr/bin/env python3
"""Compare versions of dependencies with a kept list of known faults, where no service can be asked.

    .ci/audit.py [INSTALLED.txt]

Compared are the versions of constraints/newest.txt and those of INSTALLED.txt, if given (as `pip freeze` writes it):
none may be in an affected range. Of the lower bounds of pyproject.toml each that is in one must say in the list, under
`database_specific.lower_bound`, why it stays; these are printed. The list, .ci/advisories.json, has records in the form
of OSV, and the day on which it was looked up.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def is_affected(version: Version, events: list[dict[str, str]]) -> bool:
    """Return whether a version is in a range: from `introduced` on, to before `fixed` or up to `last_affected`."""
    inside = False
    for event in events:
        ((kind, text),) = event.items()
        bound = Version(text)
        if kind == "introduced":
            inside = version >= bound
        elif inside and (version < bound or (kind == "last_affected" and version == bound)):
            return True
        else:
            inside = False
    return inside


def faults(name: str, version: str, advisories: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the advisories of a version of a package."""
    release = Version(Version(version).public)  # without +cpu
    for advisory in advisories:
        for affected in advisory["affected"]:
            spans = affected["ranges"] if affected["package"]["name"] == canonicalize_name(name) else ()
            if any(is_affected(release, span["events"]) for span in spans):
                yield advisory


def versions(path: Path, mark: str) -> dict[str, str]:
    """Return the versions of the lines NAME<mark>VERSION of a file."""
    found = re.findall(rf"^([A-Za-z0-9._-]+){mark}([^\s;#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def lower_bounds(text: str) -> dict[str, str]:
    """Return the lowest version of each requirement of a pyproject.toml (read as text: Python 3.10 has no tomllib)."""
    found = {}
    for line in re.findall(r'"([A-Za-z0-9_-]+(?:\[[^\]]*\])?[><=!~][^"]*)"', text):
        requirement = Requirement(line)
        for bound in requirement.specifier:
            if bound.operator in (">=", "=="):
                found[canonicalize_name(requirement.name)] = bound.version
    found.pop("python", None)
    return found


def main(installed: str | None = None) -> int:
    """Print what is found; return 1 where a version that is installed or recommended has a fault, or a bound has one
    without a reason."""
    data = json.loads((ROOT / ".ci" / "advisories.json").read_text(encoding="utf-8"))
    advisories, bad = data["advisories"], 0
    exact = {"constraints/newest.txt": versions(ROOT / "constraints" / "newest.txt", "<=")}
    if installed is not None:
        exact[installed] = versions(Path(installed), "==")
    compared = 0
    for where, pins in exact.items():
        for name, version in pins.items():
            compared += 1
            for advisory in faults(name, version, advisories):
                bad += 1
                print(f"{where}: {name} {version}: {advisory['id']}: {advisory['summary']}")
    bounds = lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name, version in bounds.items():
        for advisory in faults(name, version, advisories):
            reason = advisory.get("database_specific", {}).get("lower_bound")
            bad += reason is None
            print(f"lower bound: {name} {version}: {advisory['id']}: {advisory['summary']}: {reason or 'no reason'}")
    said = f"{compared} versions and {len(bounds)} lower bounds, {len(advisories)} advisories of {data['looked_up']}"
    print(f"{said}: {bad} to mend" if bad else f"{said}: none")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2]))
