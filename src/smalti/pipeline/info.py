"""Facts of a run, as plain data."""

from pathlib import Path
from typing import Any

from smalti.errors import ConfigError
from smalti.files import read_json, read_rows
from smalti.model_folder import checkpoints
from smalti.pipeline.train import find_config


def run_facts(run: Path) -> dict[str, Any]:
    """Read how far a run is, on what device and how much data, and what `last_lines` gives; a run of an earlier version
    has no device. Where its config cannot be read, there is a `fault` in place of the `steps`."""
    lines = last_lines(run)
    facts: dict[str, Any] = {"step": lines.get("last", {}).get("step", 0)}
    try:
        facts["steps"] = find_config(run).steps
    except ConfigError as fault:
        facts["fault"] = str(fault)
    state = run / (lines["checkpoint"] or "") / "state.json"
    if state.is_file() and (device := dict(read_json(state)).get("device")) is not None:
        facts["device"] = device
    if (run / "data.json").is_file():
        facts["data"] = read_json(run / "data.json")
    return {**facts, **lines}


def last_lines(run: Path) -> dict[str, Any]:
    """Read the newest step and the newest validation in the log of a run, passing over a line cut short by a kill."""
    lines: dict[str, Any] = {"checkpoint": next((p.name for p in reversed(checkpoints(run))), None)}
    for line in read_rows(run / "log.jsonl"):
        if not any(name.startswith("samples/") for name in line):
            lines["validation" if any(name.startswith("validation/") for name in line) else "last"] = line
    return lines
