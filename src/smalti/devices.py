"""The device of a name, or the best there is: one check and one message for every function that takes one."""

import torch

from smalti.errors import MachineError


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
