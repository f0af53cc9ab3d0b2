"""The checkpoints of a run folder: names, contents, the newest whole one, and old ones."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smalti.errors import InputError, IntegrityError
from smalti.files import check_manifest, load_tensors, new_folder, read_json, read_notes, save_tensors, write_json
from smalti.model_folder import WEIGHTS, checkpoints
from smalti.progress import say
from smalti.training.task import Savable, Task
from smalti.version import __version__

_FORMAT = 1


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def save_checkpoint(task: Task, out: Path) -> Path:
    """Write `out/step-N` whole or not at all; the model with its EMA weights in it is a model folder of its own."""
    target = checkpoint_path(out, task.state.step)
    with new_folder(target, replace=True) as part:
        write_state(task, part)
    return target


def write_state(task: Savable, folder: Path) -> None:
    """Write all that the next step depends on into a folder that exists."""
    task.export(folder / task.state.config.kind)
    for name, source in task.tensors().items():
        if tensors := source.state_dict():
            save_tensors(folder / f"{name}.safetensors", tensors, {"step": str(task.state.step)})
    about = {"format": _FORMAT, "smalti": __version__, "torch": torch.__version__, "data": task.data_digest}
    write_json(folder / "state.json", about | {"step": task.state.step, "updates": task.state.updates})


def load_checkpoint(task: Task, folder: Path) -> dict[str, Any]:
    """Restore a checkpoint into a fresh task; return `state.json`. Raises IntegrityError on any change in it."""
    check_manifest(folder)
    return read_state(task, folder)


def read_state(task: Savable, folder: Path) -> dict[str, Any]:
    """Put back what `write_state` wrote; return `state.json`. Raises IntegrityError for another format."""
    about = dict(read_json(folder / "state.json"))
    if about.get("format") != _FORMAT:
        raise IntegrityError(f"{folder}: format {about.get('format')} by smalti {about.get('smalti')}, not {_FORMAT}")
    task.ema.load_state_dict(load_tensors(folder / task.state.config.kind / WEIGHTS))
    for name, target in task.tensors().items():
        path = folder / f"{name}.safetensors"
        tensors = load_tensors(path) if path.is_file() else {}
        step = read_notes(path).get("step") if tensors else None
        if step is not None and step != str(about.get("step")):
            raise IntegrityError(f"{path}: is of step {step}, its checkpoint of step {about.get('step')}; restore it")
        target.load_state_dict(tensors)
    task.state.step, task.state.updates = about["step"], about["updates"]
    return about


def resume_newest(task: Task, out: Path) -> None:
    """Load the newest checkpoint that is whole; say so on stderr if a newer one is damaged.

    Raises InputError if it was made with other data.
    """
    found = checkpoints(out)
    faults: list[str] = []
    for folder in reversed(found):
        try:
            about = load_checkpoint(task, folder)
        except (IntegrityError, InputError) as fault:
            faults.append(str(fault))
            continue
        if faults and task.state.world.is_main:
            say(f"warning: {faults[0]}; resuming from {folder.name} instead")
        if about["data"] != task.data_digest:
            raise InputError(
                f"data: {task.data_count:,} samples, not the ones this run began with; restore them or start anew"
            )
        return
    if found:
        raise IntegrityError(f"{out}: none of its {len(found)} checkpoints is whole; the newest: {faults[0]}")
    if (last := last_logged_step(out)) > task.state.config.save_every:
        raise IntegrityError(
            f"{out}: its log reaches step {last:,}, but there is no checkpoint; restore a step-N folder, or start anew "
            f"in another folder"
        )


def last_logged_step(out: Path) -> int:
    """Return the last step in the log of a run folder; 0 without one."""
    return max((step for step, _ in logged_lines(out / "log.jsonl")), default=0)


def logged_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the step and the text of each line of a log; none without one. A line that a kill cut short is passed."""
    for text in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            yield int(json.loads(text)["step"]), text
        except (ValueError, KeyError, TypeError):
            continue


def keep_newest(folder: Path, count: int) -> None:
    """Delete all checkpoints but the newest ones."""
    for old in checkpoints(folder)[:-count]:
        (old / "manifest.json").unlink(missing_ok=True)  # first, so that half of one is never taken for a whole one
        shutil.rmtree(old)
