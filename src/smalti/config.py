"""The base of all configs: frozen, strict, tagged by kind; YAML in and out; overrides by dotted path.

A config says what to build and nothing else; its `build()` names the class. A wrong field is one line: the dotted
path, what was found, what is allowed, and the nearest name.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Strict, ValidationError

from smalti.errors import ConfigError

T = TypeVar("T")
Tuple = Annotated[tuple[T, ...], Strict(False)]
"""A tuple field that also takes a list (YAML and JSON have no tuples); its items stay strict."""
Triple = Annotated[tuple[T, T, T], Strict(False)]
PathField = Annotated[Path, Strict(False)]

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A frozen, strict record: unknown fields and wrong types are errors, never coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls: type[C], data: object, where: str = "config") -> C:
        """Build from plain data; raises ConfigError with one line that names `where` and the dotted path."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_explain(cls, data, error)}") from None

    def override(self: C, assignments: Iterable[str]) -> C:
        """A copy with `a.b=value` assignments applied; values are YAML. Raises ConfigError as `parse` does."""
        data = self.plain()
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path:
                raise ConfigError(f"--set {assignment}: expected field=value, as in --set steps=1000")
            _assign(data, path.split("."), parse_yaml(text, where=f"--set {path}"), assignment)
        return type(self).parse(data, where="--set")

    def plain(self) -> dict[str, Any]:
        """The config as plain data: dicts, lists, numbers, strings."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The config as YAML text; `load_yaml` reads it back to an equal config."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the number and boolean rules of YAML 1.2, no aliases, no duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for i, key in enumerate(keys) if key in keys[:i]]
        if repeated:
            raise yaml.YAMLError(f"the key {repeated[0]!r} stands twice (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as a string and yes/no/on/off as booleans; YAML 1.2 does not.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)|[0-9]+\.[0-9]*|\.inf|\.nan)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))

_LARGEST_YAML = 1 << 20


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text. Raises ConfigError naming `where`; never runs code."""
    if len(text) > _LARGEST_YAML:
        raise ConfigError(f"{where}: {len(text):,} characters of YAML, at most {_LARGEST_YAML:,} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())[:200]}") from None


def load_yaml(cls: type[C], path: Path) -> C:
    """Read a config of class `cls` from a YAML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return cls.parse(parse_yaml(text, where=str(path)), where=str(path))


def _assign(data: Any, path: list[str], value: Any, assignment: str) -> None:
    for depth, key in enumerate(path[:-1]):
        if not isinstance(data, dict) or not isinstance(data.get(key), dict):
            here = ".".join(path[: depth + 1])
            names = list(data) if isinstance(data, dict) else []
            raise ConfigError(f"--set {assignment}: {here} is not a section{_nearest(key, names)}")
        data = data[key]
    if path[-1] == "kind" and data.get("kind") != value:
        data.clear()  # the fields of one kind mean nothing to another
    data[path[-1]] = value


def _nearest(name: str, allowed: Iterable[str]) -> str:
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (there are: {', '.join(allowed)})" if allowed else hint


def _explain(cls: type[Config], data: object, error: ValidationError) -> str:
    """The first error as one line, and how many there are in all."""
    first = error.errors(include_url=False)[0]
    path = _dotted(data, first["loc"])
    if first["type"] == "extra_forbidden":
        fields = _model_at(cls, first["loc"][:-1]).model_fields
        text = f"{path}: no such field{_nearest(str(first['loc'][-1]), fields)}"
    elif first["type"] == "missing":
        text = f"{path}: this field is required"
    else:
        text = f"{path or 'value'}: {first['msg']}"
        if not isinstance(first["input"], Mapping | BaseModel):
            text += f" (found {first['input']!r})"
    more = error.error_count() - 1
    return " ".join(text.split()) + (f" [and {more} more]" if more else "")


def _dotted(data: object, loc: tuple[int | str, ...]) -> str:
    """The path as the user wrote it: union tags that pydantic adds are left out."""
    parts: list[str] = []
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(data, Mapping):
            if step in data or last:
                parts.append(str(step))
                data = data.get(step)
        elif isinstance(data, list | tuple) and isinstance(step, int) and step < len(data):
            parts.append(str(step))
            data = data[step]
    return ".".join(parts)


def _model_at(cls: type[Config], loc: tuple[int | str, ...]) -> type[Config]:
    here: Any = cls
    for step in loc:
        if isinstance(here, type) and issubclass(here, BaseModel) and step in here.model_fields:
            models = list(_models(here.model_fields[str(step)].annotation))
            here = models[0] if len(models) == 1 else tuple(models) if models else here
        elif isinstance(here, tuple):
            here = next((m for m in here if m.model_fields["kind"].default == step), here[0])
    return here[0] if isinstance(here, tuple) else here


def _models(annotation: Any) -> Iterable[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    elif get_origin(annotation) is not None or isinstance(annotation, Union.__class__):
        for inner in get_args(annotation):
            yield from _models(inner)
