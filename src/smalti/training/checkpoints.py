"""The checkpoints of a run folder: their names, what they say of themselves, the newest whole one, and old ones."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from smalti.errors import InputError, IntegrityError
from smalti.files import check_manifest, read_json, write_json
from smalti.model_folder import checkpoints
from smalti.version import __version__

_FORMAT = 1


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def digest_of(keys: list[str]) -> str:
    """One digest of a data listing: a resumed run must see the same."""
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()


def write_about(part: Path, data_digest: str, step: int, updates: int) -> None:
    """Write `state.json` into a checkpoint that is being made."""
    about = {"format": _FORMAT, "smalti": __version__, "torch": torch.__version__, "data": data_digest}
    write_json(part / "state.json", about | {"step": step, "updates": updates})


def read_about(folder: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint says. Raises IntegrityError on any change in the checkpoint."""
    check_manifest(folder)
    about = read_json(folder / "state.json")
    if about.get("format") != _FORMAT:
        raise IntegrityError(f"{folder}: format {about.get('format')} by smalti {about.get('smalti')}, not {_FORMAT}")
    return dict(about)


def resume_newest(load: Callable[[Path], dict[str, Any]], out: Path, digest: str, *, count: int, leads: bool) -> None:
    """`load` the newest checkpoint that is whole; say so where a newer one is damaged.

    Raises InputError where it was made of other data than `digest` names.
    """
    found = checkpoints(out)
    faults: list[str] = []
    for folder in reversed(found):
        try:
            about = load(folder)
        except (IntegrityError, InputError) as fault:
            faults.append(str(fault))
            continue
        if faults and leads:
            print(f"warning: {faults[0]}; resuming from {folder.name} instead", file=sys.stderr)
        if about["data"] != digest:
            raise InputError(f"data: {count:,} samples, not the ones this run began with; restore them or start anew")
        return
    if found:
        raise IntegrityError(f"{out}: none of its {len(found)} checkpoints is whole; the newest: {faults[0]}")


def keep_newest(folder: Path, count: int) -> None:
    """Delete all checkpoints but the newest ones."""
    for old in checkpoints(folder)[:-count]:
        (old / "manifest.json").unlink(missing_ok=True)  # first, so that half of one is never taken for a whole one
        shutil.rmtree(old)
