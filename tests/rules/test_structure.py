"""One meaning a name, no import circles: what a reader may rely on when following a name through the package."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.rules.tree import PACKAGE, modules, parsed

SOURCES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in modules("src")
}


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield the classes, functions and constants that a module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def homes(trees: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Return the modules that define each public name."""
    where = defaultdict(list)
    for module, tree in trees.items():
        for name in {name for name in public_names(tree) if not name.startswith("_")}:
            where[name].append(module)
    return where


def imported(module: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules of `known` that a module imports anywhere: at its top, in functions, for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner if inner in known else node.module} & known
    return found - {module}


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the sets of two or more modules that reach each other (transitive closure, then mutual reach)."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for after in graph.get(waiting.pop(), set()) - seen:
                seen.add(after)
                waiting.append(after)
        reach[start] = seen
    groups = {frozenset(m for m in graph if m in reach[start] and start in reach[m]) for start in graph}
    return [set(group) for group in groups if len(group) > 1]


def import_graph(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    return {module: imported(module, tree, set(trees)) for module, tree in trees.items()}


def test_a_public_name_is_defined_in_one_module():
    where = homes({module: parsed(path) for module, path in SOURCES.items()})
    twice = {name: found for name, found in where.items() if len(found) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(found)}" for name, found in sorted(twice.items()))


def test_imports_have_no_circle_function_level_imports_included():
    found = circles(import_graph({module: parsed(path) for module, path in SOURCES.items()}))
    assert not found, "\n".join(" <-> ".join(sorted(group)) for group in found)


def test_twins_and_circles_would_be_seen():
    trees = {
        "a": ast.parse("import b\nclass X: pass\ndef _y(): pass"),
        "b": ast.parse("def f():\n    from c import z\nX: int = 1\ndef _y(): pass"),
        "c": ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a"),
        "d": ast.parse("import a"),
    }
    assert homes(trees)["X"] == ["a", "b"]
    assert "_y" not in homes(trees)
    assert circles(import_graph(trees)) == [{"a", "b", "c"}]
    assert circles(import_graph({**trees, "c": ast.parse("")})) == []


def test_every_module_is_in_the_graph():
    assert Path(SOURCES["smalti"]).name == "__init__.py"
    assert len(SOURCES) > 50
