"""One shard: its rows, how they become bytes, and the report that says it is done."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smalti.errors import BadFile, ConfigError, InputError, IntegrityError
from smalti.files import failpoint, write_bytes
from smalti.tokens.config import Encoding
from smalti.tokens.plan import Plan, read_digest_json, table_bytes, write_digest_json

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_TOKENS = 1 << 18
"""Tokens of a row group, which is read whole for one row. Half a megabyte; the footer takes half a percent of it."""

_IDS = "ids.list.element"
_DICTIONARY_CODES = 1 << 12
"""Largest codebook whose ids are stored with a dictionary, in bits; above it the dictionary weighs too much."""
_SPLIT = {
    "key": "DELTA_BYTE_ARRAY",  # keys come in order, so that each shares its head with the one before
    "source": "DELTA_BYTE_ARRAY",
    _IDS: "BYTE_STREAM_SPLIT",  # high bytes apart from low ones: near the entropy after zstd
    "shape.list.element": "DELTA_BINARY_PACKED",
    "size.list.element": "DELTA_BINARY_PACKED",
    "pts.list.element": "DELTA_BINARY_PACKED",
    "start": "DELTA_BINARY_PACKED",
    "label": "DELTA_BINARY_PACKED",
}


class TokenRow(NamedTuple):
    """One image, video or clip as tokens."""

    key: str
    """Name of the medium, as `smalti.data` names it; for a clip, with `#` and its first frame. Unique in a set."""
    ids: np.ndarray
    """Ids `t h w`, in the smallest unsigned integers that hold the codebook."""
    size: tuple[int, int, int]
    """Frames, height and width in pixels, before the padding."""
    fps: float | None
    """Mean frames per second; None for an image."""
    pts: np.ndarray | None
    """Presentation time of each frame in units of `time_base` seconds, as the file says; None for an image."""
    time_base: str | None
    """Seconds of a unit of `pts` as a fraction, as `1/12800`; None for an image."""
    start: int
    """First frame of a clip, among those chosen from the video."""
    label: int | None
    """Number of the class."""
    class_name: str | None
    """Name of the class."""
    caption: str | None
    """Text that goes with the medium."""
    source: str
    """Key of the medium."""
    source_sha256: bytes
    """Sha256 of the bytes of the medium."""
    pixel_aspect: str | None = None
    """Width of a pixel over its height as a fraction, as `16/15`; None for square pixels."""

    def tensor(self) -> Tensor:
        """Return the ids as int64 `t h w`."""
        return torch.from_numpy(self.ids.astype(np.int64))


class BadItem(NamedTuple):
    """An item that is not in the shard, and why."""

    key: str
    code: str
    """Short kind of the fault, as in `BadFile`."""
    message: str

    @classmethod
    def of(cls, key: str, bad: BadFile) -> "BadItem":
        """Return the record of a bad file."""
        return cls(key, bad.code, bad.message)


class ShardReport(NamedTuple):
    """Counts of a shard. `ok + bad + skipped = listed`, in media; a video that is cut into clips gives several rows."""

    shard: int
    """Number of the shard."""
    listed: int
    """Media that its inputs hold, and inputs that cannot be read."""
    ok: int
    """Media that became rows."""
    rows: int
    tokens: int
    frames: int
    pixels: int
    bytes: int
    """Size of the Parquet file."""
    sha256: str
    """Digest of the Parquet file."""
    bad: tuple[BadItem, ...]
    skipped: tuple[BadItem, ...]


def id_type(codebook_size: int) -> np.dtype[Any]:
    """Return the smallest unsigned integer type that holds every id."""
    for kind in (np.uint8, np.uint16, np.uint32):
        if codebook_size - 1 <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.uint64)


def shard_schema(
    codebook_size: int, metadata: dict[str, str] | None = None, *, pixel_aspect: bool = False
) -> "pa.Schema":
    """Return the columns of a shard; `pixel_aspect` is only in those that have a video whose pixels are not square."""
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
        *([("pixel_aspect", pa.string())] if pixel_aspect else []),
    ]
    return pa.schema(fields, metadata=metadata)


def shard_bytes(
    rows: Sequence[TokenRow], codebook_size: int, metadata: dict[str, str], encoding: Encoding = "plain"
) -> bytes:
    """Return the Parquet file of these rows. Raises ValueError for an id outside [0, codebook_size)."""
    columns = shard_schema(codebook_size, metadata, pixel_aspect=any(row.pixel_aspect for row in rows))
    groups = [_group(group, columns, codebook_size) for group in _groups(rows)]
    if encoding == "split":
        return table_bytes(groups, columns, _SPLIT)
    return table_bytes(groups, columns, {}, [_IDS] if codebook_size <= _DICTIONARY_CODES else [])


def write_shard(plan: Plan, report: ShardReport, rows: Sequence[TokenRow]) -> ShardReport:
    """Write a shard, and after it its report; each appears whole or not at all, and always with the same bytes."""
    footer = _metadata(plan, report.shard)
    data = shard_bytes(rows, plan.tokenizer_info.codebook_size, footer, plan.options.encoding)
    report = report._replace(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_bytes(plan.shard_path(report.shard), data)
    failpoint("write_shard:before-report")
    content = {"plan": plan.digest, **report._asdict()}
    write_digest_json(plan.report_path(report.shard), "shard report", content, plan.format)
    return report


def _metadata(plan: Plan, shard: int) -> dict[str, str]:
    """Return what the footer of a shard says, so that a file that went astray can be recognised."""
    facts = {"plan": plan.digest, "shard": shard, "shards": plan.shards, "tokenizer": plan.tokenizer_info.plain()}
    return {"smalti": json.dumps(facts)}


def read_report(plan: Plan, shard: int) -> ShardReport | None:
    """Return the report of a shard that is done, None where it is not. Raises IntegrityError where it is damaged."""
    path = plan.report_path(shard)
    try:
        data = read_digest_json(path, "shard report")
    except InputError:
        return None
    if data["plan"] != plan.digest or data["shard"] != shard:
        raise IntegrityError(f"{path}: is of another shard or token set; delete it and tokenize again")
    items = {name: tuple(BadItem(*item) for item in data[name]) for name in ("bad", "skipped")}
    return ShardReport(**{**{name: data[name] for name in ShardReport._fields}, **items})


def is_done(plan: Plan, shard: int) -> bool:
    """Return whether a shard is there in the size that its report says."""
    try:
        report = read_report(plan, shard)
    except IntegrityError:
        return False  # it is written again, and its report with it
    try:
        return report is not None and plan.shard_path(shard).stat().st_size == report.bytes
    except FileNotFoundError:
        return False


def pending_shards(plan: Plan, part: tuple[int, int] = (0, 1)) -> list[int]:
    """Return the shards of part i of n that are not done. Every process begins at another one, so that several
    commands on one set seldom make the same."""
    index, parts = part
    if not 0 <= index < parts:
        raise ConfigError(f"`shard` {index}/{parts}: parts are numbered from 0 to {parts - 1}")
    shards = [shard for shard in range(index, plan.shards, parts) if not is_done(plan, shard)]
    first = os.getpid() * 7919 % max(1, len(shards)) if parts == 1 else 0
    return shards[first:] + shards[:first]


def _groups(rows: Sequence[TokenRow]) -> Iterator[Sequence[TokenRow]]:
    """Yield runs of rows with at most `GROUP_TOKENS` tokens; a longer row is one by itself."""
    first, total = 0, 0
    for i, row in enumerate(rows):
        if i > first and total + row.ids.size > GROUP_TOKENS:
            yield rows[first:i]
            first, total = i, 0
        total += row.ids.size
    if rows:
        yield rows[first:]


def _group(rows: Sequence[TokenRow], columns: "pa.Schema", codebook_size: int) -> "pa.Table":
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
