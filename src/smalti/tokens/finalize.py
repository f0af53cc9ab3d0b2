"""The end of the work: counts, and when every shard is there, the file that makes them one token set."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from smalti.files import write_bytes
from smalti.tokens.plan import PLAN, Plan, read_digest_json, write_digest_json
from smalti.tokens.shard import ShardReport, read_report

DATASET = "dataset.json"
BAD_ITEMS = "bad_files.jsonl"


class SetSummary(NamedTuple):
    """Counts of a token set. `ok + bad + skipped = listed`, in media of the shards that are done."""

    shards: int
    """Shards that are done."""
    planned_shards: int
    """Shards in the plan."""
    inputs: int
    """Files, tars or tables in the plan."""
    listed: int
    ok: int
    bad: int
    skipped: int
    codes: dict[str, int]
    """Number of bad and skipped media by the code of their fault."""
    rows: int
    tokens: int
    frames: int
    pixels: int
    bytes: int
    """Size of the shards."""
    notes: tuple[str, ...] = ()
    """Differences between this machine and the one that began the set, where they could change an id."""

    @property
    def is_whole(self) -> bool:
        """Whether every shard is done."""
        return self.shards == self.planned_shards


_TOTALS = ("listed", "ok", "bad", "skipped", "codes", "rows", "tokens", "frames", "pixels", "bytes")
"""Fields of a summary that dataset.json keeps."""


def summarize_set(plan: Plan) -> SetSummary:
    """Count what is done so far. Raises IntegrityError for a damaged report."""
    totals: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    done = 0
    for report in _reports(plan):
        done += 1
        counts = report._asdict()
        totals.update({name: counts[name] for name in ("listed", "ok", "rows", "tokens", "frames", "pixels", "bytes")})
        totals.update({"bad": len(report.bad), "skipped": len(report.skipped)})
        codes.update(item.code for item in (*report.bad, *report.skipped))
    return SetSummary(
        shards=done,
        planned_shards=plan.shards,
        inputs=plan.listed,
        listed=totals["listed"],
        ok=totals["ok"],
        bad=totals["bad"],
        skipped=totals["skipped"],
        codes=dict(sorted(codes.items())),
        rows=totals["rows"],
        tokens=totals["tokens"],
        frames=totals["frames"],
        pixels=totals["pixels"],
        bytes=totals["bytes"],
    )


def finish_set(plan: Plan) -> SetSummary:
    """Return the summary; where every shard is done, also write `dataset.json`, the list of bad files and the card."""
    summary = summarize_set(plan)
    if not summary.is_whole:
        return summary
    lines, shards = [], {name: list[Any]() for name in ("rows", "tokens", "bytes", "sha256")}
    for report in _reports(plan):
        for name, values in shards.items():
            values.append(getattr(report, name))
        for status, items in (("bad", report.bad), ("skipped", report.skipped)):
            lines += [json.dumps({"status": status, **i._asdict()}, ensure_ascii=False) + "\n" for i in items]
    write_bytes(plan.folder / BAD_ITEMS, "".join(lines).encode())
    write_bytes(plan.folder / "README.md", _card(plan, summary).encode())
    content = read_digest_json(plan.folder / PLAN, "plan")
    write_digest_json(
        plan.folder / DATASET,
        "token set",
        {
            "plan": plan.digest,
            **{name: content[name] for name in ("tokenizer", "options", "inputs", "classes", "writer")},
            "totals": {name: getattr(summary, name) for name in _TOTALS},
            "shards": shards,
        },
        plan.format,
    )
    return summary


def bad_item_lines(folder: Path, most: int) -> Iterator[str]:
    """Yield the first lines about bad media, `key: message (code)`; none for a set that is not finished."""
    path = folder / BAD_ITEMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = (json.loads(line) for line in lines)
    bad = (row for row in rows if row["status"] == "bad")
    return (f"{row['key']}: {row['message']} ({row['code']})" for row in islice(bad, most))


def _reports(plan: Plan) -> Iterator[ShardReport]:
    """Yield the reports of the shards that are done, in order."""
    for shard in range(plan.shards):
        report = read_report(plan, shard)
        if report is not None:
            yield report


def _card(plan: Plan, summary: SetSummary) -> str:
    info, content = plan.tokenizer_info, f"{summary.rows:,} rows, {summary.tokens:,} tokens"
    return f"""---
configs:
- config_name: default
  data_files: data/*.parquet
---

# Token set

{content}, {info.codebook_size:,} codes, {" x ".join(map(str, info.strides))} (frames, height, width) per token, made
by the tokenizer with the fingerprint `{info.fingerprint}`.

`ids` are in the order time, height, width, of the lengths in `shape`; `size` is frames, height and width in pixels.
Read it with `smalti`, or any reader of Parquet: `datasets.load_dataset("parquet", data_files="data/*.parquet")`.
"""
