"""The plan of a token set: which inputs make which shard, written down before any work and never changed.

A shard is a function of its inputs, the tokenizer and the options, all of which the plan names. So it does not matter
who makes it, how often, on how many machines and after how many restarts.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from smalti.config import Config
from smalti.data.list_formats import Listing
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.families import load
from smalti.families.names import full_name
from smalti.files import remove_leftovers, sha256, write_bytes, write_json
from smalti.text import counts_text, printable
from smalti.tokenizer_info import TokenizerInfo
from smalti.tokens.config import MediaInputs, TokenizeOptions
from smalti.tokens.format import (
    open_table,
    options_of,
    pyarrow_version,
    read_digest_json,
    read_group,
    table_bytes,
    write_digest_json,
)
from smalti.version import __version__

PLAN = "plan.json"
INPUTS = "inputs.parquet"
PROVENANCE = "provenance.json"
_FORMER_PROVENANCE = "made.json"
"""Name of `PROVENANCE` in sets of version 0.1.0."""
_GROUP_ROWS = 1 << 16
_CAPTION = "caption"
"""Column of inputs.parquet that is there only where a list or metadata give captions."""


class _PlanConfigs(Config):
    """The parts of plan.json that are configs, so that a fault is named by its place."""

    tokenizer: TokenizerInfo
    options: TokenizeOptions
    inputs: MediaInputs


class PlannedInput(NamedTuple):
    """A file, tar or table of the plan."""

    name: str
    """Path below the root, as the operating system gives it."""
    bytes: int
    """Size when the plan was made."""
    label: int | None
    """Number of its class."""
    caption: str | None = None
    """Text that a list or metadata give it."""


class Plan(NamedTuple):
    """The content of `plan.json`, and the folder it is in."""

    folder: Path
    digest: str
    """Digest of plan.json, which every shard and report names."""
    tokenizer_info: TokenizerInfo
    """Facts of the tokenizer that makes the ids."""
    options: TokenizeOptions
    inputs: MediaInputs
    classes: tuple[str, ...]
    """Names of the classes."""
    listed: int
    """Number of inputs in all shards."""
    shards: int
    """Number of shards."""
    writer: str
    """Version of pyarrow, which the bytes depend on."""
    format: int
    """Version of the format of the set."""

    def shard_path(self, shard: int) -> Path:
        """Return the Parquet file of a shard."""
        return self.folder / "data" / f"{self._name(shard)}.parquet"

    def report_path(self, shard: int) -> Path:
        """Return the report of a shard, which is written after it and says that it is done."""
        return self.folder / "reports" / f"{self._name(shard)}.json"

    def input_counts(self) -> list[int]:
        """Count the inputs of each shard."""
        path = self.folder / INPUTS
        with open_table(path) as table:
            groups = [read_group(path, table, group, ["shard"])["shard"] for group in range(table.num_row_groups)]
        return np.bincount([shard for group in groups for shard in group.to_pylist()], minlength=self.shards).tolist()

    def inputs_of(self, shard: int) -> list[PlannedInput]:
        """Return the inputs of a shard. Raises IntegrityError where the list of inputs is damaged."""
        import pyarrow.compute as pc

        path = self.folder / INPUTS
        inputs: list[PlannedInput] = []
        with open_table(path) as table:
            for group in range(table.num_row_groups):
                bounds = table.metadata.row_group(group).column(3).statistics
                if bounds.min <= shard <= bounds.max:
                    rows = read_group(path, table, group)
                    rows = rows.filter(pc.equal(rows["shard"], shard))
                    columns = rows.to_pydict()
                    names = map(os.fsdecode, columns["name"])
                    captions = columns.get(_CAPTION, [None] * rows.num_rows)
                    inputs += map(PlannedInput, names, columns["bytes"], columns["label"], captions)
        return inputs

    def _name(self, shard: int) -> str:
        """Return the name of a shard without its suffix: `tokens-00003-of-00012`."""
        return f"tokens-{shard:05d}-of-{self.shards:05d}"


class WorkerConfig(NamedTuple):
    """Facts that a worker needs to make shards; plain text, so that it travels as JSON to other machines too."""

    folder: str
    """Folder of the token set, whose plan says the rest."""
    root: str
    """Folder of the inputs on this machine."""
    tokenizer: str
    """Name of the tokenizer, that holds from any working folder."""
    device: str = "cpu"


class PreparedSet(NamedTuple):
    """A token set that is planned and can be worked on."""

    plan: Plan
    worker: WorkerConfig
    notes: tuple[str, ...]
    """Differences between this machine and the one that began the set, where they could change an id, and what of the
    inputs is left out."""


def prepare_set(
    tokenizer: str | Path,
    inputs: MediaInputs,
    out: Path,
    options: TokenizeOptions,
    *,
    device: str = "cpu",
    resume: bool = False,
) -> PreparedSet:
    """Plan the token set at `out`, or check that the one that is there was begun with the same.

    With `resume` the plan that is there is taken as it is and the inputs are not listed again, which saves time where
    there are millions of them. `tokenizer` is a name, as `smalti.load` takes it. Raises as `load` and `make_plan` do,
    and InputError where there are no inputs.
    """
    pyarrow_version()
    tokenizer = full_name(tokenizer)
    info = load(tokenizer).info
    if out.is_dir():
        for folder in (out, out / "data", out / "reports"):
            remove_leftovers(folder)
    left_out: Mapping[str, int] = {}
    if resume:
        plan, root = load_plan(out), inputs.root_folder()
        plan.tokenizer_info.check(info, out)
    else:
        listing = inputs.list_inputs()
        plan, root = make_plan(out, info, inputs, listing, options), listing.root
        left_out = dict(listing.left_out)
    machine = {
        "smalti": __version__,
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else device,
    }
    before = read_provenance(out)
    if not before:
        about = {"tokenizer": tokenizer, "data": printable(inputs.path), **machine, "left_out": left_out}
        write_json(out / PROVENANCE, about)
    notes = [
        f"{name}: begun with {before[name]}, here is {here}; an id on a threshold may differ"
        for name, here in machine.items()
        if before.get(name, here) != here
    ]
    notes += [f"{printable(inputs.path)}: left out: {counts_text(left_out)}"] if left_out else []
    return PreparedSet(plan, WorkerConfig(str(out.absolute()), str(root.absolute()), tokenizer, device), tuple(notes))


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read where and with what a set was made, which is no part of its identity; empty where it was not kept."""
    for name in (PROVENANCE, _FORMER_PROVENANCE):
        try:
            data = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(data, dict):
            return data
    return {}


def make_plan(
    folder: Path, tokenizer: TokenizerInfo, inputs: MediaInputs, listing: Listing, options: TokenizeOptions
) -> Plan:
    """Write the plan into `folder`, or check that the one that is there is the same.

    Raises IntegrityError where that was begun with another tokenizer, ConfigError where with other options, InputError
    where the list of inputs has changed since.
    """
    sizes = [_size(listing.root, name) for name in listing.files]
    ends = cut_into_shards(sizes, options.shard_files, options.shard_bytes)
    table = _input_bytes(listing, sizes, ends)
    content = {
        "tokenizer": tokenizer.plain(),
        "options": options.written(),
        "inputs": inputs.identity(),
        "classes": list(listing.classes.names),
        "list": {
            "inputs": len(sizes),
            "bytes": sum(sizes),
            "shards": len(ends),
            "sha256": hashlib.sha256(table).hexdigest(),
        },
        "writer": f"pyarrow {pyarrow_version()}",
    }
    path = folder / PLAN
    if path.exists():
        _compare(path, content, listing)
    else:
        _check_free(folder)
        write_bytes(folder / INPUTS, table)
        write_digest_json(path, "plan", content)
    return load_plan(folder)


def load_plan(folder: Path) -> Plan:
    """Read the plan of a token set, finished or not. Raises InputError where there is none, IntegrityError."""
    path = folder / PLAN
    data = read_digest_json(path, "plan")
    if sha256(folder / INPUTS) != data["list"]["sha256"]:
        raise IntegrityError(f"{folder / INPUTS}: has changed since it was written; use another copy")
    configs = _PlanConfigs.parse(
        {"tokenizer": data["tokenizer"], "options": options_of(data), "inputs": {**data["inputs"], "path": "."}},
        where=str(path),
    )
    return Plan(
        folder,
        data["digest"],
        configs.tokenizer,
        configs.options,
        configs.inputs,
        classes=tuple(data["classes"]),
        listed=data["list"]["inputs"],
        shards=data["list"]["shards"],
        writer=data["writer"],
        format=data["format"],
    )


def cut_into_shards(sizes: Sequence[int], files: int, most: int) -> list[int]:
    """Return where shards end: each takes inputs in order until it has `files` of them or `most` bytes; a larger one
    is a shard by itself. The last number is `len(sizes)`; there is at least one shard."""
    ends, first, total = list[int](), 0, 0
    for i, size in enumerate(sizes):
        if i > first and (i - first == files or total + size > most):
            ends.append(i)
            first, total = i, 0
        total += size
    return [*ends, len(sizes)]


def _input_bytes(listing: Listing, sizes: list[int], ends: list[int]) -> bytes:
    import pyarrow as pa

    fields = [("name", pa.binary()), ("bytes", pa.int64()), ("label", pa.int64()), ("shard", pa.int32())]
    schema = pa.schema([*fields, *([(_CAPTION, pa.string())] if listing.captions else [])])
    shards = [shard for shard, end in enumerate(ends) for _ in range(end - (ends[shard - 1] if shard else 0))]
    labels: Sequence[int | None] = listing.classes.labels or [None] * len(sizes)
    groups = []
    for at in range(0, len(sizes), _GROUP_ROWS):
        rows = slice(at, at + _GROUP_ROWS)
        names = [os.fsencode(name) for name in listing.files[rows]]
        captions = [listing.captions[rows]] if listing.captions else []
        groups.append(pa.table([names, sizes[rows], labels[rows], shards[rows], *captions], schema=schema))
    return table_bytes(groups, schema, {"bytes": "DELTA_BINARY_PACKED", "shard": "DELTA_BINARY_PACKED"})


def _size(root: Path, name: str) -> int:
    try:
        return (root / name).stat().st_size
    except (OSError, ValueError):
        return 0  # reading it will raise the error with its reason


def _check_free(folder: Path) -> None:
    """Raise ConfigError unless the folder is empty, but for what a killed planner left."""
    others = [entry.name for entry in folder.iterdir() if entry.name != INPUTS] if folder.is_dir() else []
    if [name for name in others if not name.startswith(".")] or folder.is_file():
        raise ConfigError(f"{folder}: already exists and is no token set; choose another `out`")


def _compare(path: Path, content: Mapping[str, Any], listing: Listing) -> None:
    """Raise unless the plan at `path` has this content."""
    begun = read_digest_json(path, "plan")
    if begun["tokenizer"] != content["tokenizer"]:
        before, now = (info["fingerprint"][:16] for info in (begun["tokenizer"], content["tokenizer"]))
        raise IntegrityError(
            f"{path}: begun with the tokenizer {before}..., this one is {now}...; use that one, or another `out`"
        )
    options = {name: value for name, value in content["options"].items() if begun["format"] > 1 or name != "encoding"}
    for old, new in ((begun["options"], options), (begun["inputs"], content["inputs"])):
        changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if changed:
            changes = ", ".join(f"{name} {old.get(name)} (now {new.get(name)})" for name in changed[:5])
            raise ConfigError(f"{path}: begun with {changes}; give the same, or another `out`")
    if begun["writer"] != content["writer"]:
        raise ConfigError(
            f"{path}: begun with {begun['writer']}, here is {content['writer']}, whose files differ in their bytes; "
            "install that one, or choose another `out`"
        )
    if begun["list"] != content["list"] or begun["classes"] != content["classes"]:
        raise InputError(f"{path}: the inputs have changed since it was begun: {_difference(path.parent, listing)}")


def _difference(folder: Path, listing: Listing) -> str:
    """Describe the first difference between the inputs of the plan in `folder` and a listing."""
    path = folder / INPUTS
    index = 0
    with open_table(path) as table:
        for group in range(table.num_row_groups):
            rows = read_group(path, table, group, ["name", "bytes"])
            for raw, size in zip(rows["name"].to_pylist(), rows["bytes"].to_pylist(), strict=True):
                name = os.fsdecode(raw)
                if index >= len(listing.files) or listing.files[index] != name:
                    here = printable(listing.files[index]) if index < len(listing.files) else "nothing"
                    return f"input {index} was {printable(name)} and is {here} now; use another `out` for the new list"
                now = _size(listing.root, name)
                if now != size:
                    return f"{printable(name)} had {size:,} bytes and has {now:,}; bring it back, or use another `out`"
                index += 1
    if index < len(listing.files):
        return f"{printable(listing.files[index])} is new; use another `out` for the new list"
    return "the classes differ; use another `out`"
