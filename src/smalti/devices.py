"""The device of a name, or the best there is: one check and one message for every function that takes one."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from smalti.errors import MachineError

_SHARE = 0.8
"""Share of the memory that is free at the start that work may take."""


def usable_memory() -> int | None:
    """Return the bytes that work of this machine may take: 80 % of what is free now, in the machine and in the control
    group of this process (a container, a job of Slurm). None where the system does not say."""
    free = list[int]()
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    old = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
    for limit, used in (("memory.max", "memory.current"), old):
        with suppress(OSError, ValueError):  # "max" is no number
            group = Path("/sys/fs/cgroup")
            free.append(int((group / limit).read_text("ascii")) - int((group / used).read_text("ascii")))
    if not free and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return int(max(0, min(free)) * _SHARE) if free else None


def as_device(device: str | torch.device | None) -> torch.device | None:
    """Return the device of that name, None for None. Raises MachineError if it is not there."""
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        there = f"cpu and {accelerator.type}" if accelerator is not None else "cpu only"
        reason = str(error).splitlines()[0][:120]
        raise MachineError(f"`device` {device}: not available here, where there is {there} ({reason})") from None
    return found


def pick_device(name: str | None, local_rank: int = 0) -> torch.device:
    """Return the device of that name, or the best there is; of several, that of `local_rank`.

    Raises MachineError if it is not there."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        name = accelerator.type if accelerator is not None else "cpu"
    device = as_device(name)
    assert device is not None
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, local_rank)
        torch.accelerator.set_device_index(local_rank)
    return device
