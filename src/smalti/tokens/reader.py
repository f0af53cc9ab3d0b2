"""Reading a token set by row, by key, or in order; digests and ids are checked on the way."""

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from smalti.errors import InputError, IntegrityError
from smalti.files import sha256
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import ids_to_frames, ids_to_image
from smalti.tokenizer_info import TokenizerInfo
from smalti.tokens.config import TokenizeOptions
from smalti.tokens.finalize import DATASET, summarize_set
from smalti.tokens.plan import (
    PLAN,
    Plan,
    load_plan,
    open_table,
    options_of,
    pyarrow_version,
    read_digest_json,
    read_group,
    read_provenance,
)
from smalti.tokens.shard import TokenRow, shard_schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

CACHE = 256 << 20
"""Bytes of decoded row groups that are kept in memory."""


class _Group(NamedTuple):
    """A row group, decoded."""

    table: "pa.Table"
    ids: np.ndarray
    """Ids of all its rows, one after the other."""
    ends: np.ndarray
    """End of the ids of each row."""
    shapes: np.ndarray
    """Three numbers for each row."""

    @property
    def bytes(self) -> int:
        return self.ids.nbytes + self.table.nbytes


class TokenSet:
    """A finished token set. Rows are counted from 0 through all shards, in the order of the plan.

    Every shard is checked against its digest when its first row is read, and every id against the codebook; `verify`
    False leaves the digests out. A set may be read by several processes, forked ones too.
    """

    def __init__(self, path: str | Path, *, verify: bool = True, cache: int = CACHE) -> None:
        pyarrow_version()
        self.path, self.verify, self.cache = Path(path), verify, cache
        if not (self.path / DATASET).is_file():
            begun = (self.path / PLAN).is_file()
            what = f"no token set (it has no {DATASET}); give the folder that smalti tokenize wrote"
            what = what if self.path.exists() else "no such folder; give the folder that smalti tokenize wrote"
            what = "is not finished: run `smalti tokenize` again" if begun else what
            raise InputError(f"{self.path}: {what}")
        data = read_digest_json(self.path / DATASET, "token set")
        where = str(self.path / DATASET)
        self.tokenizer_info = TokenizerInfo.parse(data["tokenizer"], where)
        """Facts of the tokenizer that made the ids."""
        self.options = TokenizeOptions.parse(options_of(data), where)
        self.classes: tuple[str, ...] = tuple(data["classes"])
        self.totals: dict[str, Any] = data["totals"]
        self.plan: str = data["plan"]
        self.inputs: dict[str, Any] = data["inputs"]
        self._sha256: list[str] = data["shards"]["sha256"]
        self._bytes: list[int] = data["shards"]["bytes"]
        self._ends = np.cumsum([0, *data["shards"]["rows"]])
        self._open: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._held = 0
        self._process = os.getpid()
        self._keys: tuple[np.ndarray, np.ndarray] | None = None
        self._check_names()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, index: int) -> TokenRow:
        """Return row `index`. Raises IndexError, and IntegrityError where the file is not what was written."""
        group, place = self._find(index)
        names = (name for name in TokenRow._fields if name in group.table.column_names)
        cells = {name: group.table[name][place].as_py() for name in names}
        cells["ids"] = self._checked(group, place, index)
        cells["size"] = tuple(cells["size"])
        cells["pts"] = None if cells["pts"] is None else np.asarray(cells["pts"], np.int64)
        return TokenRow(**cells)

    def ids(self, index: int) -> Int[Tensor, "t h w"]:
        """Return the ids of a row alone, as int64; faster than `row`."""
        group, place = self._find(index)
        return torch.from_numpy(self._checked(group, place, index).astype(np.int64))

    def label(self, index: int) -> int | None:
        """Return the number of the class of a row, None where it has none."""
        return self.class_of(index)[0]

    def class_of(self, index: int) -> tuple[int | None, str | None]:
        """Return (number, name) of the class of a row, each None where it has none."""
        group, place = self._find(index)
        return group.table["label"][place].as_py(), group.table["class_name"][place].as_py()

    def __iter__(self) -> Iterator[TokenRow]:
        """Yield all rows in order."""
        return (self.row(index) for index in range(len(self)))

    def find(self, key: str) -> int:
        """Return the row of a key; the first call reads all keys. Raises InputError where there is none."""
        hashes, order = self._key_index()
        key_hash = _hash(key)
        at = int(np.searchsorted(hashes, key_hash))
        while at < len(hashes) and hashes[at] == key_hash:
            index = int(order[at])
            group, place = self._find(index)
            if group.table["key"][place].as_py() == key:
                return index
            at += 1
        raise InputError(f"{self.path}: no row has the key {key}")

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise IntegrityError unless `tokenizer` is the one that made the set."""
        self.tokenizer_info.check(tokenizer.info, self.path)

    def shard_path(self, shard: int) -> Path:
        """Return the Parquet file of a shard."""
        return self.path / "data" / f"tokens-{shard:05d}-of-{len(self._sha256):05d}.parquet"

    def _check_names(self) -> None:
        shards = {self.shard_path(shard).name for shard in range(len(self._sha256))}
        folder = self.path / "data"
        files = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        for name in sorted(shards - files):
            raise IntegrityError(f"{folder / name}: is missing; fetch it again, or tokenize again")
        for name in sorted(files - shards):
            if not name.startswith("."):
                raise IntegrityError(f"{folder / name}: is no shard of this set; move it elsewhere")

    def _check_shard(self, shard: int) -> None:
        path = self.shard_path(shard)
        if path.stat().st_size != self._bytes[shard] or sha256(path) != self._sha256[shard]:
            raise IntegrityError(f"{path}: has changed since it was written; use another copy, or tokenize again")

    def _find(self, index: int) -> tuple[_Group, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: row {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, "right")) - 1
        place = index - int(self._ends[shard])
        table = self._table(shard)
        number = 0
        while place >= (rows := table.metadata.row_group(number).num_rows):
            place -= rows
            number += 1
        return self._group(shard, number), place

    def _table(self, shard: int) -> "pq.ParquetFile":
        if os.getpid() != self._process:  # a fork shares the places of open files with its parent
            self._open, self._process = {}, os.getpid()
        if shard not in self._open:
            path = self.shard_path(shard)
            if self.verify:
                self._check_shard(shard)
            table = open_table(path)
            _check_footer(path, table, self.plan, shard, self.tokenizer_info)
            if table.metadata.num_rows != self._ends[shard + 1] - self._ends[shard]:
                raise IntegrityError(f"{path}: has {table.metadata.num_rows} rows, not those of {DATASET}")
            if len(self._open) >= 64:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = table
        return self._open[shard]

    def _group(self, shard: int, number: int) -> _Group:
        place = shard, number
        if place in self._groups:
            self._groups.move_to_end(place)
            return self._groups[place]
        rows = read_group(self.shard_path(shard), self._table(shard), number).combine_chunks()
        ids, shapes = rows["ids"].chunk(0), rows["shape"].chunk(0)
        if len(shapes.values) != 3 * len(rows):
            raise IntegrityError(f"{self.shard_path(shard)}: row group {number} has shapes that are not three numbers")
        ends = ids.offsets.to_numpy()[1:]
        group = _Group(rows.drop_columns(["ids", "shape"]), ids.values.to_numpy(), ends, shapes.values.to_numpy())
        self._groups[place] = group
        self._held += group.bytes
        while self._held > self.cache and len(self._groups) > 1:
            self._held -= self._groups.popitem(last=False)[1].bytes
        return group

    def _checked(self, group: _Group, place: int, index: int) -> np.ndarray:
        ids = group.ids[group.ends[place - 1] if place else 0 : group.ends[place]]
        shape, end = group.shapes[3 * place : 3 * place + 3].tolist(), self.tokenizer_info.codebook_size
        if ids.size != math.prod(shape):
            raise IntegrityError(f"{self.path}: row {index} has {ids.size} ids, not those of the shape {shape}")
        if ids.size and int(ids.max()) >= end:
            raise IntegrityError(f"{self.path}: row {index} has the id {ids.max()}, outside [0, {end})")
        return ids.reshape(shape)

    def _key_index(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (hashes of keys, sorted; their rows): 16 bytes a row."""
        if self._keys is None:
            hashes = np.empty(len(self), np.uint64)
            at = 0
            for shard in range(len(self._sha256)):
                table = self._table(shard)
                for number in range(table.num_row_groups):
                    for key in read_group(self.shard_path(shard), table, number, ["key"])["key"].to_pylist():
                        hashes[at] = _hash(key)
                        at += 1
            order = np.argsort(hashes, kind="stable")
            self._keys = hashes[order], order
        return self._keys


def decode_row(tokenizer: Tokenizer, row: TokenRow) -> Iterator[Tensor]:
    """Decode the frames of a row, uint8 `h w 3`, in memory that does not grow where the tokenizer is causal.

    Raises ValueError for an id that the tokenizer does not have.
    """
    ids, (count, height, width) = row.tensor()[None], row.size
    if count == 1:
        yield ids_to_image(tokenizer, ids, (height, width))
    else:
        yield from ids_to_frames(tokenizer, [(count, ids)], (height, width))


def is_token_set(path: Path) -> bool:
    """Return whether a folder is a token set, finished or begun."""
    return (path / PLAN).is_file() or (path / DATASET).is_file()


def describe_set(path: Path) -> dict[str, Any]:
    """Describe a token set as plain data; if it is not finished, with how far it is."""
    finished = (path / DATASET).is_file()
    content: TokenSet | Plan = TokenSet(path) if finished else load_plan(path)
    totals = content.totals if isinstance(content, TokenSet) else summarize_set(content)._asdict()
    info, tokens = content.tokenizer_info, totals["tokens"]
    return {
        "kind": "token set",
        "finished": finished,
        **totals,
        "stored_bits_per_token": 8 * totals["bytes"] / tokens if tokens else None,
        "codebook_bits": math.log2(info.codebook_size),
        "tokenizer": info.plain(),
        "options": content.options.plain(),
        "provenance": read_provenance(path),
    }


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _check_footer(path: Path, table: "pq.ParquetFile", plan: str, shard: int, info: TokenizerInfo) -> None:
    """Raise IntegrityError unless the file is this shard of this set and has the columns of one."""
    try:
        footer = json.loads((table.metadata.metadata or {})[b"smalti"])
    except (KeyError, ValueError):
        raise IntegrityError(f"{path}: is no shard of a token set; use another copy") from None
    if footer.get("plan") != plan or footer.get("shard") != shard:
        raise IntegrityError(f"{path}: is a shard of another token set, or another shard of this one")
    has_aspect = "pixel_aspect" in table.schema_arrow.names
    schema = shard_schema(info.codebook_size, pixel_aspect=has_aspect)
    if table.schema_arrow.names != schema.names or table.schema_arrow.field("ids").type != schema.field("ids").type:
        raise IntegrityError(f"{path}: does not have the columns of a token set of {info.codebook_size:,} codes")
