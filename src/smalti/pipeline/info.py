"""Facts of a run, as plain data."""

import json
from pathlib import Path
from typing import Any

from smalti.model_folder import checkpoints


def last_lines(run: Path) -> dict[str, Any]:
    """Read the newest step and the newest validation in the log of a run, passing over a line cut short by a kill."""
    lines: dict[str, Any] = {"checkpoint": next((p.name for p in reversed(checkpoints(run))), None)}
    log = run / "log.jsonl"
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and not any(name.startswith("samples/") for name in line):
            lines["validation" if any(name.startswith("validation/") for name in line) else "last"] = line
    return lines
