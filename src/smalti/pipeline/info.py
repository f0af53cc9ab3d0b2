"""Facts of a run, as plain data."""

from pathlib import Path
from typing import Any

from smalti.files import read_rows
from smalti.model_folder import checkpoints


def last_lines(run: Path) -> dict[str, Any]:
    """Read the newest step and the newest validation in the log of a run, passing over a line cut short by a kill."""
    lines: dict[str, Any] = {"checkpoint": next((p.name for p in reversed(checkpoints(run))), None)}
    for line in read_rows(run / "log.jsonl"):
        if not any(name.startswith("samples/") for name in line):
            lines["validation" if any(name.startswith("validation/") for name in line) else "last"] = line
    return lines
