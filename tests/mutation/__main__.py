"""`python -m tests.mutation [TEXT ...]`: break the package by hand-written mutants, one at a time, and run their tests.

A mutant replaces one text of one file in a copy of the package; the tests that should see it run against the copy and
must fail. TEXT chooses mutants whose file or replacement contains it. Survivors are printed at the end, and the exit
code is their number (at most 100). `tests/rules/test_mutants.py` checks that every mutant still applies.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.mutation.mutants import MUTANTS, PACKAGE

ROOT = Path(__file__).parents[2]
OPTIONS = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib",
           "-W", "ignore::pytest.PytestAssertRewriteWarning", "-m", "not slow and not gpu")  # fmt: skip
"""Those of the project, less the checks of shapes in annotations, which cost seconds a mutant."""
PREPARED = ("av", "hypothesis", "PIL.Image", "pydantic", "pyarrow.parquet", "safetensors.torch", "sympy", "yaml")
"""Imported once, before any child is forked."""


def copy_of_package(target: Path) -> Path:
    """Copy the sources; what is not Python (media, weights) is linked."""

    def copy(source: str, to: str) -> None:
        if source.endswith(".py"):
            shutil.copyfile(source, to)
        else:
            Path(to).symlink_to(source)

    shutil.copytree(PACKAGE, target / "smalti", copy_function=copy, ignore=shutil.ignore_patterns("__pycache__"))
    return target / "smalti"


def write(path: Path, text: str, number: int) -> None:
    """Write a module with a time of its own: bytecode of another text of the same second and length is not taken."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, (number, number))


def run_tests(tests: Sequence[str], src: Path, seconds: float) -> tuple[bool, str]:
    """Run tests against the copy in `src`; return whether they failed, and the first that did.

    A child process runs them, forked from this one, which has imported torch already and nothing of the package.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            signal.alarm(int(seconds))
            sys.path[:0] = [str(src)]
            sys.dont_write_bytecode, sys.pycache_prefix = False, str(src / "bytecode")
            os.environ["PYTHONPATH"] = f"{src}{os.pathsep}{ROOT}"  # of processes that tests start
            os._exit(pytest.main([*OPTIONS, *tests]))
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().splitlines()
    if code == -signal.SIGALRM:
        return True, f"no end within {seconds:.0f} s"
    by = next((line[:150] for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    if code not in (0, 1, 2) or (code != 0 and not by):
        raise SystemExit(f"{' '.join(tests)}: pytest ended with {code}\n" + "\n".join(lines[-40:]))
    return code != 0, by


def main() -> int:
    """Run the mutants that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("text", nargs="*", help="part of a mutant's file or replacement")
    parser.add_argument("--seconds", type=float, default=600, help="time for the tests of a mutant")
    options = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for name in PREPARED:
        importlib.import_module(name)
    chosen = [m for m in MUTANTS if not options.text or any(text in f"{m.file} {m.new}" for text in options.text)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        package = copy_of_package(Path(folder))
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            failed, by = run_tests(tests, package.parent, options.seconds)
            if failed:
                raise SystemExit(f"without any mutant, {' '.join(tests)} fail: {by}")
        for number, mutant in enumerate(chosen, start=1):
            path = package / mutant.file
            original = path.read_text(encoding="utf-8")
            write(path, mutant.applied(original), 2 * number)
            began = time.monotonic()
            killed, by = run_tests(mutant.tests, package.parent, options.seconds)
            write(path, original, 2 * number + 1)
            word = "killed" if killed else "SURVIVED"
            print(f"{number}/{len(chosen)} {word} {time.monotonic() - began:.0f}s {mutant}: {by}", flush=True)
            if not killed:
                survivors.append(mutant)
    share = 1 - len(survivors) / max(1, len(chosen))
    print(f"{len(chosen)} mutants, {len(chosen) - len(survivors)} killed ({share:.1%})")
    for mutant in survivors:
        print(f"survived: {mutant}")
    return min(100, len(survivors))


if __name__ == "__main__":
    sys.exit(main())
