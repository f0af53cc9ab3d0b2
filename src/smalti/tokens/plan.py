"""The plan of a token set: which inputs make which shard, written down before any work and never changed.

A shard is a function of its inputs, the tokenizer and the options, all of which the plan names. So who makes it, how
often, on how many machines and after how many restarts does not matter.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smalti.config import Config
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.files import sha256, write_bytes
from smalti.text import printable
from smalti.tokenizer_info import TokenizerInfo
from smalti.tokens.inputs import AnyInputs, Found
from smalti.tokens.options import Options, cut_into_shards
from smalti.tokens.parquet import need_pyarrow, open_table, read_group, table_bytes
from smalti.tokens.sealed import read_sealed, write_sealed

PLAN = "plan.json"
INPUTS = "inputs.parquet"
_GROUP = 1 << 16


class _Named(Config):
    """The parts of plan.json that are configs, so that a fault is named by its place."""

    tokenizer: TokenizerInfo
    options: Options
    inputs: AnyInputs


class Input(NamedTuple):
    """A file, tar or table of the plan."""

    name: str
    """Its path below the root, as the operating system gives it."""
    bytes: int
    """Its size when the plan was made."""
    label: int | None


class Plan(NamedTuple):
    """What `plan.json` says, and where it is."""

    folder: Path
    digest: str
    about: TokenizerInfo
    options: Options
    inputs: AnyInputs
    classes: tuple[str, ...]
    listed: int
    """Inputs in all."""
    shards: int
    writer: str
    """The version of pyarrow that the bytes follow from."""

    def name(self, shard: int) -> str:
        """The name of a shard without its suffix: `tokens-00003-of-00012`."""
        return f"tokens-{shard:05d}-of-{self.shards:05d}"

    def shard_path(self, shard: int) -> Path:
        """The Parquet file of a shard."""
        return self.folder / "data" / f"{self.name(shard)}.parquet"

    def report_path(self, shard: int) -> Path:
        """The report of a shard, which is written after it and says that it is done."""
        return self.folder / "reports" / f"{self.name(shard)}.json"

    def counts(self) -> list[int]:
        """How many inputs each shard has."""
        path = self.folder / INPUTS
        with open_table(path) as table:
            groups = [read_group(path, table, group, ["shard"])["shard"] for group in range(table.num_row_groups)]
        return np.bincount([shard for group in groups for shard in group.to_pylist()], minlength=self.shards).tolist()

    def inputs_of(self, shard: int) -> list["Input"]:
        """The inputs of a shard. Raises IntegrityError where the list of inputs is damaged."""
        import pyarrow.compute as pc

        path = self.folder / INPUTS
        found: list[Input] = []
        with open_table(path) as table:
            for group in range(table.num_row_groups):
                bounds = table.metadata.row_group(group).column(3).statistics
                if bounds.min <= shard <= bounds.max:
                    rows = read_group(path, table, group)
                    columns = rows.filter(pc.equal(rows["shard"], shard)).to_pydict()
                    names = map(os.fsdecode, columns["name"])
                    found += map(Input, names, columns["bytes"], columns["label"])
        return found


def make_plan(folder: Path, about: TokenizerInfo, inputs: AnyInputs, found: Found, options: Options) -> Plan:
    """Write the plan into `folder`, or check that the one that is there is the same.

    Raises IntegrityError where that was begun with another tokenizer, ConfigError where with other options, InputError
    where the list of inputs has changed since.
    """
    writer = need_pyarrow()
    sizes = [_bytes(found.root, name) for name in found.names]
    ends = cut_into_shards(sizes, options.shard_files, options.shard_bytes)
    table = _input_bytes(found, sizes, ends)
    content = {
        "tokenizer": about.plain(),
        "options": options.plain(),
        "inputs": inputs.identity(),
        "classes": list(found.classes),
        "list": {
            "inputs": len(sizes),
            "bytes": sum(sizes),
            "shards": len(ends),
            "sha256": hashlib.sha256(table).hexdigest(),
        },
        "writer": f"pyarrow {writer}",
    }
    path = folder / PLAN
    if path.exists():
        _compare(path, content, found)
    else:
        _check_free(folder)
        write_bytes(folder / INPUTS, table)
        write_sealed(path, "plan", content)
    return load_plan(folder)


def load_plan(folder: Path) -> Plan:
    """Read the plan of a token set, finished or not. Raises InputError where there is none, IntegrityError."""
    path = folder / PLAN
    data = read_sealed(path, "plan")
    if sha256(folder / INPUTS) != data["list"]["sha256"]:
        raise IntegrityError(f"{folder / INPUTS}: has changed since it was written; use another copy")
    named = _Named.parse(
        {
            "tokenizer": data["tokenizer"],
            "options": data["options"],
            "inputs": {**data["inputs"], "path": "."},
        },
        where=str(path),
    )
    return Plan(
        folder,
        data["digest"],
        named.tokenizer,
        named.options,
        named.inputs,
        tuple(data["classes"]),
        data["list"]["inputs"],
        data["list"]["shards"],
        data["writer"],
    )


def _input_bytes(found: Found, sizes: list[int], ends: list[int]) -> bytes:
    import pyarrow as pa

    schema = pa.schema([("name", pa.binary()), ("bytes", pa.int64()), ("label", pa.int64()), ("shard", pa.int32())])
    shards = [shard for shard, end in enumerate(ends) for _ in range(end - (ends[shard - 1] if shard else 0))]
    labels: Sequence[int | None] = found.labels or [None] * len(sizes)

    def groups() -> Iterator["pa.Table"]:
        for at in range(0, len(sizes), _GROUP):
            part = slice(at, at + _GROUP)
            names = [os.fsencode(name) for name in found.names[part]]
            yield pa.table([names, sizes[part], labels[part], shards[part]], schema=schema)

    return table_bytes(groups(), schema, {"bytes": "DELTA_BINARY_PACKED", "shard": "DELTA_BINARY_PACKED"})


def _bytes(root: Path, name: str) -> int:
    try:
        return (root / name).stat().st_size
    except (OSError, ValueError):
        return 0  # reading it will tell


def _check_free(folder: Path) -> None:
    """A folder that is no token set must be empty, but for what a killed planner left."""
    others = [entry.name for entry in folder.iterdir() if entry.name != INPUTS] if folder.is_dir() else []
    if [name for name in others if not name.startswith(".")] or folder.is_file():
        raise ConfigError(f"{folder}: already exists and is no token set; choose another --out")


def _compare(path: Path, content: Mapping[str, Any], found: Found) -> None:
    there = read_sealed(path, "plan")
    if there["tokenizer"] != content["tokenizer"]:
        before, now = (about["fingerprint"][:16] for about in (there["tokenizer"], content["tokenizer"]))
        raise IntegrityError(
            f"{path}: begun with the tokenizer {before}..., this one is {now}...; use that one, or another --out"
        )
    for part in ("options", "inputs"):
        names = sorted(there[part].keys() | content[part].keys())
        changed = [name for name in names if there[part].get(name) != content[part].get(name)]
        if changed:
            told = ", ".join(f"{n} {there[part].get(n)} (now {content[part].get(n)})" for n in changed[:5])
            raise ConfigError(f"{path}: begun with {told}; give the same, or another --out")
    if there["writer"] != content["writer"]:
        raise ConfigError(
            f"{path}: begun with {there['writer']}, here is {content['writer']}, whose files differ in their bytes; "
            "install that one, or choose another --out"
        )
    if there["list"] != content["list"] or there["classes"] != content["classes"]:
        raise InputError(f"{path}: the inputs have changed since it was begun: {_difference(path.parent, found)}")


def _difference(folder: Path, found: Found) -> str:
    path = folder / INPUTS
    index = 0
    with open_table(path) as table:
        for group in range(table.num_row_groups):
            rows = read_group(path, table, group, ["name", "bytes"])
            for raw, size in zip(rows["name"].to_pylist(), rows["bytes"].to_pylist(), strict=True):
                name = os.fsdecode(raw)
                if index >= len(found.names) or found.names[index] != name:
                    here = printable(found.names[index]) if index < len(found.names) else "nothing"
                    return f"input {index} was {printable(name)} and is {here} now; use another --out for the new list"
                if _bytes(found.root, name) != size:
                    now = _bytes(found.root, name)
                    return f"{printable(name)} had {size:,} bytes and has {now:,}; bring it back, or use another --out"
                index += 1
    if index < len(found.names):
        return f"{printable(found.names[index])} is new; use another --out for the new list"
    return "the classes differ; use another --out"
