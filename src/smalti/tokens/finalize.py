"""The end of the work: when every shard is there, the file that makes them one set."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from smalti.files import naming_os_errors, write_bytes
from smalti.tokens.plan import Plan
from smalti.tokens.sealed import read_sealed, write_sealed
from smalti.tokens.shard import Report, read_report

DATASET = "dataset.json"
BAD = "bad_files.jsonl"


class Summary(NamedTuple):
    """What became of the inputs; `ok + bad + skipped = listed`."""

    shards: int
    """That are done,"""
    of: int
    """of those in the plan."""
    listed: int
    ok: int
    bad: int
    skipped: int
    codes: dict[str, int]
    """How many of the bad and skipped have each code."""
    rows: int
    tokens: int
    frames: int
    pixels: int
    bytes: int
    """Of the shards."""

    @property
    def is_whole(self) -> bool:
        """Whether every shard is done."""
        return self.shards == self.of


def reports(plan: Plan) -> Iterator[Report]:
    """The reports of the shards that are done, in order. Raises IntegrityError for a damaged one."""
    for shard in range(plan.shards):
        report = read_report(plan, shard)
        if report is not None:
            yield report


def summarize(plan: Plan) -> Summary:
    """Count what is done so far."""
    totals: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    done = 0
    for report in reports(plan):
        done += 1
        totals.update({name: getattr(report, name) for name in ("listed", "ok", "rows", "tokens", "frames", "pixels")})
        totals.update({"bytes": report.bytes, "bad": len(report.bad), "skipped": len(report.skipped)})
        codes.update(fault.code for fault in (*report.bad, *report.skipped))
    counts = {name: totals[name] for name in Summary._fields if name not in ("shards", "of", "codes")}
    return Summary(shards=done, of=plan.shards, codes=dict(sorted(codes.items())), **counts)


def finish(plan: Plan) -> Summary:
    """The summary; where every shard is done, also write `dataset.json`, the list of bad files and the card."""
    summary = summarize(plan)
    if not summary.is_whole:
        return summary
    lines, shards = [], {name: list[Any]() for name in ("rows", "tokens", "bytes", "sha256")}
    for report in reports(plan):
        for name, values in shards.items():
            values.append(getattr(report, name))
        for status, faults in (("bad", report.bad), ("skipped", report.skipped)):
            lines += [json.dumps({"status": status, **f._asdict()}, ensure_ascii=False) + "\n" for f in faults]
    write_bytes(plan.folder / BAD, "".join(lines).encode())
    write_bytes(plan.folder / "README.md", _card(plan, summary).encode())
    plain = read_sealed(plan.folder / "plan.json", "plan")
    content = {
        "plan": plan.digest,
        **{name: plain[name] for name in ("tokenizer", "options", "inputs", "classes", "writer")},
        "totals": {name: getattr(summary, name) for name in Summary._fields if name not in ("shards", "of")},
        "shards": shards,
    }
    write_sealed(plan.folder / DATASET, "token set", content)
    return summary


def faults(folder: Path, most: int) -> Iterator[str]:
    """The first lines about bad media: `key: message (code)`; of a set that is not finished, none."""
    path = folder / BAD
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = (json.loads(line) for line in lines)
    bad = (row for row in rows if row["status"] == "bad")
    return (f"{row['key']}: {row['message']} ({row['code']})" for row in islice(bad, most))


def write_made(folder: Path, facts: dict[str, Any]) -> None:
    """Note where and with what a set was made, for people and for defaults; it is no part of the set's identity."""
    path = folder / "made.json"
    with naming_os_errors(path):
        if not path.exists():
            write_bytes(path, (json.dumps(facts, indent=2) + "\n").encode())


def read_made(folder: Path) -> dict[str, Any]:
    """What `write_made` noted; empty where it was not kept."""
    try:
        data = json.loads((folder / "made.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _card(plan: Plan, summary: Summary) -> str:
    about, made = plan.about, f"{summary.rows:,} rows, {summary.tokens:,} tokens"
    return f"""---
configs:
- config_name: default
  data_files: data/*.parquet
---

# Token set

{made}, {about.codebook_size:,} codes, {" x ".join(map(str, about.strides))} (frames, rows, columns) per token, made
by the tokenizer with the fingerprint `{about.fingerprint}`.

`ids` are in the order time, rows, columns, of the lengths in `shape`; `size` is frames, rows and columns of pixels.
Read it with `smalti`, or any reader of Parquet: `datasets.load_dataset("parquet", data_files="data/*.parquet")`.
"""
