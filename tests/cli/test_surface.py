"""The surface of the command line: help, usage errors, messages, doctor, recipes."""

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti import __version__
from smalti.cli.console import message_line
from smalti.cli.main import app, explain
from smalti.config import parse_yaml
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.recipes import catalogue, find
from smalti.training.config import TokenizerTraining
from tests.cli.conftest import assert_one_line

VERBS = tuple(command.name for command in app.registered_commands)


def shell(*arguments, **more):
    environment = {**os.environ, "COLUMNS": "80", **more}
    command = [sys.executable, "-m", "smalti", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.name)
def test_every_option_of_a_verb_is_used(command):
    """One that its function never reads is taken and does nothing."""
    function = inspect.unwrap(command.callback)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    read = {node.id for part in tree.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    assert inspect.signature(function).parameters.keys() <= read


def test_help_imports_nothing_heavy_and_comes_at_once():
    script = """
import sys, time
from smalti.cli.main import run
code = run(["--help"])
heavy = {"torch", "numpy", "av", "PIL", "pydantic", "matplotlib", "huggingface_hub"} & set(sys.modules)
print(code, sorted(heavy), time.process_time() < 0.5)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0 [] True"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_purpose_and_examples_in_80_columns(smalti, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = smalti(verb, "--help")
    assert ended.code == 0
    assert "Examples:\n" in ended.out
    assert f"    smalti {verb}" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_the_bare_command_prints_help(smalti):
    assert smalti() == smalti("--help") == smalti("-h")
    assert all(f"\n  {verb} " in smalti().out for verb in VERBS)


def test_version(smalti):
    assert smalti("--version").out == f"smalti {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["evil"], "eval"),
        (["info"], "TOKENIZER"),
        (["eval", "x", "--nope"], "--nope"),
        (["eval", "x", "--limit", "0"], "--limit"),
        (["decode", "a"], "--out"),
        (["decode", "a"], "(see smalti decode --help)"),
        (["nope"], "(see smalti --help)"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(smalti, arguments, part):
    assert_one_line(smalti(*arguments), 2, part)


def test_the_console_gives_the_code_and_keeps_stdout_clean():
    ended = shell("info", "no/such/folder")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("error: no/such/folder: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["train", "doctor"])
def test_a_folder_that_is_no_run_is_not_taken_for_a_misspelt_recipe(smalti, tmp_path, verb):
    (tmp_path / "photos").mkdir()
    assert_one_line(smalti(verb, tmp_path / "photos"), 2, "photos: a folder without config.yaml is no run")


@pytest.mark.parametrize("arguments", [("--debug", "recipes", "nope"), ("recipes", "nope", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(smalti, arguments):
    ended = smalti(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("Traceback")
    assert ended.err.splitlines()[-1].startswith("error: nope: no such recipe")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a: b"), 2, "error: a: b"),
        (InputError("a: b"), 3, "error: a: b"),
        (IntegrityError("a: b"), 4, "error: a: b"),
        (MachineError("a: b"), 5, "error: a: b"),
        (SmaltiError("many\nlines \x1b[31m"), 70, "error: many\\x0alines \\x1b[31m"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(28, "No space left on device", "/x/y"), 5, "error: /x/y: No space left on device"),
        (KeyError("name"), 70, "internal error: KeyError: 'name' (run with --debug for the traceback)"),
    ],
)
def test_every_kind_of_error_has_its_code_and_line(error, code, line):
    assert explain(error) == (line, code)


def test_arguments_in_a_message_are_options_on_the_command_line():
    error = ConfigError("a.png: exists; pass `overwrite`, another `out` or `label`, `plan_only` (not `nothing`)")
    words = {
        "tokenize": "pass `overwrite`, another --out or `label`, --plan-only",
        "generate": "pass --overwrite, another --out or --class, `plan_only`",
    }
    for verb, said in words.items():  # each has some of these
        assert explain(error, verb).line == f"error: a.png: exists; {said} (not `nothing`)"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_is_the_machines_fault(error):
    told = explain(error)
    assert told.code == 5
    assert told.line.startswith("error: out of memory")


@given(st.text(max_size=1000))
@settings(max_examples=50, deadline=None)
def test_a_message_is_one_printable_line_of_bounded_length(text):
    line = message_line(text)
    assert line.isprintable()
    assert len(line) <= 400


def test_doctor_finds_what_is_needed(smalti):
    ended = smalti("doctor")
    assert ended.code == 0
    data = json.loads(smalti("doctor", "--json").out)
    checks = {check["name"]: check for check in data["checks"]}
    assert {"python", "torch", "av", "pillow", "device", "threads", "lpips vgg", "video encoder", "disk"} <= set(checks)
    assert not [check for check in checks.values() if check["state"] == "broken"]
    assert all(check["remedy"] for check in checks.values() if check["state"] != "ok")


def test_recipes_are_listed_with_score_and_command(smalti):
    text = smalti("recipes").out
    rows = json.loads(smalti("recipes", "--json").out)
    assert [row["name"] for row in rows] == [recipe.name for recipe in catalogue()]
    for row in rows:
        settings, differs = row.pop("exact"), row.pop("differs")
        assert all(part in text for part in (*row.values(), *settings))
        assert not differs or f"in {len(differs)} ways: smalti recipes {row['name']}" in text


@pytest.mark.parametrize("tiny", [False, True])
def test_a_printed_recipe_reads_back_to_the_same_config(smalti, tiny):
    ended = smalti("recipes", "video", *(["--tiny"] if tiny else []))
    assert TokenizerTraining.parse(parse_yaml(ended.out, "printed")) == find("video", tiny=tiny)
    data = json.loads(smalti("recipes", "video", "--json", *(["--tiny"] if tiny else [])).out)
    assert data == find("video", tiny=tiny).plain()


def test_an_unknown_recipe_names_the_nearest(smalti):
    assert_one_line(smalti("recipes", "imag"), 2, "did you mean 'image'")
    assert_one_line(smalti("train", "imag"), 2, "did you mean 'image'")
