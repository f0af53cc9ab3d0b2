"""Lint, format, types, import contracts, and sizes that can be read in one sitting."""

import ast
import sys
from pathlib import Path

import pytest

import smalti
from tests.rules.tree import PACKAGE, ROOT, modules, parsed, place, run, told

FILE_LINES = 500
FUNCTION_LINES = 60
"""Without signature and docstring."""
PARAMETERS = 8
CHECKED = [folder for folder in ("src", "tests", "benchmarks", "docs") if (ROOT / folder).is_dir()]
SIZED = modules("src", "benchmarks")


def test_ruff_finds_nothing():
    found = run(sys.executable, "-m", "ruff", "check", *CHECKED)
    assert found.returncode == 0, told(found)


def test_ruff_would_format_nothing():
    found = run(sys.executable, "-m", "ruff", "format", "--check", *CHECKED)
    assert found.returncode == 0, told(found)


def test_the_package_is_strictly_typed():
    found = run(sys.executable, "-m", "mypy")
    assert found.returncode == 0, told(found)


def test_calls_of_all_that_has_array_annotations_are_checked(pytestconfig):
    checked = pytestconfig.getoption("jaxtyping_packages").split(",")[:-1]
    for path in modules("src"):
        name = ".".join(("smalti", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if "jaxtyping" in path.read_text("utf-8"):
            assert any(name == one or name.startswith(f"{one}.") for one in checked), name


def test_lower_floors_do_not_import_higher_ones():
    program = "from importlinter.cli import lint_imports as lint; raise SystemExit(lint(no_cache=True))"
    found = run(sys.executable, "-c", program)
    assert found.returncode == 0, told(found)


def test_files_can_be_read_in_one_sitting():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SIZED}
    assert not [f"{place(p, 1)} has {n} lines, at most {FILE_LINES}" for p, n in sizes.items() if n > FILE_LINES]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(f: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = f.body[1:] if ast.get_docstring(f) is not None else f.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_fit_on_a_screen():
    long = [
        f"{place(path, f)} {f.name} has {body_lines(f)} lines, at most {FUNCTION_LINES}"
        for path in SIZED
        for f in functions(path)
        if body_lines(f) > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_functions_have_few_parameters_and_no_tunnels():
    """A command of the command line has one parameter per option, and so has the product's function of its name."""
    many = []
    for path in SIZED:
        for f in functions(path):
            names = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            is_command = path.is_relative_to(PACKAGE / "cli") or f.name in smalti.__all__
            if count > PARAMETERS and not is_command:
                many.append(f"{place(path, f)} {f.name} has {count} parameters, at most {PARAMETERS}")
            if f.args.kwarg is not None:
                many.append(f"{place(path, f)} {f.name} takes **{f.args.kwarg.arg}: name its parameters")
    assert not many, "\n".join(many)


def test_no_module_is_a_drawer():
    drawers = {"utils.py", "helpers.py", "misc.py", "common.py", "util.py", "base.py"}
    found = [place(path, 1) for path in modules("src") if path.name in drawers]
    assert not found, f"name these after what is in them: {found}"


def loaded_by(program: str) -> set[str]:
    found = run(sys.executable, "-c", f"{program}\nimport sys; print('modules', *sys.modules)")
    assert found.returncode == 0, told(found)
    return set(found.stdout.splitlines()[-1].split())


HEAVY = {"torch", "numpy", "matplotlib", "av", "torchmetrics", "tensorboard", "pyarrow", "ray", "gradio", "PIL"}
HELP = """
import sys
sys.argv = ["smalti", "--help"]
from smalti.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize("program", ["import smalti; dir(smalti); smalti.__version__", HELP], ids=["import", "help"])
def test_what_needs_no_torch_brings_none(program):
    assert not HEAVY & loaded_by(program)


def test_a_tokenizer_brings_no_plots_no_trackers_and_no_video_reader():
    assert not (HEAVY - {"torch", "numpy"}) & loaded_by("import smalti; smalti.load; smalti.Stream; smalti.FSQConfig")
