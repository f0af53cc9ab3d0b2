"""Write what the documents repeat of the code: tables of config fields, import floors, the API reference.

    python docs/build.py           write
    python docs/build.py --check   exit with 1 if a page differs from the code

A page of this folder has a table of the fields of a config class between `<!-- fields: FSQConfig -->` and
`<!-- end -->`; the class is named without its module. `<!-- floors -->` is the import contract of pyproject.toml,
`<!-- zoo -->` the tokenizers of other projects that load by name, `<!-- speed -->` benchmarks/results/speed.json,
`<!-- rates -->` rate_distortion.json beside it.
`api.md` is generated as a whole. Nothing else in a page is changed.
"""

import ast
import difflib
import importlib
import inspect
import itertools
import json
import pkgutil
import re
import sys
import types
from collections.abc import Iterable, Iterator
from functools import cache
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import smalti
from smalti.config import Config
from smalti.errors import ConfigError
from smalti.families import zoo
from smalti.families.checkpoint import FAMILIES

DOCS = Path(__file__).resolve().parent
MARKER = re.compile(r"(<!-- (fields|floors|zoo|licences|speed|rates):? ?(\w*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
COMMENT = re.compile(r"<!-- (?:fields|floors|zoo|licences|speed|rates|end)\b.*-->")
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
COMMANDS = ("smalti.cli", "smalti.app")
"""Packages behind the command line and its pages, which nobody imports."""


@cache
def modules() -> list[ModuleType]:
    """Import every module of smalti."""
    names = [m.name for m in pkgutil.walk_packages(smalti.__path__, "smalti.") if not m.name.endswith("__main__")]
    return [smalti, *map(importlib.import_module, names)]


def config(name: str) -> type[Config]:
    """Find the config class of a name."""
    modules()
    classes = [Config]
    for cls in classes:
        classes += cls.__subclasses__()  # the list grows while it is walked
    named = [cls for cls in dict.fromkeys(classes) if cls.__name__ == name and cls.__module__.startswith("smalti.")]
    if len(named) > 1:
        raise ConfigError(f"{name} is the name of {len(named)} classes, in {', '.join(c.__module__ for c in named)}")
    if not named:
        near = difflib.get_close_matches(name, [cls.__name__ for cls in classes], n=1)
        raise ConfigError(f"no config class {name} in smalti" + (f"; did you mean {near[0]}?" if near else ""))
    return named[0]


def fields_table(name: str, on_page: set[str]) -> str:
    """Make the table of a config. Fields of a base class that has a table on the same page are not repeated."""
    cls = config(name)
    parents = [base for base in cls.__mro__[1:] if issubclass(base, Config)]
    bases = [base for base in parents if base.__name__ in on_page]
    rows = []
    for field, info in cls.model_fields.items():
        repeated = field not in cls.__annotations__ and any(field in base.model_fields for base in bases)
        if repeated or (field == "kind" and len(get_args(info.annotation)) < 2):
            continue
        docstrings = [c.model_fields[field].description for c in (cls, *parents) if field in c.model_fields]
        meaning = next(filter(None, docstrings), None)
        if meaning is None:
            raise ConfigError(f"{cls.__module__}: {name}.{field} has no docstring")
        words = alternatives(info.annotation)
        words[0] += bounds(info.metadata)
        default = "required" if info.is_required() else f"`{text_of(info.get_default(call_default_factory=True))}`"
        row = f"`{field}`", either(words), default, " ".join(meaning.split())
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")
    table = "".join(["| field | type | default | meaning |\n", "|---|---|---|---|\n", *rows]) if rows else ""
    nearest = [base for base in bases if not any(issubclass(other, base) for other in bases if other is not base)]
    also = " and ".join(f"`{base.__name__}`" for base in nearest)
    return table + ("\n" if rows and also else "") + (f"Also the fields of {also}.\n" if also else "")


def alternatives(annotation: Any) -> list[str]:
    """List the types and values that an annotation allows, in words that suit YAML."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        words = alternatives(args[0])
        return [words[0] + bounds(args[1:]), *words[1:]]
    if origin is Literal:
        return [f"`{text_of(value)}`" for value in args]
    if origin in (Union, types.UnionType):
        return [word for arg in args for word in alternatives(arg)]
    if origin is tuple:
        items = [either(alternatives(arg)) for arg in args if arg is not ...]
        return [f"list of {items[0]}" if args[-1] is ... else f"({', '.join(items)})"]
    if origin is dict:
        return [" to ".join(either(alternatives(arg)) for arg in args)]
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        kind = annotation.model_fields.get("kind")
        return [f"`{annotation.__name__}`"] if kind is None else alternatives(kind.annotation)
    return ["null" if annotation is type(None) else "path" if annotation is Path else str(annotation.__name__)]


def either(words: list[str]) -> str:
    """Join as `a`, `b` or `c`, each once, null last."""
    *first, last = sorted(dict.fromkeys(words), key=lambda word: word == "null")
    return f"{', '.join(first)} or {last}" if first else last


def bounds(metadata: Iterable[Any]) -> str:
    """Write the bounds of a field as ` >= 1 and <= 8`; other metadata is left out."""
    items = [part for item in metadata for part in (item, *getattr(item, "metadata", ()))]
    limits = [(sign, getattr(item, name, None)) for item in items for name, sign in SIGNS.items()]
    return " and".join(f" {sign} {text_of(limit)}" for sign, limit in limits if limit is not None)


def text_of(value: Any) -> str:
    """Write a value as YAML does; a config as the fields that differ from their defaults."""
    if isinstance(value, Config):
        return text_of(value.essence())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {text_of(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def floors_table() -> str:
    """Make the table of the import contract, the highest floor first, and the list of the other contracts."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    contracts = toml.loads(project)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("exhaustive"))
    lines = ["| floor | modules |\n", "|--:|---|\n"]
    for floor, layer in zip(range(len(layers), 0, -1), layers, strict=True):
        lines.append(f"| {floor} | {' '.join(f'`{name}`' for name in re.findall(r'[a-z_0-9]+', layer))} |\n")
    return "".join([*lines, "\n", *(f"- {contract['name']}.\n" for contract in contracts)])


def zoo_table() -> str:
    """Make the table of the tokenizers of other projects that load by name, and the list of the lines that do."""
    lines = ["| family | model | pixels a token | codes | parameters | licence | causal | streams | score |\n"]
    lines.append("|---|---|---|--:|--:|---|---|---|---|\n")
    for row in zoo():
        score = f"{row.score} ({row.source})" if row.score else "–"
        cells = (row.family, row.model, "x".join(map(str, row.strides)), f"{row.codes:,}", f"{row.parameters:,}")
        cells = (*cells, row.licence, "yes" if row.is_causal else "no", row.streams, score)
        lines.append(f"| {' | '.join(cells)} |\n")
    held = [f"| `{row.name}` | `{row.golden}` |\n" for row in zoo()]
    return "".join([*lines, "\n| `smalti.load(NAME)` | golden |\n|---|---|\n", *held])


def licences_table() -> str:
    """Make the table of the licences of published weights, and of the places where they are stated."""
    lines = ["| repositories | licence | stated by |\n", "|---|---|---|\n"]
    places: dict[tuple[str, str], list[str]] = {}
    for family in FAMILIES:
        for row in family.published:
            places.setdefault((row.licence, row.licence_source), []).append(f"`{row.repository}`")
    for (licence, source), names in places.items():
        lines.append(f"| {', '.join(names)} | {licence} | {source} |\n")
    return "".join(lines)


def speed_table() -> str:
    """Make the table of `python -m benchmarks speed`, with its processor and its date."""
    found = json.loads((DOCS.parent / "benchmarks" / "results" / "speed.json").read_text(encoding="utf-8"))
    lines = [f"{found['cpu']}, torch {found['versions']['torch']}, {found['date']}.\n\n"]
    lines += [
        "| what | GFLOP | ms | GFLOP/s | limit | share | bfloat16, times as fast"
        " | ONNX Runtime, times as long | OpenVINO | MagicMaster |\n",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    ]
    for row in found["rows"]:
        numbers = [row[name] for name in ("gflop", "ms", "gflop_s", "limit_gflop_s")]
        figures = " | ".join(f"{n:,.0f}" if n >= 100 else f"{n:.3g}" for n in numbers)
        ratios = [row.get(name) for name in ("bfloat16", "ONNX Runtime", "OpenVINO", "MagicMaster")]
        others = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {row['what']} | {figures} | {row['share']:.0%} | {' | '.join(others)} |\n")
    return "".join(lines)


def rates_table() -> str:
    """Make the table of `python -m benchmarks.rate_distortion`: other codecs at as many bits as ours."""
    results = DOCS.parent / "benchmarks" / "results"
    rows = json.loads((results / "rate_distortion.json").read_text(encoding="utf-8"))["rows"]
    names = {"smalti ids": "ids", "smalti files": "file"}
    codecs = {
        **{"JPEG": "JPEG", "WEBP": "WebP", "AVIF": "AVIF", "libx264": "x264", "libx264 psnr": "x264, psnr"},
        **{"libx265": "x265", "libx265 psnr": "x265, psnr", "libsvtav1": "SVT-AV1"},
    }

    def scores(row: dict[str, Any] | None) -> str:
        if row is None or row["psnr"] is None:
            return "-"
        vmaf = "" if row["vmaf"] is None else f", {row['vmaf']:.0f}"
        return f"{row['psnr']:.2f}, {row['lpips']:.3f}{vmaf}"

    lines = [
        f"| media | smalti | bits per pixel | PSNR, LPIPS (VMAF) | {' | '.join(codecs.values())} |\n",
        f"|---|---|--:|{'--:|' * (len(codecs) + 1)}\n",
    ]
    for (media, setting, kind), group in itertools.groupby(rows, itemgetter("media", "setting", "beside")):
        beside = {row["codec"]: row for row in group}
        figures = " | ".join(scores(beside.get(codec)) for codec in (kind, *codecs))
        what = f"{setting.removeprefix('smalti/')}, {names.get(kind, 'coded')}"
        lines.append(f"| {media} | {what} | {beside[kind]['bits_per_pixel']:.4f} | {figures} |\n")
    return "".join(lines)


TABLES = {
    **{"floors": floors_table, "zoo": zoo_table, "licences": licences_table},
    **{"speed": speed_table, "rates": rates_table},
}

Definition = ast.FunctionDef | ast.ClassDef


def api() -> str:
    """Make the page of all public classes and functions: in full what a package exports, else one line."""
    sections: dict[str, tuple[list[str], list[str]]] = {"smalti": ([], [])}
    for module in modules():
        if module.__name__.startswith(COMMANDS) or "._" in module.__name__:
            continue
        source, package = inspect.getsource(module), ".".join(module.__name__.split(".")[:2])
        for node in definitions(ast.parse(source).body):
            value = getattr(module, node.name)
            home = next((n for n in ("smalti", package) if getattr(sys.modules[n], node.name, None) is value), None)
            full, short = sections.setdefault(home or package, ([], []))
            if home is not None:
                full.append(entry(f"{home}.{node.name}", node, source))
            else:
                short.append(line(node, f"{module.__name__}."))
    page = [
        "# API reference\n\nPublic classes and functions by package, made from the code by `python docs/build.py`."
        " Names that a package exports are described in full; the others of its modules have one line.\n"
    ]
    for package, (full, short) in sections.items():
        page += [f"\n## {package}\n\n{paragraph(sys.modules[package].__doc__)}\n", *full]
        page += ["\nIn its modules:\n\n", *short] if short else []
    return "".join(page)


def definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """Find the public classes and functions of a body; of overloads, the last."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_") and not has_decorator(node, "overload"):
            yield node


def has_decorator(node: Definition, name: str) -> bool:
    """Tell whether a definition is a property, for instance."""
    return any(ast.unparse(decorator).endswith(name) for decorator in node.decorator_list)


def entry(name: str, node: Definition, source: str) -> str:
    """Describe a class or function: its definition, its docstring, a line for every member."""
    lines = source.splitlines()[node.lineno - 1 : max(node.lineno, node.body[0].lineno - 1)]
    text = [f"\n### `{name}`\n\n```py\n", "\n".join(lines).rstrip().removesuffix(":"), "\n```\n"]
    if docstring := ast.get_docstring(node):
        text.append(f"\n{escape(docstring)}\n")
    members = []
    for item, after in itertools.pairwise([*node.body, ast.Pass()] if isinstance(node, ast.ClassDef) else ()):
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_"):
            meaning = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            members.append(f"- `{ast.unparse(item)}`: {paragraph(str(meaning))}".removesuffix(": ") + "\n")
        members += [line(method) for method in definitions([item])]
    return "".join([*text, *(["\n"] if members else []), *members])


def line(node: Definition, prefix: str = "") -> str:
    """Describe a class, function, method or property in one line."""
    code = prefix + node.name
    if isinstance(node, ast.FunctionDef):
        if not has_decorator(node, "property"):
            arguments = re.sub(r"^(self|cls)\b(: [^,]*)?(, )?", "", ast.unparse(node.args))
            code += f"({arguments})"
        code += f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"- `{code}`: {paragraph(ast.get_docstring(node))}\n"


def paragraph(docstring: str | None) -> str:
    """Take the first paragraph of a docstring, in one line."""
    return escape(" ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split()))


def escape(text: str) -> str:
    """Make a docstring Markdown: outside of code, no character begins markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts)


def built(page: Path) -> str:
    """Make the generated parts of a page anew and return the page."""
    text = page.read_text(encoding="utf-8")
    names = {marker[3] for marker in MARKER.finditer(text)}
    if stray := COMMENT.search(MARKER.sub("", text)):
        raise ConfigError(f"docs/{page.name}: {stray[0]}: a marker without its other half, or misspelt")

    def part(marker: re.Match[str]) -> str:
        try:
            table = TABLES[marker[2]]() if marker[2] in TABLES else fields_table(marker[3], names)
        except ConfigError as error:
            raise ConfigError(f"docs/{page.name}: {marker[1].strip()}: {error}") from None
        return marker[1] + table + marker[5]

    return MARKER.sub(part, text)


def main(check: bool) -> int:
    """Write or compare the pages and return the exit code."""
    try:
        pages = {page: built(page) for page in sorted(DOCS.glob("*.md"))} | {DOCS / "api.md": api()}
    except ConfigError as error:
        sys.exit(str(error))
    changed = {page: text for page, text in pages.items() if page.read_text(encoding="utf-8") != text}
    for page, text in changed.items():
        if check:
            print(f"docs/{page.name}: differs from the code; run python docs/build.py", file=sys.stderr)
        else:
            page.write_text(text, encoding="utf-8")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
