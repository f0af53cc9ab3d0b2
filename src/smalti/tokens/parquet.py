"""pyarrow, and how we write with it: the same rows always give the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smalti.errors import IntegrityError, MachineError
from smalti.text import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LEVEL = 9
"""Of zstd: random ids of 2^18 codes take 18.4 bits, 18.6 at level 3, in both cases far faster than an encoder."""


def need_pyarrow() -> str:
    """The version of pyarrow, whose writer decides bytes. Raises MachineError where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise MachineError("token sets are Parquet, which needs pyarrow: pip install 'smalti[parquet]'") from None
    return str(pyarrow.__version__)


def table_bytes(groups: Iterable["pa.Table"], schema: "pa.Schema", encodings: Mapping[str, str]) -> bytes:
    """A Parquet file with these row groups. `encodings` by column; `key` and `source` have statistics for look-ups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    indexed: Any = [name for name in ("key", "source", "shard", "label") if name in schema.names]
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=LEVEL,
        use_dictionary=False,
        column_encoding=dict(encodings),
        write_statistics=indexed,
        store_schema=False,
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(1, group.num_rows))
        if schema.metadata:
            writer.add_key_value_metadata(dict(schema.metadata))
    return bytes(sink.getvalue())


def open_table(path: Path) -> "pq.ParquetFile":
    """Raises IntegrityError where it is no whole Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False)  # one thread: threads do not live on in forked readers
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{path}: no whole Parquet file: {one_line(error)}; use another copy") from None


def read_group(path: Path, table: "pq.ParquetFile", group: int, columns: Sequence[str] | None = None) -> "pa.Table":
    """A row group. Raises IntegrityError where it cannot be read."""
    try:
        return table.read_row_group(group, None if columns is None else list(columns), use_threads=False)
    except Exception as error:  # damaged pages raise OSError, ArrowException, ValueError, ...
        raise IntegrityError(f"{path}: row group {group} cannot be read: {one_line(error)}; use another copy") from None
