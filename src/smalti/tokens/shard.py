"""One shard: its columns, how rows become bytes, and the report that says it is done."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smalti.errors import BadFile, InputError, IntegrityError
from smalti.files import failpoint, write_bytes
from smalti.tokens.parquet import table_bytes
from smalti.tokens.plan import Plan
from smalti.tokens.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_TOKENS = 1 << 18
"""Tokens of a row group: what is read to have one row. Half a megabyte, of which the footer takes half a percent."""

_ENCODINGS = {
    "key": "DELTA_BYTE_ARRAY",  # keys come in order, so that each shares its head with the one before
    "source": "DELTA_BYTE_ARRAY",
    "ids.list.element": "BYTE_STREAM_SPLIT",  # high bytes apart from low ones: near the entropy after zstd
    "shape.list.element": "DELTA_BINARY_PACKED",
    "size.list.element": "DELTA_BINARY_PACKED",
    "pts.list.element": "DELTA_BINARY_PACKED",
    "start": "DELTA_BINARY_PACKED",
    "label": "DELTA_BINARY_PACKED",
}


class Row(NamedTuple):
    """One picture, video or clip as tokens."""

    key: str
    """The name of the medium, as `smalti.data` names it; of a clip, with `#` and its first frame. Unique in a set."""
    ids: np.ndarray
    """`t h w`, in the smallest unsigned integers that hold the codebook."""
    size: tuple[int, int, int]
    """Frames, rows and columns of pixels, before the padding."""
    fps: float | None
    """Mean frames per second; None for a picture."""
    pts: np.ndarray | None
    """When each frame is shown, in units of `time_base` seconds, as the file says; None for a picture."""
    time_base: str | None
    """A fraction, as `1/12800`."""
    start: int
    """The first frame, among the chosen ones of the video."""
    label: int | None
    class_name: str | None
    caption: str | None
    source: str
    """The key of the medium."""
    source_sha256: bytes
    """Of the medium's bytes."""

    def tensor(self) -> Tensor:
        """The ids as int64 `t h w`."""
        return torch.from_numpy(self.ids.astype(np.int64))


class Fault(NamedTuple):
    """An item that is not in the shard."""

    key: str
    code: str
    message: str

    @classmethod
    def of(cls, key: str, bad: BadFile) -> "Fault":
        """The record of a bad file."""
        return cls(key, bad.code, bad.message)


class Report(NamedTuple):
    """What a shard holds: `ok + bad + skipped = listed`, in media; a video cut into clips gives several rows."""

    shard: int
    listed: int
    ok: int
    rows: int
    tokens: int
    frames: int
    pixels: int
    bytes: int
    sha256: str
    bad: tuple[Fault, ...]
    skipped: tuple[Fault, ...]


def id_type(codebook_size: int) -> np.dtype[Any]:
    """The smallest unsigned integer that holds every id."""
    for kind in (np.uint8, np.uint16, np.uint32):
        if codebook_size - 1 <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.uint64)


def schema(codebook_size: int, metadata: dict[str, str] | None = None) -> "pa.Schema":
    """The columns of a shard."""
    import pyarrow as pa

    fields = [
        ("key", pa.string()),
        ("ids", pa.list_(pa.from_numpy_dtype(id_type(codebook_size)))),
        ("shape", pa.list_(pa.int32())),
        ("size", pa.list_(pa.int32())),
        ("fps", pa.float64()),
        ("pts", pa.list_(pa.int64())),
        ("time_base", pa.string()),
        ("start", pa.int64()),
        ("label", pa.int64()),
        ("class_name", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("source_sha256", pa.binary()),
    ]
    return pa.schema(fields, metadata=metadata)


def shard_bytes(rows: Sequence[Row], codebook_size: int, metadata: dict[str, str]) -> bytes:
    """The Parquet file of these rows. Raises ValueError for an id outside [0, codebook_size)."""
    columns = schema(codebook_size, metadata)
    groups = (_group(part, columns, codebook_size) for part in _groups(rows))
    return table_bytes(groups, columns, _ENCODINGS)


def write_shard(plan: Plan, report: Report, rows: Sequence[Row]) -> Report:
    """Write a shard, and after it its report; each appears whole or not at all, and always with the same bytes."""
    data = shard_bytes(rows, plan.about.codebook_size, shard_metadata(plan, report.shard))
    report = report._replace(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_bytes(plan.shard_path(report.shard), data)
    failpoint("write_shard:before-report")
    write_sealed(plan.report_path(report.shard), "shard report", {"plan": plan.digest, **_plain(report)})
    return report


def shard_metadata(plan: Plan, shard: int) -> dict[str, str]:
    """What the footer of a shard says, so that a file that went astray can be told."""
    about = {"plan": plan.digest, "shard": shard, "shards": plan.shards, "tokenizer": plan.about.plain()}
    return {"smalti": json.dumps(about)}


def read_report(plan: Plan, shard: int) -> Report | None:
    """The report of a shard that is done, None where it is not. Raises IntegrityError where it is damaged."""
    path = plan.report_path(shard)
    try:
        data = read_sealed(path, "shard report")
    except InputError:
        return None
    if data["plan"] != plan.digest or data["shard"] != shard:
        raise IntegrityError(f"{path}: is of another shard or token set; delete it and tokenize again")
    faults = {name: tuple(Fault(*fault) for fault in data[name]) for name in ("bad", "skipped")}
    return Report(**{**{name: data[name] for name in Report._fields}, **faults})


def is_done(plan: Plan, shard: int) -> bool:
    """Whether a shard is there in the size that its report tells."""
    try:
        report = read_report(plan, shard)
    except IntegrityError:
        return False  # it is made anew, and its report with it
    try:
        return report is not None and plan.shard_path(shard).stat().st_size == report.bytes
    except FileNotFoundError:
        return False


def _plain(report: Report) -> dict[str, Any]:
    return {**report._asdict(), "bad": [list(f) for f in report.bad], "skipped": [list(f) for f in report.skipped]}


def _groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Runs of rows with at most `GROUP_TOKENS` tokens; a longer row is one by itself."""
    first, total = 0, 0
    for i, row in enumerate(rows):
        if i > first and total + row.ids.size > GROUP_TOKENS:
            yield rows[first:i]
            first, total = i, 0
        total += row.ids.size
    if rows:
        yield rows[first:]


def _group(rows: Sequence[Row], columns: "pa.Schema", codebook_size: int) -> "pa.Table":
    import pyarrow as pa

    kind = id_type(codebook_size)
    flat = np.concatenate([row.ids.reshape(-1) for row in rows])
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < codebook_size:
        raise ValueError(f"ids {flat.min()} to {flat.max()} are not all inside [0, {codebook_size})")
    lists = {
        "ids": pa.ListArray.from_arrays(_offsets([row.ids.size for row in rows]), pa.array(flat.astype(kind))),
        "shape": pa.array([row.ids.shape for row in rows], columns.field("shape").type),
    }
    plain = {
        name: pa.array([getattr(row, name) for row in rows], columns.field(name).type)
        for name in columns.names
        if name not in lists
    }
    return pa.table([{**plain, **lists}[name] for name in columns.names], schema=columns)


def _offsets(sizes: Sequence[int]) -> "pa.Array":
    import pyarrow as pa

    ends = np.cumsum([0, *sizes])
    if ends[-1] > np.iinfo(np.int32).max:
        raise InputError(f"a row has {ends[-1]:,} tokens, more than a list holds; cut the video with `clip`")
    return pa.array(ends.astype(np.int32))
