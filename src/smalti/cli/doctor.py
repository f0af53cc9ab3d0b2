"""`smalti doctor`: what this machine has, what is missing, and how to get it."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import typer

from smalti.cli.console import print_json
from smalti.cli.options import JsonOption
from smalti.errors import MachineError
from smalti.version import __version__

NEEDED = ("torch", "numpy", "pillow", "av", "safetensors", "pydantic", "PyYAML", "typer", "rich", "huggingface_hub")
LITTLE_SPACE = 5 << 30


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "note", "broken"]
    """`note`: something works less well, or one verb not at all; `broken`: smalti cannot work."""
    found: str
    remedy: str = ""


def doctor_command(as_json: JsonOption = False) -> None:
    """Check this machine: packages, device, threads, weights of metrics, disk, encoder.

    \b
    Examples:
      smalti doctor
      smalti doctor --json
    """
    checks = examine()
    if as_json:
        print_json({"smalti": __version__, "checks": [check._asdict() for check in checks]})
    else:
        for check in checks:
            print(f"{check.state:<7} {check.name:<20} {check.found}")
            if check.remedy:
                print(f"{'':<28} -> {check.remedy}")
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(MachineError.exit_code)


def examine() -> list[Check]:
    """All checks, in the order in which they are shown."""
    checks = [Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    checks += [_package(name) for name in NEEDED]
    if all(check.state == "ok" for check in checks):
        checks += [_device(), _threads(), _lpips("vgg"), _lpips("alex"), *_features(), _encoder()]
    return [*checks, _disk(Path.cwd())]


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "broken", "not installed", f"pip install {name}")


def _device() -> Check:
    import torch

    if not torch.accelerator.is_available():
        return Check("device", "note", "cpu only", "a GPU needs a torch build for it: see pytorch.org")
    kind = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name() if kind is not None and kind.type == "cuda" else ""
    return Check("device", "ok", f"{torch.accelerator.device_count()} x {kind} {name}".rstrip())


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    found = f"{threads} of torch, {cores} cores"
    if 1 < threads <= cores <= 4 and "OMP_PROC_BIND" not in os.environ:
        # Measured on two cores: a step of a small model 0.12 s on one thread, 1 to 10 s on two that are not bound.
        return Check("threads", "note", found, "small machines can stall: set OMP_NUM_THREADS=1 or OMP_PROC_BIND=true")
    return Check("threads", "ok", found)


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

    found = []
    for name in ("libx264", "libopenh264", "mpeg4"):
        try:
            found.append(av.codec.Codec(name, "w").name)
        except (ValueError, av.FFmpegError):
            continue
    if "libx264" in found:
        return Check("video encoder", "ok", ", ".join(found))
    return Check("video encoder", "note", ", ".join(found) or "none", "to write video, pip install av (its own FFmpeg)")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / (1 << 30):,.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "note", f"{folder} cannot be written", "go to another folder, or give --out")
    if free < LITTLE_SPACE:
        return Check("disk", "note", found, "a checkpoint is some four times the weights: free some space")
    return Check("disk", "ok", found)
