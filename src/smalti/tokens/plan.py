"""The plan of a token set: which inputs make which shard, written down before any work and never changed.

A shard is a function of its inputs, the tokenizer and the options, all of which the plan names. So it does not matter
who makes it, how often, on how many machines and after how many restarts. The files that a token set is made of are
read and written here too: JSON that carries its own digest, and Parquet whose bytes follow from its rows.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from smalti.config import Config
from smalti.data.list_formats import Listing
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError
from smalti.families import load
from smalti.families.names import full_name
from smalti.files import naming_os_errors, remove_leftovers, sha256, write_bytes, write_json
from smalti.text import counts_text, one_line, printable
from smalti.tokenizer_info import TokenizerInfo
from smalti.tokens.config import MediaInputs, TokenizeOptions
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
    there are millions of them; options that are given must be its own. `tokenizer` is a name, as `smalti.load` takes
    it. Raises as `load` and `make_plan` do, and InputError where there are no inputs.
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
        usual, own = TokenizeOptions().plain(), plan.options.plain()
        given = {name: value for name, value in options.plain().items() if value != usual[name]}
        _refuse_changes(out / PLAN, {name: own[name] for name in given}, given)
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
        _refuse_changes(path, old, new)
    if begun["writer"] != content["writer"]:
        raise ConfigError(
            f"{path}: begun with {begun['writer']}, here is {content['writer']}, whose files differ in their bytes; "
            "install that one, or choose another `out`"
        )
    if begun["list"] != content["list"] or begun["classes"] != content["classes"]:
        raise InputError(f"{path}: the inputs have changed since it was begun: {_difference(path.parent, listing)}")


def _refuse_changes(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ConfigError that names what differs."""
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if changed:
        changes = ", ".join(f"{name} {old.get(name)} (now {new.get(name)})" for name in changed[:5])
        raise ConfigError(f"{path}: begun with {changes}; give the same, or another `out`")


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
