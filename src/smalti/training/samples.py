"""The samples of every step, recorded cheaply: a digest of all of them so far, the names of those of a skipped step."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from smalti.data.source import mix
from smalti.files import naming_os_errors, read_rows
from smalti.training.task import RunState

_BITS = (1 << 48) - 1
"""Bits of the digest of a step: 65,536 ranks add up to less than 2^64."""
SKIPPED = "skipped.jsonl"
"""File of a run folder with the samples of each step whose update was left out."""


def count_samples(state: RunState, names: Sequence[str], places: Sequence[int]) -> None:
    """Take the samples of a step into `state.samples`: their names and places in the global batch, over all ranks.

    The digest of a step is the sum over its samples, so that it does not depend on which rank has which; that of a run
    is chained from step to step. Runs that have seen the same samples at every step have the same one.
    """
    total = sum(map(_digest, names, places)) & _BITS
    if state.world.size > 1:  # alone, a step must not wait for its device
        total = int(state.world.sum(torch.tensor(total, device=state.world.device))) & _BITS
    if state.samples is not None:
        state.samples = mix(state.samples, total) >> 1


def _digest(name: str, place: int) -> int:
    """Hash a sample and its place to 48 bits."""
    text = f"{place} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")


def keep_skipped(
    state: RunState, folder: Path, line: Mapping[str, Any], names: Sequence[str], places: Sequence[int]
) -> None:
    """Append a row to `skipped.jsonl` of a run folder: {step, seed, not_finite, samples}, for a step that was skipped.

    Step and seed are all that is needed to load its batch again (`smalti.data.batches` with `start_step` step - 1);
    `samples` has the names of all ranks, in the order of their places. Raises MachineError where the disk refuses.
    """
    parts = state.world.gather(json.dumps([*zip(places, names, strict=True)]).encode())
    if not state.world.is_main:
        return
    rows = sorted((place, name) for part in parts for place, name in json.loads(part))
    bad = [name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
    row = {"step": state.step, "seed": state.config.seed, "not_finite": bad, "samples": [name for _, name in rows]}
    path = folder / SKIPPED
    with naming_os_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def skipped_steps(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of `skipped.jsonl`, each step once: a run that went on from before it wrote it again."""
    rows = {row["step"]: row for row in read_rows(folder / SKIPPED, "step", "samples")}
    return [rows[step] for step in sorted(rows)]
