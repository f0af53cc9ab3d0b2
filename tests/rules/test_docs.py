"""What the documents say is there: links, verbs, the version."""

import json
import re

import pytest

import smalti
from tests.rules.tree import PACKAGE, ROOT, place, project_texts

DOCUMENTS = [(p, text) for p, text in project_texts() if p.suffix == ".md" and not p.is_relative_to(PACKAGE)]
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^( *)(```|~~~)(.*?)$\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s/;&|(])smalti +([a-z][a-z-]*)", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The names that a document's headings have as link targets."""
    bare = FENCE.sub("", text)
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", bare, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def test_the_documents_are_there():
    names = {path.relative_to(ROOT).as_posix() for path, _ in DOCUMENTS}
    assert {"README.md", "CHANGELOG.md"} <= names
    assert any(name.startswith("docs/") for name in names)


@pytest.mark.parametrize(("path", "text"), DOCUMENTS, ids=[str(p.relative_to(ROOT)) for p, _ in DOCUMENTS])
def test_every_link_of_a_document_leads_somewhere(path, text):
    broken = []
    blank = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in LINK.finditer(blank):
        target, _, anchor = match[1].partition("#")
        if re.match(r"[a-z]+:", target):
            continue  # an address of the web: tests need no network
        there = path if not target else path.parent / target
        if not there.exists():
            broken.append(f"{place(path, line_of(text, match.start()))} {match[1]}: no such file")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text(encoding="utf-8")):
            broken.append(f"{place(path, line_of(text, match.start()))} {match[1]}: no such heading")
    assert not broken, "\n".join(broken)


def verbs() -> set[str]:
    import typer

    from smalti.cli.main import app

    return set(getattr(typer.main.get_command(app), "commands", {}))


def commands(text: str) -> list[tuple[int, str]]:
    """(line, verb) of every `smalti VERB` in a fenced block that is not Python."""
    found = []
    for block in FENCE.finditer(text):
        if not block[3].strip().startswith(("py", "yaml", "json", "bib")):
            for match in COMMAND.finditer(block[4]):
                found.append((line_of(text, block.start(4) + match.start(1)), match[1]))
    return found


def test_every_verb_in_the_documents_is_one():
    known = verbs()
    wrong = [
        f"{place(path, line)} smalti {verb}: no such verb (there are: {', '.join(sorted(known))})"
        for path, text in DOCUMENTS
        for line, verb in commands(text)
        if verb not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_every_test_that_a_document_names_is_there():
    there = set[str]()
    for path in (ROOT / "tests").rglob("test_*.py"):
        there |= {
            path.stem,
            *re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE),
        }
    wrong = [
        f"{place(path, line_of(text, match.start()))} {match[1]}: no such test"
        for path, text in DOCUMENTS
        for match in re.finditer(r"`(test_\w+)`", text)
        if match[1] not in there
    ]
    assert not wrong, "\n".join(wrong)


def promises(text):
    """The rows (promise, limits, tests, figure) of the tables of promises; shorter where a column is missing."""
    found, inside = [], False
    for line in text.splitlines():
        inside = line.startswith("| promise |") or (inside and line.startswith("|"))
        if inside and not line.startswith(("| promise", "|--")):
            found.append([cell.strip() for cell in line.split("|")[1:-1]])
    return found


def without_figure(rows):
    """The promises without a test's name, or without a figure: a number in the last of four columns."""
    return [row[0] for row in rows if len(row) != 4 or "`test_" not in row[2] or not re.search(r"\d", row[3])]


def test_every_promise_of_the_guarantees_has_a_test_and_its_latest_figure():
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    rows = promises(text)
    assert len(rows) > 30
    assert not without_figure(rows)
    record = json.loads((ROOT / "benchmarks" / "results" / "promises.json").read_text(encoding="utf-8"))["rows"]
    assert not [row["test"] for row in record if not 0 < row["passed"] == row["cases"]]


def test_a_promise_without_a_test_or_a_figure_is_seen():
    table = "| promise | limits | proved by | latest figure |\n|---|---|---|---|\n"
    good = "| a | 1 | `test_a` | 3 of 3 |\n"
    for bad in ("| b | 1 | `test_a` | all |", "| b | 1 | by hand | 3 of 3 |", "| b | 1 | `test_a` |"):
        assert without_figure(promises(f"{table}{good}{bad}\n\n| c | d |\n")) == ["b"]


def test_the_newest_entry_of_the_changelog_is_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^##? +\[?v?(\d+\.\d+\.\d+[^\s\]]*)", text, re.MULTILINE)
    assert versions, "CHANGELOG.md has no heading with a version"
    assert versions[0] == smalti.__version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{smalti.__version__}"\n' in project


def test_verbs_are_found_in_blocks_of_commands_alone():
    shell = "```sh\n.venv/bin/smalti demo --out x && smalti train tiny\nsmalti --help\n```"
    text = f"smalti none\n{shell}\n```python\nsmalti no\n```"
    assert commands(text) == [(3, "demo"), (3, "train")]


def test_links_and_headings_are_seen():
    assert LINK.findall('[a](b.md) ![c](d.png "t") [e](#f)') == ["b.md", "d.png", "#f"]
    assert anchors("# One `two`, three\n```\n# not one\n```\n## Four") == {"one-two-three", "four"}
