"""Plain English and the field's words: what names and documents may not say, and how docstrings begin."""

import ast
import re

from tests.rules.tree import PACKAGE, ROOT, modules, parsed, place

BANNED = {
    "image": r"pictures?",
    "video or clip": r"films?|shots?",
    "sample or generate": r"draws?|drawn|drawing",
    "discriminator, or evaluator": r"judges?|players?|adversary|adversaries|opponents?",
    "fix": r"mends?|mended",
    "ship": r"comes? along",
    "uniform sample": r"even draws",
    "height and width": r"rows and columns",
    "codes or config": r"x_q|cfg",
}
"""What to say instead -> what not to say, as whole words of any case."""


def words() -> re.Pattern[str]:
    """Return the pattern of all banned words; one in quotes or backticks is a quotation."""
    return re.compile(r"(?<![\w/.\"'`-])(" + "|".join(BANNED.values()) + r")(?![\w/\"'`-])", re.IGNORECASE)


def texts() -> list[tuple[str, str]]:
    """Return (path, text) of all code and documents of the package but the authors' list of the media."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(PACKAGE.rglob("*.md"))]
    paths = [*modules("src"), *(path for path in documents if path.name != "ATTRIBUTION.md")]
    return [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def test_no_text_says_a_banned_word():
    found = [
        f"{path}:{number} {match[0]!r}: {line.strip()[:80]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        for match in words().finditer(line)
    ]
    assert not found, "\n".join(found)


def test_no_name_in_the_code_says_a_banned_word():
    """Names are looked at piece by piece: `draw_all` and `is_drawn` say `draw` as well."""
    found = []
    for path in modules("src"):
        tree = parsed(path)
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            name = getattr(node, "name", None) or getattr(node, "arg", None) or getattr(node, "id", None)
            if not isinstance(name, str) or isinstance(node, ast.alias) or name in imported:
                continue
            pieces = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
            defined = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if any(words().fullmatch(piece) for piece in pieces) or (defined and re.match(r"_?(get|do)_", name)):
                found.append(f"{place(path, node)} {name}")
    assert not found, "\n".join(sorted(set(found)))


def test_docstrings_can_be_read_alone():
    """None continues the name above it: no docstring begins with Of, That, What, And, or in lower case with a word."""
    first = re.compile(r"(Of|That|What|And|Which|Whose)\b")
    found = []
    for path in modules("src"):
        tree = parsed(path)
        for body in [node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.Module)]:
            for node in body:  # attribute docstrings
                text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
                if isinstance(text, str) and first.match(text.strip()):
                    found.append(f"{place(path, node)} {text.strip()[:70]}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and first.match(text):
                    found.append(f"{place(path, node)} {text[:70]}")
    assert not found, "\n".join(found)


OPTION = re.compile(r"(?<![\w`-])--[a-z]")
COMMAND = re.compile(r"\b(smalti [a-z]+|pip install|bash|torchrun)\b")


def options_in_texts(tree: ast.AST) -> list[tuple[ast.expr, str]]:
    """Return the texts of the code that name an option of the command line, but for docstrings and whole commands."""
    kept = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    kept |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found: list[tuple[ast.expr, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in kept:
            found.append((node, node.value))
        if isinstance(node, ast.JoinedStr) and id(node) not in kept:
            parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
            found.append((node, "".join(map(str, parts))))
    return [(node, text) for node, text in found if OPTION.search(text) and not COMMAND.search(text.split("--")[0])]


def test_messages_name_arguments_and_not_options():
    """Functions say `overwrite`, of which the command line makes --overwrite: a user of Python has no options."""
    library = [path for path in modules("src") if not path.is_relative_to(PACKAGE / "cli")]
    found = [
        f"{place(path, node)} {text[:70]}"
        for path in library
        if path.name not in ("html.py", "recipe.py")  # CSS; the command of a recipe
        for node, text in options_in_texts(parsed(path))
    ]
    assert not found, "\n".join(found)
    seen = options_in_texts(
        ast.parse('raise E(f"{x}: give --out", "run `smalti train --out x`", "pip install --no-deps a")')
    )
    assert [text for _, text in seen] == ["x: give --out"]


def test_the_words_are_seen_whole_and_in_any_case():
    seen = words().findall("A Picture, pictures; film-like a/film.mp4 `film` drawn Adversaries snapshot drawer")
    assert seen == ["Picture", "pictures", "drawn", "Adversaries"]
