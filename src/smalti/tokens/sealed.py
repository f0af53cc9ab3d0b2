"""JSON that knows when it has been changed: its digest is inside, and its bytes follow from its content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.errors import InputError, IntegrityError, MachineError
from smalti.files import naming_os_errors, write_bytes
from smalti.version import __version__

FORMAT = 1
"""Version of the format of token sets; a reader refuses another one."""


def seal(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with `format`, `kind` and, last, `digest`: the sha256 of all the rest."""
    body = {"format": FORMAT, "kind": kind, **content}
    return {**body, "digest": hashlib.sha256(_text(body)).hexdigest()}


def write_sealed(path: Path, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write sealed JSON, whole or not at all, and give what was written."""
    data = seal(kind, content)
    write_bytes(path, _text(data))
    return data


def read_sealed(path: Path, kind: str) -> dict[str, Any]:
    """Read sealed JSON; InputError where it is absent, IntegrityError where one bit of it is not as it was written."""
    try:
        with naming_os_errors(path):
            text = path.read_bytes()
    except MachineError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{path}: no such file") from None
        raise
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise IntegrityError(f"{path}: not the {kind} of a token set, or damaged; use another copy")
    if data.get("format") != FORMAT:
        raise IntegrityError(
            f"{path}: format {data.get('format')}; this is smalti {__version__}, which reads {FORMAT}: update smalti"
        )
    if text != _text(seal(kind, {name: data[name] for name in data if name not in ("format", "kind", "digest")})):
        raise IntegrityError(f"{path}: has changed since it was written; use another copy")
    return data


def _text(data: Mapping[str, Any]) -> bytes:
    """One line for each field: short to read, and long lists stay compact."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in data.items())
    return f"{{\n{lines}\n}}\n".encode()
