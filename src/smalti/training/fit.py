"""A run folder, the loop over steps that fills it, its log and its checkpoints: the same for all that is trained."""

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from smalti.config import load_yaml
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.files import (
    check_manifest,
    load_tensors,
    lock,
    naming_os_errors,
    new_folder,
    read_json,
    read_notes,
    read_rows,
    remove_leftovers,
    save_tensors,
    write_bytes,
    write_json,
)
from smalti.model_folder import WEIGHTS, checkpoints, load_strictly
from smalti.text import Progress, say
from smalti.training.config import RunConfig, TrackerName
from smalti.training.distributed import World
from smalti.training.task import Samples, Savable, StepResult, Task
from smalti.training.watch import RunWatch
from smalti.version import __version__

L = TypeVar("L", bound="RunLog")

MAX_SKIPPED = 10
"""Steps in a row that may be skipped for numbers that are not finite, before the run gives up."""


LOCK = ".lock"
"""File of a run folder that the process which writes there holds."""
SAVED = "saved.json"
"""File of a run folder that has the step of its last checkpoint."""

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals after which a run saves and stops; Windows lacks the last two."""


class Stopped(SmaltiError):
    """The run received a signal to stop, and has saved."""

    def __init__(self, step: int, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} at step {step:,}, saved; go on with `resume`")
        self.exit_code = 128 + number


def fit(task: Task, out: Path, *, resume: bool = False, progress: Progress | None = None) -> Path:
    """Train `task` to its last step in the run folder `out`; return the folder of the trained model, `out/KIND`.

    With `resume` a stopped run continues from its newest whole checkpoint, and ends with the weights of an undisturbed
    run, bit for bit on the same machine. The signals of `collect_signals` end it after a save. Raises SmaltiError.
    """
    config, world = task.state.config, task.state.world
    if world.is_main:
        check_folder(config, out, resume=resume)
    with lock(out / LOCK) if world.is_main else nullcontext(), collect_signals() as signals:
        if world.is_main:  # once nobody else can write there
            check_folder(config, out, resume=resume)
            write_bytes(out / "config.yaml", config.to_yaml().encode())
            remove_leftovers(out)
        world.barrier()
        if resume:
            resume_newest(task, out)
            if task.state.step > config.steps:
                raise ConfigError(f"steps {config.steps:,}: the run has reached step {task.state.step:,} already")
        check_equal_ranks(task)
        if world.is_main:
            _show_data(task, out, quiet=resume)
            if task.state.step < config.steps:
                say(_opening(task))
        scores = ""
        with RunLog(out, config, task.state.step) if world.is_main else nullcontext() as log:
            due = _Due(config, world, signals)
            for result in stop_after_skips(task.steps(out, due)):
                ended, stop = result.step == config.steps, due.stop and result.step == task.state.step
                if progress is not None:
                    progress(result.step, config.steps, f"{result.note}{scores}")
                if log is not None and (ended or result.skipped or result.step % config.log_every == 0):
                    log.write_step(result)
                saving = ended or stop or result.step % config.save_every == 0
                if saving or result.step % config.sample_every == 0 or result.step % config.eval_every == 0:
                    task.gather(saving=saving)
                if saving:
                    if world.is_main:
                        save_checkpoint(task, out)
                        keep_newest(out, config.keep)
                    world.barrier()
                if log is not None and (ended or result.step % config.sample_every == 0):
                    log.write_samples(result.step, task.samples())
                if log is not None and (ended or result.step % config.eval_every == 0):
                    report = task.validate()
                    log.write_scores(result.step, report)
                    scores = "".join(f" validation/{name} {value:.4g}" for name, value in [*report.items()][:1])
                task.release()
                if stop and not ended:
                    # Without a signal of its own, another rank received one.
                    raise Stopped(result.step, signals[0] if signals else signal.SIGTERM)
        task.gather(saving=False)
        if world.is_main:
            task.export(out / config.kind)
        world.barrier()
    return out / config.kind


class _Due:
    """Whether the result of a step must not wait: where the log, a checkpoint, scores or samples are due, or a stop."""

    def __init__(self, config: RunConfig, world: World, signals: Sequence[int]) -> None:
        self._config, self._world, self._signals = config, world, signals
        self.stop = False
        """Whether any rank has received a signal to stop."""

    def __call__(self, step: int) -> bool:
        config, self.stop = self._config, self._world.any(bool(self._signals))
        every = config.log_every, config.save_every, config.sample_every, config.eval_every
        return self.stop or step == config.steps or any(step % number == 0 for number in every)


def _show_data(task: Task, out: Path, *, quiet: bool) -> None:
    """Write the counts of the data to data.json, and unless `quiet` print what a user should know of them."""
    write_json(out / "data.json", dict(task.data_counts))
    for note in () if quiet else task.notes:
        say(f"note: {note}")


def _opening(task: Task) -> str:
    """Return what is about to be trained, where, on how much, and how far."""
    config, world, step = task.state.config, task.state.world, task.state.step
    parameters = sum(parameter.numel() for parameter in task.ema.parameters())
    ranks = f" and {world.size - 1} more ranks" if world.size > 1 else ""
    what = f"{config.kind} of {parameters:,} parameters on {world.device}{ranks}, {task.data_count:,} samples"
    return f"{what}, batches of {config.batch_size}, steps {step + 1:,} to {config.steps:,}"


def stop_after_skips(results: Iterator[StepResult]) -> Iterator[StepResult]:
    """Yield the same results; raise SmaltiError once `MAX_SKIPPED` steps in a row were skipped."""
    skipped = 0
    for result in results:
        skipped = skipped + 1 if result.skipped else 0
        if skipped == MAX_SKIPPED:
            raise SmaltiError(
                f"step {result.step}: losses or gradients were not finite {MAX_SKIPPED} times in a row; the weights "
                "are as before them. Look at the samples in skipped.jsonl, or start another run with a lower "
                "optimizer.lr"
            )
        yield result


def check_folder(config: RunConfig, out: Path, *, resume: bool) -> None:
    """Check that a folder is new, or contains the run that `config` describes; changes nothing. Raises ConfigError."""
    path = out / "config.yaml"
    if path.is_file():
        if not resume:
            raise ConfigError(f"{out}: holds a run already; give `resume` to go on with it, or another `out`")
        _check_same(load_yaml(type(config), path), config, path)
    elif out.exists() and any(entry.name != LOCK and not _is_unfinished(entry) for entry in out.iterdir()):
        raise ConfigError(f"{out}: is there and is not a run; give another `out`")
    elif resume:
        raise ConfigError(f"{out}: there is no run to resume; leave `resume` out to start one")


def _is_unfinished(entry: Path) -> bool:
    """Return whether a file is what a run leaves that was killed while it wrote its config, before anything else."""
    return entry.name.startswith(".config.yaml.") and entry.suffix == ".part"


def _check_same(old: RunConfig, new: RunConfig, where: Path) -> None:
    if differing := old.fixed_in_resumption(new):
        before, now = (_leaves({name: config.plain()[name] for name in differing}) for config in (old, new))
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        shown = ", ".join(f"{n} ({before.get(n)!s:.40} -> {now.get(n)!s:.40})" for n in names[:4])
        shown = (shown or ", ".join(differing)) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        if differing == ["steps"]:
            raise ConfigError(f"{where}: {shown}: {old.length_note}")
        raise ConfigError(
            f"{where}: this run was started with other settings: {shown}; start another run, or change only "
            f"{', '.join(sorted(old.changeable - {*differing}))}"
        )


def _leaves(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the fields of a config and of those in it, by their names with dots."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        leaves |= _leaves(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return leaves


def check_equal_ranks(task: Task) -> None:
    """Raise ConfigError, on all ranks, if they have different arguments, data or checkpoints."""
    config, world = task.state.config, task.state.world
    settings = config.replace(dict.fromkeys(("workers", "log_every"), 1)).to_yaml()
    compared = {"settings": settings, "lists of data": task.data_digest, "checkpoints": str(task.state.step)}
    for name, text in compared.items():
        if not world.all_equal(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)):
            raise ConfigError(
                f"the {world.size} processes have different {name}: give all nodes the same arguments, data and "
                f"run folder (on a disk that they share)"
            )


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT, SIGHUP and SIGUSR1 (Slurm's warning) instead of dying; a second signal ends the process
    as it would without this block. A signal that the process ignores stays ignored (SIGHUP under nohup)."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        received.append(number)

    with suppress(ValueError):  # not in the main thread: the caller's business
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


class RunLog:
    """log.jsonl, TensorBoard events and the tracker of the config, if any; lines of steps after the one resumed from
    are taken out of the log first."""

    def __init__(self, folder: Path, config: RunConfig, step: int) -> None:
        self.folder, self.first = folder, step
        self.path = folder / "log.jsonl"
        self.since = time.monotonic()
        _truncate(self.path, step)
        self.watch = RunWatch(config)
        for line in read_rows(self.path, "step"):
            self.watch.add(line)
        from torch.utils.tensorboard.writer import SummaryWriter

        self.events: Any = SummaryWriter(str(folder / "events"), purge_step=step)
        self.events.add_text("config", f"```yaml\n{config.to_yaml()}```", step)
        self.tracker = None if config.tracker is None else Tracker(config.tracker, folder, config.plain())

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.events.close()
        if self.tracker is not None:
            self.tracker.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line, which has its `step`."""
        with naming_os_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        step = line["step"]
        numbers = {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
        for name, value in numbers.items():
            self.events.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.write(numbers, step)

    def write_step(self, result: StepResult) -> None:
        """Write the line of a step, and warn on stderr of the faults that it shows first."""
        seconds = time.monotonic() - self.since
        samples = {} if result.samples is None else {"samples": f"{result.samples:016x}"}
        speed = {"steps_per_second": (result.step - self.first) / max(1e-9, seconds), "seconds": seconds}
        line = {**result.line(), **samples, **speed}
        self.write(line)
        for fault in self.watch.add(line):
            say(f"warning: {fault}")

    def write_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Write a line of validation scores, if there are any."""
        if scores:
            self.write({"step": step, **{f"validation/{name}": value for name, value in scores.items()}})

    def write_samples(self, step: int, samples: Samples) -> None:
        """Write `samples/step-N.png`, show it, and write a line of what else there is, if anything."""
        if samples.values:
            self.write({"step": step, **{f"samples/{name}": value for name, value in samples.values.items()}})
        if samples.image is not None:
            target = self.folder / "samples" / f"step-{step:08d}.png"
            target.parent.mkdir(exist_ok=True)
            samples.image.save(target)
            self.events.add_image("samples", np.asarray(samples.image), step, dataformats="HWC")
            if self.tracker is not None:
                self.tracker.show("samples", samples.image, step)


def _truncate(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, and a line that was cut short by a kill."""
    if not path.is_file():
        return
    lines = [f"{json.dumps(row)}\n" for row in read_rows(path, "step") if row["step"] <= last_step]
    write_bytes(path, "".join(lines).encode())


_FORMAT = 1


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def save_checkpoint(task: Task, out: Path) -> Path:
    """Write `out/step-N` whole or not at all; the model with its EMA weights in it is a model folder of its own. Then
    `out/saved.json` says that there was a checkpoint, also when all are gone."""
    target = checkpoint_path(out, task.state.step)
    with new_folder(target, replace=True) as part:
        write_state(task, part)
    write_json(out / SAVED, {"step": task.state.step})
    return target


def write_state(task: Savable, folder: Path) -> None:
    """Write all that the next step depends on into a folder that exists."""
    task.export(folder / task.state.config.kind)
    counts = {}
    state = task.state
    for name, source in task.tensors().items():
        if tensors := source.state_dict() if state.sharded is None else state.sharded.tensors[name]:
            counts[name] = len(tensors)
            save_tensors(folder / f"{name}.safetensors", tensors, {"step": str(state.step)})
    about = {"format": _FORMAT, "smalti": __version__, "torch": torch.__version__, "data": task.data_digest}
    about["device"] = str(state.world.device)
    place = {"step": state.step, "updates": state.updates, "samples": state.samples}
    write_json(folder / "state.json", about | place | {"tensors": counts})


def load_checkpoint(task: Task, folder: Path) -> dict[str, Any]:
    """Restore a checkpoint into a fresh task; return `state.json`. Raises IntegrityError on any change in it."""
    check_manifest(folder)
    return read_state(task, folder)


def read_state(task: Savable, folder: Path) -> dict[str, Any]:
    """Put back what `write_state` wrote; return `state.json`. Raises IntegrityError for another format."""
    about = dict(read_json(folder / "state.json"))
    if about.get("format") != _FORMAT:
        raise IntegrityError(f"{folder}: format {about.get('format')} by smalti {about.get('smalti')}, not {_FORMAT}")
    if missing := {"data", "step", "updates"} - about.keys():
        raise IntegrityError(f"{folder / 'state.json'}: has no {', '.join(sorted(missing))}; restore it")
    averaged = folder / task.state.config.kind / WEIGHTS
    with nullcontext() if task.state.sharded is None else task.state.sharded.loading():
        load_strictly(task.ema, load_tensors(averaged), averaged)
    for name, target in task.tensors().items():
        path = folder / f"{name}.safetensors"
        tensors = load_tensors(path) if path.is_file() else {}
        wanted = about.get("tensors", {}).get(name, 0) if "tensors" in about else len(tensors)
        if len(tensors) != wanted:
            raise IntegrityError(f"{path}: has {len(tensors)} tensors, and {wanted} were written; restore it")
        step = read_notes(path).get("step") if tensors else None
        if step is not None and step != str(about.get("step")):
            raise IntegrityError(f"{path}: is of step {step}, its checkpoint of step {about.get('step')}; restore it")
        target.load_state_dict(tensors)
    task.state.step, task.state.updates, task.state.samples = about["step"], about["updates"], about.get("samples")
    return about


def resume_newest(task: Task, out: Path) -> None:
    """Load the newest checkpoint that is whole; say so on stderr if a newer one is damaged.

    Raises InputError if it was made with other data.
    """
    folders = checkpoints(out)
    faults: list[str] = []
    for folder in reversed(folders):
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
    if folders:
        raise IntegrityError(f"{out}: none of its {len(folders)} checkpoints is whole; the newest: {faults[0]}")
    if had_checkpoints(out, task.state.config):
        raise IntegrityError(
            f"{out}: it had checkpoints, and its log reaches step {last_logged_step(out):,}, but there is none; "
            "restore a step-N folder, or start anew in another folder"
        )


def had_checkpoints(out: Path, config: RunConfig) -> bool:
    """Tell whether a run folder has seen a checkpoint: by `saved.json`, by the model of its end, and by its log."""
    return (out / SAVED).exists() or (out / config.kind).exists() or last_logged_step(out) > config.save_every


def last_logged_step(out: Path) -> int:
    """Return the last step in the log of a run folder; 0 without one."""
    return max((row["step"] for row in read_rows(out / "log.jsonl", "step")), default=0)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all checkpoints but the newest ones."""
    for old in checkpoints(folder)[:-count]:
        (old / "manifest.json").unlink(missing_ok=True)  # first, so that half of one is never taken for a whole one
        shutil.rmtree(old)


class Tracker:
    """A run of the project `smalti` there, under the name of the run folder; a resumed run goes on where it was.

    Where the service keeps its data, and whether it uses the network, is its own setting: `WANDB_MODE=offline`,
    `TRACKIO_DIR`. Raises MachineError where it is not installed.
    """

    def __init__(self, name: TrackerName, folder: Path, config: Mapping[str, Any]) -> None:
        place = str(folder.resolve())
        common = {"project": "smalti", "name": folder.name, "config": dict(config), "resume": "allow"}
        try:
            if name == "wandb":
                import wandb as service

                number = hashlib.sha256(place.encode()).hexdigest()[:16]  # the same for a run that is resumed
                service.init(**common, id=number, dir=place)
            else:
                import trackio as service

                service.init(**common)
        except ImportError:
            raise MachineError(f"tracker {name}: is not installed; `pip install {name}`") from None
        self._service: Any = service

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Send numbers by name."""
        self._service.log(dict(values), step=step)

    def show(self, name: str, image: Image.Image, step: int) -> None:
        """Send an image."""
        self._service.log({name: self._service.Image(image)}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._service.finish()
