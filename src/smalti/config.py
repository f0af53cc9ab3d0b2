"""The base of all configs: frozen, strict, tagged by kind; YAML in and out; overrides by dotted path.

A config says what to build and nothing else; its `build()` names the class. A wrong field is one line: the dotted
path, what was found, what is allowed, and the nearest name.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator

from smalti.errors import ConfigError
from smalti.text import nearest, shorten

T = TypeVar("T")


def _tuple_of_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


ListToo = BeforeValidator(_tuple_of_list)
"""Mark of a tuple field that also takes a list (YAML and JSON have no tuples); its items stay strict. `Strict(False)`
would say the same, but pydantic before 2.11 does not hear it inside a union."""
Tuple = Annotated[tuple[T, ...], ListToo]
"""A tuple of any length."""
Two = Annotated[tuple[T, T], ListToo]
Triple = Annotated[tuple[T, T, T], ListToo]
Blocks = Annotated[int, Field(le=1024)]
"""A number of blocks of a network; one that no machine builds is refused at once."""
PathField = Annotated[Path, Strict(False)]

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A frozen, strict record: unknown fields and wrong types are errors, never coerced."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    former_names: ClassVar[Mapping[str, str]] = {}
    """Field names in files of earlier versions, former -> present. They are read but never written, and fingerprints
    keep hashing the former name."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not cls.former_names.keys() & data.keys():
            return data
        renamed = {former: name for former, name in cls.former_names.items() if former in data and name not in data}
        return {renamed.get(key, key): value for key, value in data.items()}

    @classmethod
    def parse(cls: type[C], data: object, where: str = "config") -> C:
        """Build from plain data; raises ConfigError with one line that names `where` and the dotted path."""
        if data is None or isinstance(data, str | int | float | list):
            what = "it is empty" if data is None else f"{shorten(repr(data))} is no set of fields"
            raise ConfigError(f"{where}: {what}: give its fields, `name: value` on a line each")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_explain(cls, data, error)}") from None

    def override(self: C, assignments: Iterable[str]) -> C:
        """A copy with `a.b=value` assignments applied; values are YAML. Raises ConfigError as `parse` does.

        Kinds are set first, the outer ones before the inner ones, because a new kind drops the fields of the old one;
        for the rest the last assignment wins.
        """
        data = self.plain()
        for path, value, assignment in sorted(map(_assignment, assignments), key=_kinds_first):
            _assign(data, path, value, assignment)
        return type(self).parse(data, where="`set`")

    def replace(self: C, changes: Mapping[str, object]) -> C:
        """A copy with other values in some fields, checked as a new config is."""
        return type(self).parse({**dict(self), **changes}, where=type(self).__name__)

    def plain(self) -> dict[str, Any]:
        """The config as plain data: dicts, lists, numbers, strings."""
        return self.model_dump(mode="json")

    def essence(self) -> dict[str, Any]:
        """Return the plain data without the fields that have their defaults; kinds stay, former names too.

        Fingerprints hash it, so that a field which a later version adds or renames leaves them as they were.
        """
        plain = self.plain()
        former = {name: old for old, name in self.former_names.items()}
        return {
            former.get(name, name): value.essence() if isinstance(value, Config) else plain[name]
            for name, value in self
            if name == "kind" or value != type(self).model_fields[name].get_default(call_default_factory=True)
        }

    def to_yaml(self) -> str:
        """The config as YAML text; `load_yaml` reads it back to an equal config (quotes suit YAML 1.1 readers too)."""
        data = self.plain()
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        if any(c in text for c in _ODD_BREAKS):  # written as they are, these read back as ordinary line breaks
            text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
        return text


_ODD_BREAKS = "\x85\u2028\u2029\ufeff"


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2; no aliases, no tags, no duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if event.tag is not None:
            raise yaml.YAMLError(f"tags are not allowed (found {event.tag})")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value = super().construct_object(node, deep=deep)
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise yaml.YAMLError(f"an integer of more than 64 bits (line {node.start_mark.line + 1})")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | None):
                raise yaml.YAMLError(f"a key must be a name (line {line})")
            if key in keys:
                raise yaml.YAMLError(f"the key {key!r} stands twice (line {line})")
            keys.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or YAML 1.2 would read as something else."""


# YAML 1.1 reads 1e-4 as a string, yes and on as booleans, 1:30 as 90, 017 as 15, and 2020-01-01 as a date; YAML 1.2
# does not.
_SCALARS = (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^([-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^([-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan)$",
        list("-+0123456789."),
    ),
)
_Loader.yaml_implicit_resolvers = {}
for _name, _rule, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_rule), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_rule), _first)

_LARGEST_YAML = 1 << 20
_LONG_LIST = 100
"""Characters of the names that a message lists."""


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text. Raises ConfigError naming `where`; never runs code."""
    if len(text) > _LARGEST_YAML:
        raise ConfigError(f"{where}: {len(text):,} characters of YAML, at most {_LARGEST_YAML:,} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
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


_Assignment = tuple[list[str], Any, str]


def _assignment(text: str) -> _Assignment:
    """(path, value, the text in one line) of `a.b=value`."""
    path, equals, value = text.partition("=")
    shown = shorten(" ".join(text.split()))
    names = [" ".join(name.split()) for name in path.split(".")]
    if not equals or not all(names):
        raise ConfigError(f"`set` {shown}: expected field=value, as in steps=1000")
    return names, parse_yaml(value, where=f"`set` {shown}"), shown


def _kinds_first(assignment: _Assignment) -> tuple[bool, int]:
    path = assignment[0]
    return (False, len(path)) if path[-1] == "kind" else (True, 0)


def _assign(data: Any, path: list[str], value: Any, assignment: str) -> None:
    for depth, key in enumerate(path[:-1]):
        if data.get(key) is None:
            data[
                key
            ] = {}  # an optional section that was not there, one of a new kind, or a wrong name: parse will tell
        if not isinstance(data[key], dict):
            here = ".".join(path[: depth + 1])
            raise ConfigError(f"`set` {assignment}: {here} is not a section but one value; set it whole")
        data = data[key]
    if path[-1] == "kind" and data.get("kind") != value:
        data.clear()  # the fields of one kind mean nothing to another
    data[path[-1]] = value


def _nearest_of(name: str, allowed: Iterable[str]) -> str:
    """Return the nearest of some names, and all of them if they are few; some of many only where none is near."""
    allowed = sorted(allowed)
    near, names = nearest(name, allowed), ", ".join(allowed)
    if len(names) > _LONG_LIST:
        some = names[:_LONG_LIST].split(", ")[:-1]
        names = "" if near else f"{', '.join(some)} and {len(allowed) - len(some)} more"
    return near + (f" (there are: {names})" if names else "")


def _explain(cls: type[Config], data: object, error: ValidationError) -> str:
    """The first error as one line, and how many there are in all; a wrong name before the field that it leaves out."""
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    kind, details = first["type"], first.get("ctx", {})
    path = _dotted(cls, data, first["loc"], missing=kind == "missing")
    if kind == "extra_forbidden":
        model, name = _model_at(cls, first["loc"][:-1]), str(first["loc"][-1])
        renamed = f"; its name is {model.former_names[name]!r} now" if name in model.former_names else None
        text = f"{path}: no such field{renamed or _nearest_of(name, model.model_fields)}"
    elif kind == "missing":
        text = f"{path}: this field is required"
    elif kind == "union_tag_invalid":
        allowed = [tag.strip(" '") for tag in details["expected_tags"].split(",")]
        text = f"{path}.kind: no such kind {details['tag']!r}{_nearest_of(details['tag'], allowed)}"
    elif kind == "union_tag_not_found":
        text = f"{path}: needs a kind, that says which it is"
    elif kind == "value_error":
        text = f"{path}: {details['error']}" if path else str(details["error"])
    else:
        text = f"{path or 'value'}: {first['msg']}"
        if not isinstance(first["input"], Mapping | BaseModel):
            text += f" (found {shorten(repr(first['input']))})"
    former = [f"{old} is {new} now" for old, new in _former_names(cls, first["loc"]).items() if old in path.split(".")]
    text += f" ({', '.join(former)})" if former and kind != "extra_forbidden" else ""
    more = error.error_count() - 1
    return " ".join(text.split()) + (f" [and {more} more]" if more else "")


def _dotted(cls: type[Config], data: object, loc: tuple[int | str, ...], missing: bool) -> str:
    """Return the path as the user wrote it: former names stay, union tags that pydantic adds are left out."""
    parts: list[str] = []
    for i, step in enumerate(loc):
        if isinstance(data, Mapping):
            if step not in data:
                former = (old for old, name in _model_at(cls, loc[:i]).former_names.items() if name == step)
                step = next((old for old in former if old in data), step)
            if step in data or (missing and i == len(loc) - 1):
                parts.append(str(step))
                data = data.get(step)
        elif isinstance(data, list | tuple) and isinstance(step, int) and step < len(data):
            parts.append(str(step))
            data = data[step]
    return ".".join(parts)


def _former_names(cls: type[Config], loc: tuple[int | str, ...]) -> dict[str, str]:
    """Return the former names of the fields on a path, former -> present."""
    models = ((_model_at(cls, loc[:i]), step) for i, step in enumerate(loc))
    return {old: new for model, step in models for old, new in model.former_names.items() if new == step}


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
