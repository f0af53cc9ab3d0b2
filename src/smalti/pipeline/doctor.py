"""The checks of a machine (`smalti doctor`): what it has, what is missing, and how to get it; and of a run folder
(`smalti doctor RUN`): its log, samples of skipped steps, bad files, checkpoints and disk. They change nothing."""

import os
import platform
import shutil
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from smalti.errors import InputError, IntegrityError, MachineError, SmaltiError
from smalti.files import check_manifest, read_rows
from smalti.model_folder import checkpoints
from smalti.pipeline.train import find_config, is_run
from smalti.recipes import AnyTraining
from smalti.training.fit import had_checkpoints, last_logged_step
from smalti.training.samples import skipped_steps
from smalti.training.watch import RunWatch

NEEDED = ("torch", "numpy", "pillow", "av", "safetensors", "pydantic", "PyYAML", "typer", "rich", "huggingface_hub")
LITTLE_SPACE = 5 << 30
"""Bytes of free disk below which a note says so: about one checkpoint of a large model."""


class Check(NamedTuple):
    """The result of one check."""

    name: str
    state: Literal["ok", "note", "broken"]
    """`note`: something works less well, or one command not at all; `broken`: smalti cannot work."""
    result: str
    """Version, path or number that the check has read."""
    remedy: str = ""
    """How to get what is missing; empty for `ok`."""
    exit_code: int = 0
    """Exit code of the command for `broken`."""


def check_machine() -> list[Check]:
    """Check system, packages, device, threads, weights of metrics, video encoder and disk, in this order."""
    checks = [
        Check("python", "ok", f"{platform.python_version()} on {platform.machine()}"),
        check_system(platform.system()),
    ]
    checks += [_package(name) for name in NEEDED]
    if all(check.state == "ok" for check in checks):
        checks += [_device(), _precision(), _threads(), _lpips("vgg"), _lpips("alex"), *_features(), _encoder()]
    return [*checks, check_disk(Path.cwd(), LITTLE_SPACE)]


def check_system(name: str) -> Check:
    """Check the operating system by the name that `platform.system` gives it."""
    if name in ("Linux", "Darwin"):
        return Check("system", "ok", "macOS" if name == "Darwin" else name)
    remedy = "it needs their signals, locks and syncs: use Linux or macOS, on Windows the Subsystem for Linux"
    return Check("system", "broken", f"{name}: smalti runs on Linux and macOS", remedy, MachineError.exit_code)


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "broken", "not installed", f"pip install {name}", MachineError.exit_code)


def _device() -> Check:
    import torch

    if not torch.accelerator.is_available():
        return Check("device", "note", "cpu only", "to use a GPU, install a build of torch for it: see pytorch.org")
    kind = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name() if kind is not None and kind.type == "cuda" else ""
    return Check("device", "ok", f"{torch.accelerator.device_count()} x {kind} {name}".rstrip())


def _precision() -> Check:
    from smalti.devices import measure_precisions, pick_device

    device = pick_device(None)
    speeds = measure_precisions(device)
    fastest = max(speeds, key=lambda name: speeds[name])
    figures = ", ".join(f"{name} {speed:,.0f} GFLOP/s" for name, speed in speeds.items())
    return Check("number format", "ok", f"{fastest} is the faster on {device.type}: {figures} in a 3x3 convolution")


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    result = f"{threads} of torch, {cores} cores"
    if 1 < threads <= cores <= 4 and "OMP_PROC_BIND" not in os.environ:
        # Measured on two cores: a step of a small model 0.12 s on one thread, 1 to 10 s on two that are not bound.
        return Check("threads", "note", result, "small machines can stall: set OMP_NUM_THREADS=1 or OMP_PROC_BIND=true")
    return Check("threads", "ok", result)


def _lpips(net: Literal["vgg", "alex"]) -> Check:
    from smalti.losses.perceptual import find_weights, read_weights

    name = f"lpips {net}"
    try:
        path = find_weights(net)
        read_weights(path, net)
    except MachineError as fault:
        return Check(name, "note", "no weights: LPIPS is left out of scores", str(fault))
    except Exception as fault:  # whatever is wrong with the file, the rest of smalti works
        return Check(name, "note", "weights that cannot be used", str(fault))
    return Check(name, "ok", str(path))


def _features() -> list[Check]:
    from smalti.metrics.weights import NETWORKS, find_weights_file, read_features

    checks = []
    for network in NETWORKS.values():
        try:
            path = find_weights_file(network)
            read_features(network, path)
        except MachineError as fault:
            checks.append(Check(network.score, "note", f"no weights of {network.name}", str(fault)))
        except Exception as fault:  # as above
            checks.append(Check(network.score, "note", f"weights of {network.name} that cannot be used", str(fault)))
        else:
            checks.append(Check(network.score, "ok", str(path)))
    return checks


def _encoder() -> Check:
    import av

    encoders = []
    for name in ("libx264", "libopenh264", "mpeg4"):
        try:
            encoders.append(av.codec.Codec(name, "w").name)
        except (ValueError, av.FFmpegError):
            continue
    if "libx264" in encoders:
        return Check("video encoder", "ok", ", ".join(encoders))
    return Check(
        "video encoder", "note", ", ".join(encoders) or "none", "to write video, pip install av (its own FFmpeg)"
    )


def check_disk(folder: Path, needed: int) -> Check:
    """Compare the free space of a folder that may not exist yet with the bytes that are needed there."""
    folder = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    result = f"{free / (1 << 30):,.1f} GiB free in {folder}, {needed / (1 << 30):,.2f} GiB are wanted"
    if not os.access(folder, os.W_OK):
        return Check("disk", "note", f"{folder} cannot be written", "go to another folder, or give `out`")
    if free < needed:
        return Check("disk", "note", result, "a checkpoint takes about four times the weights: free some space")
    return Check("disk", "ok", result)


_NAMED = 3
"""Steps, and samples of each, that are named."""


def check_run(run: str | Path) -> list[Check]:
    """Check a run folder, finished or not, also while it trains: the rules of `smalti.training.watch` on its log,
    and its files. Raises InputError where there is no run, ConfigError where its config is none."""
    folder = Path(run)
    if not is_run(folder):
        raise InputError(f"{folder}: no run folder; one has config.yaml and log.jsonl")
    config = find_config(folder)
    return [*_log(folder, config), *_skipped(folder), _bad_files(folder), *_checkpoints(folder, config)]


def _log(folder: Path, config: AnyTraining) -> list[Check]:
    """Return how far the run is, and the faults that the rules find in its log."""
    watch, faults, last = RunWatch(config), [], dict[str, object]()
    path, read = folder / "log.jsonl", 0
    for line in read_rows(path, "step"):
        faults += watch.add(line)
        read, last = read + 1, line if "skipped" in line else last
    lost = (path.read_bytes().count(b"\n") if path.is_file() else 0) - read  # a line that a kill cut short has no end
    damaged = [Check("log lines", "note", f"{lost:,} of {path} cannot be read", "check the disk")] if lost > 0 else []
    if not last:
        remedy = f"wait for step {min(config.log_every, config.steps):,}"
        return [*damaged, Check("log", "note", "no step is logged yet", remedy)]
    rate = last.get("steps_per_second")
    speed = f", {rate:.3g} steps a second" if isinstance(rate, float) else ""
    checks = [*damaged, Check("log", "ok", f"step {last['step']:,} of {config.steps:,}{speed}")]
    checks += [Check(one.rule, "note", f"{one.what}, first at step {one.step:,}", one.remedy) for one in faults]
    return checks if faults else [*checks, Check("rules", "ok", "none of the faults that are looked for")]


def _skipped(folder: Path) -> list[Check]:
    """Name the samples of the first skipped steps, and those that are in several."""
    rows = skipped_steps(folder)
    if not rows:
        return []
    shown = "; ".join(
        f"step {row['step']:,} ({', '.join(row['not_finite']) or 'a gradient'}): {_some(row['samples'])}"
        for row in rows[:_NAMED]
    )
    often = [name for name, count in Counter(n for row in rows for n in row["samples"]).most_common() if count > 1]
    more = f"; in several of them: {_some(often)}" if often else ""
    what = f"{len(rows):,} updates were left out: {shown}{more}"
    remedy = f"look at these samples; load such a batch again by its seed ({rows[0]['seed']}) and step"
    return [Check("skipped steps", "note", what, remedy)]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _bad_files(folder: Path) -> Check:
    named = dict[str, str]()
    for path in sorted(folder.glob("bad_files*.jsonl")):
        named |= {str(row["path"]): str(row["code"]) for row in read_rows(path, "path", "code")}
    if not named:
        return Check("bad files", "ok", "none")
    kinds = ", ".join(f"{count} {code}" for code, count in Counter(named.values()).most_common())
    return Check("bad files", "note", f"{len(named)} ({kinds}): {_some([*named])}", "repair them; see bad_files.jsonl")


def _checkpoints(folder: Path, config: AnyTraining) -> list[Check]:
    """Check every checkpoint against its digests, and the disk for the next one."""
    folders, damaged = checkpoints(folder), list[str]()
    final = folder / config.kind
    if final.is_dir():
        try:
            check_manifest(final)
        except SmaltiError as fault:
            return [Check("checkpoints", "broken", str(fault), "copy it from the newest checkpoint", fault.exit_code)]
    for checkpoint in folders:
        try:
            check_manifest(checkpoint)
        except SmaltiError as fault:
            damaged.append(str(fault))
    if not folders and had_checkpoints(folder, config):
        what = "there were some, and none is left"
        return [Check("checkpoints", "broken", what, "restore one, or start anew", IntegrityError.exit_code)]
    if not folders:
        return [Check("checkpoints", "note", "none yet", f"one is written every {config.save_every:,} steps")]
    steps = [int(checkpoint.name.removeprefix("step-")) for checkpoint in folders]
    late = max(0, last_logged_step(folder) - steps[-1])
    behind = f"{len(folders)}, newest of step {steps[-1]:,}, {late:,} steps behind the log"
    size = max(sum(path.stat().st_size for path in one.rglob("*") if path.is_file()) for one in folders)
    check = Check("checkpoints", "ok", f"{behind}, all whole")
    if len(damaged) == len(folders):
        what = f"{behind}: none is whole; the newest: {damaged[-1]}"
        check = Check("checkpoints", "broken", what, "restore one, or start anew", IntegrityError.exit_code)
    elif damaged:
        what = f"{behind}: {len(damaged)} damaged: {damaged[-1]}"
        check = Check("checkpoints", "note", what, "resuming takes the newest whole one; check the disk")
    return [check, check_disk(folder, 2 * size)]
