"""The files of a token set: JSON that carries its own digest, and Parquet whose bytes follow from its rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smalti.errors import InputError, IntegrityError, MachineError
from smalti.files import naming_os_errors, write_bytes
from smalti.text import one_line
from smalti.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TOKEN_SET_FORMAT = 2
"""Version of the format of new token sets. Sets of version 1 are read, and those that were begun are finished as such;
their options have no `encoding`, which was `split`."""
_READ_FORMATS = (1, 2)

ZSTD_LEVEL = 9
"""Random ids of 2^18 codes take 18.4 bits, 18.6 at level 3, in both cases far faster than an encoder."""


def write_digest_json(path: Path, kind: str, content: Mapping[str, Any], version: int = TOKEN_SET_FORMAT) -> None:
    """Write the content with `format`, `kind` and, last, `digest`: the sha256 of all the rest. Whole or not at all."""
    write_bytes(path, _text(_with_digest(kind, content, version)))


def read_digest_json(path: Path, kind: str) -> dict[str, Any]:
    """Read what `write_digest_json` wrote. Raises InputError where it is absent, IntegrityError where a bit changed."""
    with naming_os_errors(path):
        if not path.exists():
            raise InputError(f"{path}: no such file")
        text = path.read_bytes()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise IntegrityError(f"{path}: not the {kind} of a token set, or damaged; use another copy")
    version = data.get("format")
    if version not in _READ_FORMATS:
        reads = f"this is smalti {__version__}, which reads {' and '.join(map(str, _READ_FORMATS))}: update smalti"
        raise IntegrityError(f"{path}: format {version}; {reads}")
    content = {name: data[name] for name in data if name not in ("format", "kind", "digest")}
    if text != _text(_with_digest(kind, content, version)):
        raise IntegrityError(f"{path}: has changed since it was written; use another copy")
    return data


def options_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in plan.json or dataset.json, with those that its version of the format did not write."""
    return {"encoding": "split", **data["options"]} if data["format"] == 1 else dict(data["options"])


def _with_digest(kind: str, content: Mapping[str, Any], version: int) -> dict[str, Any]:
    body = {"format": version, "kind": kind, **content}
    return {**body, "digest": hashlib.sha256(_text(body)).hexdigest()}


def _text(data: Mapping[str, Any]) -> bytes:
    """Return JSON with one line for each field: short to read, and long lists stay compact."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in data.items())
    return f"{{\n{lines}\n}}\n".encode()


def pyarrow_version() -> str:
    """Return the version of pyarrow, whose writer decides bytes. Raises MachineError where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise MachineError("token sets are Parquet, which needs pyarrow: pip install 'smalti[parquet]'") from None
    return str(pyarrow.__version__)


def table_bytes(
    groups: "Sequence[pa.Table]",
    schema: "pa.Schema",
    encodings: Mapping[str, str],
    dictionaries: Sequence[str] = (),
) -> bytes:
    """Return a Parquet file with these row groups. Columns are stored as `encodings` says, with a dictionary, or plain.

    The columns `key`, `source`, `shard` and `label` have statistics for look-ups.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    indexed: Any = [name for name in ("key", "source", "shard", "label") if name in schema.names]
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=list(dictionaries) or False,
        column_encoding=dict(encodings) or None,
        write_statistics=indexed,
        store_schema=False,
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(1, group.num_rows))
        if schema.metadata:
            writer.add_key_value_metadata(dict(schema.metadata))
    return bytes(sink.getvalue())


def open_table(path: Path) -> "pq.ParquetFile":
    """Open a Parquet file. Raises IntegrityError where it is not a whole one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False)  # one thread: threads do not live on in forked readers
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{path}: no whole Parquet file: {one_line(error)}; use another copy") from None


def read_group(path: Path, table: "pq.ParquetFile", group: int, columns: Sequence[str] | None = None) -> "pa.Table":
    """Read a row group. Raises IntegrityError where it cannot be read."""
    try:
        return table.read_row_group(group, None if columns is None else list(columns), use_threads=False)
    except Exception as error:  # damaged pages raise OSError, ArrowException, ValueError, ...
        raise IntegrityError(f"{path}: row group {group} cannot be read: {one_line(error)}; use another copy") from None
