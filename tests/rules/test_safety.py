"""Nothing that is read may run: no pickle, no eval, no shell; and nothing names the machine it was written on."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.rules.tree import PACKAGE, modules, parsed, place, project_texts

MAY_IMPORT_PICKLE = {"unpickler.py"}  # to replace every step that imports or calls
MAY_IMPORT_BY_NAME = {"__init__.py"}  # the lazy table of `import smalti`, whose names are constants of that file
LOADERS_OF_CODE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
NEVER = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes code of text",
    "__import__": "imports what a text says",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "torch.load": "may run what is in the file; use smalti.foreign",
    "torch.jit.load": "loads code",
    "torch.hub.load": "loads code",
    "torch.package.PackageImporter": "loads code",
    "yaml.unsafe_load": "runs tags",
    "yaml.full_load": "runs tags",
    "yaml.load_all": "is not our loader",
    "yaml.safe_load": "is not our loader, and reads 1e-4 as a string",
}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a dotted name, or an empty string."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_true(call: ast.Call, keyword: str) -> bool:
    values = [k.value for k in call.keywords if k.arg == keyword]
    return bool(values) and isinstance(values[0], ast.Constant) and values[0].value is True


def call_fault(call: ast.Call, module: str) -> str | None:
    name = name_of(call.func)
    if name in NEVER:
        return f"{name} {NEVER[name]}"
    if name.endswith(".load") and is_true(call, "allow_pickle"):
        return f"{name} with allow_pickle=True runs what is in the file"
    if name == "yaml.load" and [name_of(k.value) for k in call.keywords if k.arg == "Loader"] != ["_Loader"]:
        return "yaml.load without our Loader; use smalti.config.parse_yaml"
    if is_true(call, "shell"):
        return "shell=True runs a shell"
    if is_true(call, "trust_remote_code"):
        return "trust_remote_code=True runs what a stranger wrote"
    constant = bool(call.args) and isinstance(call.args[0], ast.Constant)
    if name.rpartition(".")[2] == "import_module" and not constant and module not in MAY_IMPORT_BY_NAME:
        return f"{name} of a name that is not a constant"
    return None


def faults(tree: ast.AST, module: str) -> Iterator[tuple[ast.AST, str]]:
    """What in a module could run code that it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (fault := call_fault(node, module)):
            yield node, fault
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in LOADERS_OF_CODE and module not in MAY_IMPORT_PICKLE:
                    yield node, f"{name} runs what is in the file"
        elif isinstance(node, ast.ClassDef) and any(name_of(b).endswith("Unpickler") for b in node.bases):
            methods = {f.name for f in node.body if isinstance(f, ast.FunctionDef)}
            if "find_class" not in methods:
                yield node, "an Unpickler without its own find_class runs what is in the file"


def test_nothing_that_the_package_reads_may_run():
    found = [
        f"{place(path, node)} {fault}"
        for path in modules("src/smalti")
        for node, fault in faults(parsed(path), path.relative_to(PACKAGE).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import Unpickler",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "importlib.import_module(name)",
        "import_module(f'smalti.{name}')",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "yaml.safe_load(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "class Open(pickle.Unpickler):\n    pass",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_rule_sees(line):
    assert list(faults(ast.parse(line), "somewhere.py"))


@pytest.mark.parametrize(
    "line",
    [
        "read_checkpoint(path)",
        "import pickletools",
        "import_module('av')",
        "model.eval()",
        "yaml.load(text, Loader=_Loader)",
    ],
)
def test_the_rule_lets_pass(line):
    assert not list(faults(ast.parse(line), "somewhere.py"))


# Written in parts, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    r"(?<![\w.*)}>/-])/(?:" + "|".join(["ho" + "me", "ro" + "ot", "t" + "mp", "wo" + "rk"]) + r")/[\w.]"
)
PACKAGE_INDEX = re.compile(r"(?:index-url|find-links|INDEX_URL)[= ]+[\"']?(\S+)")
PUBLIC = ("https://download.pytorch.org/", "https://pypi.org/")


def test_no_file_names_a_place_on_somebodys_machine():
    found = []
    for path, text in project_texts():
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATHS.search(line):
                found.append(f"{place(path, number)} names a path of one machine: {line.strip()[:100]}")
            index = PACKAGE_INDEX.search(line)
            if index and not index[1].startswith(PUBLIC):
                found.append(f"{place(path, number)} names a package index that others may not reach: {index[1]}")
    assert not found, "\n".join(found)
