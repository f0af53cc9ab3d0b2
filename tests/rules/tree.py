"""What the rules are about: the files of this checkout."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "smalti"


def modules(*folders: str) -> list[Path]:
    """The Python files under `folders` of the checkout."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, which no rule changes; it is kept, for eight rules read all of them."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path, node: ast.AST | int) -> str:
    """`file:line`, as editors and terminals know it."""
    line = node if isinstance(node, int) else getattr(node, "lineno", 1)
    return f"{path.relative_to(ROOT)}:{line}"


def project_texts() -> Iterator[tuple[Path, str]]:
    """The text files that belong to the project: those that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        try:
            yield path, path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a picture or a golden, or deleted and not yet committed


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in the root of the checkout; its output as text."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def told(found: subprocess.CompletedProcess[str]) -> str:
    """What a failed command said."""
    return f"\n{found.stdout}\n{found.stderr}"
