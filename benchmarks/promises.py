"""The tests behind docs/guarantees.md, run and recorded: how many cases of each passed, what they printed, when.

    python -m benchmarks.promises                   those that are not slow: minutes
    python -m benchmarks.promises --slow            all
    python -m benchmarks.promises --slow TEST...    these

Each file of tests is one run of pytest; its rows in results/promises.json are replaced when it has ended. A test that
fails is recorded, too, and tests/rules does not let it pass.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import RESULTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
RECORD = RESULTS / "promises.json"


def named() -> list[str]:
    """Return the tests that the page names."""
    return sorted(set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))))


def files_of(tests: Sequence[str]) -> dict[Path, list[str]]:
    """Return the file of each test."""
    found: dict[Path, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        there = set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        if chosen := [test for test in tests if test in there]:
            found[path.relative_to(ROOT)] = chosen
    return found


def run(path: Path, tests: Sequence[str], *, slow: bool) -> Iterator[dict[str, object]]:
    """Run tests of one file and yield a row for each that had a case to run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "not gpu"] if slow else []
        where = [f"{path}::{test}" for test in tests]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, f"--junitxml={report}"]
            + ["-o", "junit_logging=system-out", *where],
            cwd=ROOT,
            check=False,
        )
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    for test in tests:
        mine = [case for case in cases if case.get("name", "").split("[")[0] == test]
        ran = [case for case in mine if case.find("skipped") is None]
        said = [line for case in ran for line in (case.findtext("system-out") or "").splitlines()]
        if ran:
            yield {
                "test": test,
                "file": path.as_posix(),
                "cases": len(ran),
                "passed": sum(case.find("failure") is None and case.find("error") is None for case in ran),
                "seconds": round(sum(float(case.get("time", 0)) for case in ran), 1),
                "said": [line.strip() for line in said if re.search(r"\d", line) and not line.startswith("---")][:12],
            }


def key(row: Mapping[str, object]) -> tuple[str, str]:
    """Return what a row is of: some names are those of tests in two files."""
    return str(row["test"]), str(row["file"])


def main(arguments: Sequence[str]) -> int:
    """Run the tests and keep their rows; return 1 where one has failed."""
    slow, chosen = "--slow" in arguments, [one for one in arguments if not one.startswith("--")]
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    failed = 0
    for path, tests in files_of(chosen or named()).items():
        for row in run(path, tests, slow=slow):
            rows = json.loads(RECORD.read_text())["rows"] if RECORD.is_file() else []
            before = next((old for old in rows if key(old) == key(row)), None)
            failed += row["passed"] != row["cases"]
            if before is not None and not slow and before["cases"] > row["cases"]:
                continue  # a run of all its cases is kept
            kept = [old for old in rows if key(old) != key(row) and old["test"] in named()]
            kept.append({**row, "commit": commit, "day": time.strftime("%Y-%m-%d")})
            kept.sort(key=key)
            RECORD.write_text(json.dumps({"note": __doc__.split("\n")[0], "rows": kept}, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
