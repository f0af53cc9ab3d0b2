"""The documents run: their Python, their options, their training commands; and what they name is there."""

import importlib.util
import re
import runpy
import shlex
import tempfile
from typing import get_args

import pytest
import typer

from smalti.cli.main import app
from smalti.config import Config
from smalti.errors import ConfigError
from smalti.metrics import GenerationProtocol, Protocol
from smalti.recipes import catalogue, find
from smalti.tokens.config import MediaInputs, TokenizeOptions
from smalti.training.config import TokenizerTraining
from tests.rules.test_docs import DOCUMENTS, FENCE, line_of
from tests.rules.tree import ROOT, modules

COMMAND = re.compile(r"(?:^|[/\s])smalti +([a-z]+)([^\n&|>#]*)")
FAULT_CODE = re.compile(r"BadFile\([^,]+, \"([a-z-]+)\"(?: if \w+ else \"([a-z-]+)\")?")


def blocks(*languages):
    """(document:line, code) of the fenced blocks in one of `languages`."""
    for path, text in DOCUMENTS:
        for block in FENCE.finditer(text):
            if block[3].strip() in languages:
                line = line_of(text, block.start(4))
                yield f"{path.relative_to(ROOT).as_posix()}:{line}", block[4], line


PYTHON = list(blocks("python"))
COMMANDS = [
    (place, verb, shlex.split(rest))
    for place, code, _ in blocks("sh")
    for verb, rest in COMMAND.findall(code.replace("\\\n", " "))
]


@pytest.mark.parametrize(("code", "line"), [block[1:] for block in PYTHON], ids=[block[0] for block in PYTHON])
def test_python_in_the_docs_runs(code, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = tmp_path / "snippet.py"
    script.write_text("\n" * (line - 1) + code, encoding="utf-8")  # a traceback then names the line of the document
    runpy.run_path(str(script))


def verbs():
    """Every command by its name, as `train` or `compare`."""
    found = {}
    for verb, command in typer.main.get_command(app).commands.items():
        parts = getattr(command, "commands", None)
        found |= {verb: command} if parts is None else {f"{verb} {name}": part for name, part in parts.items()}
    return found


@pytest.mark.parametrize(("place", "verb", "words"), COMMANDS, ids=[f"{c[0]}-{c[1]}" for c in COMMANDS])
def test_options_in_the_docs_are_options(place, verb, words):
    command = verbs().get(verb) or verbs()[f"{verb} {words[0]}"]
    known = {"--help", "-h", "--debug"}.union(*([*p.opts, *p.secondary_opts] for p in command.params))
    wrong = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
    assert not wrong, f"{place}: smalti {verb} has no {wrong}"


TRAINED = [c for c in COMMANDS if c[1] == "train" and not c[2][0].startswith("runs/") and ".y" not in c[2][0]]


@pytest.mark.parametrize(("place", "verb", "words"), TRAINED, ids=[c[0] for c in TRAINED])
def test_training_commands_in_the_docs_are_valid_configs(place, verb, words):
    assignments = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    try:
        find(words[0], tiny="--tiny" in words).override(assignments)
    except ConfigError as error:
        pytest.fail(f"{place}: {error}")


def test_tests_that_the_docs_name_are_there():
    source = "\n".join(path.read_text(encoding="utf-8") for path in modules("tests"))
    known = set(re.findall(r"def (test_\w+)", source)) | {path.stem for path in modules("tests")}
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in DOCUMENTS
        for name in re.findall(r"`(?:[\w/]+\.py::)?(test_\w+)(?:\.py)?`", text)
        if name not in known
    ]
    assert not missing, missing


BUILD = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")


@pytest.fixture(scope="module")
def build():
    """`docs/build.py` as a module."""
    module = importlib.util.module_from_spec(BUILD)
    BUILD.loader.exec_module(module)
    return module


def test_the_generated_parts_of_the_docs_equal_the_code(build, capsys):
    assert build.main(check=True) == 0, capsys.readouterr().err


def test_a_marker_of_no_class_is_one_line_with_page_and_marker(build, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- fields: FSQConfg -->\n<!-- end -->\n")
    with pytest.raises(ConfigError) as error:
        build.built(page)
    assert str(error.value) == (
        "docs/page.md: <!-- fields: FSQConfg -->: no config class FSQConfg in smalti; did you mean FSQConfig?"
    )
    page.write_text("<!-- fields: FSQConfig -->\n")
    with pytest.raises(ConfigError, match=r"docs/page.md: <!-- fields: FSQConfig -->: a marker without"):
        build.built(page)


def configs_in(annotation):
    """The config classes that an annotation names, and those that their fields name."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return {annotation}.union(*(configs_in(info.annotation) for info in annotation.model_fields.values()))
    return set().union(*map(configs_in, get_args(annotation)))


def test_every_field_that_a_user_sets_is_in_a_table():
    recipes = {type(recipe.config()) for recipe in catalogue()}
    written = set().union(*map(configs_in, (*recipes, Protocol, GenerationProtocol, TokenizeOptions, MediaInputs)))
    texts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    tables = set(re.findall(r"<!-- fields: (\w+) -->", texts))
    missing = [
        f"{config.__name__}.{field}"
        for config in sorted(written, key=lambda config: config.__name__)
        for field in config.model_fields
        if field != "kind" and not any(b.__name__ in tables and field in b.model_fields for b in config.__mro__[:-2])
    ]
    assert not missing, missing


def test_the_docs_name_what_may_change_when_a_run_is_resumed():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("May change:"))
    assert set(re.findall(r"`(\w+)`", line)) == TokenizerTraining.changeable


def test_the_docs_name_every_code_of_a_bad_file():
    found = [FAULT_CODE.findall(path.read_text(encoding="utf-8")) for path in modules("src")]
    codes = {code for matches in found for match in matches for code in match if code}
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("## Bad files")[2]
    assert codes == set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))


def test_the_docs_of_the_command_line_name_every_verb_and_option():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = []
    for verb, command in verbs().items():
        section = re.search(rf"^## {verb}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if section is None:
            missing.append(verb)
            continue
        options = [name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")]
        missing += [f"{verb} {name}" for name in options if name != "--help" and f"`{name}" not in section[1]]
    assert not missing, missing
