"""The device of a name, or the best there is: one check and one message for every function that takes one; and what the
number formats cost on it."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import torch

from smalti.errors import MachineError

Precision = Literal["float32", "bfloat16"]
"""Number formats in which networks compute."""
_PROBED = (1, 128, 32, 32)
"""Images, channels, height and width of the convolution that is timed."""
FASTER = 1.2
"""How many times as fast another number format must be to be advised or taken."""
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
        result = torch.device(device)
        torch.empty(0, device=result)
    except (RuntimeError, AssertionError) as error:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        there = f"cpu and {accelerator.type}" if accelerator is not None else "cpu only"
        reason = str(error).splitlines()[0][:120]
        raise MachineError(f"`device` {device}: not available here, where there is {there} ({reason})") from None
    return result


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


def measure_precisions(device: torch.device) -> dict[Precision, float]:
    """Return the speed of a 3x3 convolution in each number format on `device`, in GFLOP/s: the best of some turns.

    Which one is faster differs between processors by a factor of twenty: bfloat16 is twice as fast as float32 where the
    processor multiplies it, and a tenth where it does not.
    """
    formats: tuple[Precision, ...] = ("float32", "bfloat16")
    best = dict.fromkeys(formats, float("inf"))
    images, channels, height, width = _PROBED
    with torch.inference_mode():
        layers = {name: _probe(getattr(torch, name), device) for name in formats}
        for _ in range(12):
            for name, (convolution, x) in layers.items():
                _synchronize(device)
                began = time.perf_counter()
                convolution(x)
                _synchronize(device)
                best[name] = min(best[name], time.perf_counter() - began)
    operations = 2 * 9 * channels**2 * images * height * width
    return {name: operations / seconds / 1e9 for name, seconds in best.items()}


def faster_precision(speeds: Mapping[Precision, float]) -> Precision:
    """Return bfloat16 where it is at least 1.2 times as fast as float32, by `measure_precisions`."""
    return "bfloat16" if speeds["bfloat16"] >= FASTER * speeds["float32"] else "float32"


def _probe(dtype: torch.dtype, device: torch.device) -> tuple[torch.nn.Conv2d, torch.Tensor]:
    convolution = torch.nn.Conv2d(_PROBED[1], _PROBED[1], 3, padding=1, device=device, dtype=dtype)
    x = torch.zeros(_PROBED, device=device, dtype=dtype)
    order = torch.channels_last
    return convolution.to(memory_format=order), x.to(memory_format=order)  # type: ignore[call-overload, unused-ignore]


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; where it comes from the CPU's memory, the program does not wait for a CUDA device.

    A pinned copy is what such a device reads by itself, and is kept until it has."""
    if x.device.type != "cpu":
        return x.to(device)
    # An expanded tensor cannot be pinned, and one with gaps would be copied once more.
    return (x.contiguous().pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def is_in_graph() -> bool:
    """Return whether the calls of this moment become a graph: compiled, exported, or captured on a CUDA device.

    No value can be looked at then."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def whole_float32(device: torch.device) -> AbstractContextManager[None]:
    """Return a block in which float32 convolutions and products on a CUDA device are whole, as on a CPU.

    By default convolutions round their inputs to the 11 bits of TF32: on an H200 that moved latents by up to 0.017,
    gave 108 of 21,868 ids of `smalti/tiny-image` another value than the CPU's, and one image other ids in a batch of
    eight than alone. In whole float32 1 of 21,868 differed, and none by the batch (benchmarks/results/tf32.json).
    Other devices, and a graph that is being compiled, are left alone.
    """
    return _without_tf32() if device.type == "cuda" and not torch.compiler.is_compiling() else nullcontext()


def _without_tf32() -> AbstractContextManager[None]:
    return _cuda_flags(convolutions=False, products=False, benchmark=torch.backends.cudnn.benchmark)


def fast_kernels(wanted: bool) -> AbstractContextManager[None]:
    """Return a block in which, if `wanted`, CUDA devices round the inputs of float32 convolutions and products to TF32,
    and cuDNN times its convolutions at each new size and takes the fastest. For training alone: the same call may then
    have other bits in another process."""
    return _cuda_flags(convolutions=True, products=True, benchmark=True) if wanted else nullcontext()


@contextmanager
def _cuda_flags(*, convolutions: bool, products: bool, benchmark: bool) -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = convolutions, products, benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
