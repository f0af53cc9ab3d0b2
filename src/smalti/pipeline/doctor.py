"""The checks of a machine (`smalti doctor`): what it has, what is missing, and how to get it."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from smalti.errors import MachineError

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
