"""The method: contenders take turns, the least process CPU time of all rounds counts, and a ratio is what is reported.

CPU time and not the clock, because other programs share the machine; turns, because its speed drifts; one thread,
because two on a shared machine wait for each other. On a GPU: the time between two events in its own queue.
"""

import json
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results"
TINY = "SMALTI_BENCHMARK_TINY"
"""Variable of the environment: the smallest sizes alone, only to see that a program runs."""
PACKAGES = ("smalti", "torch", "numpy", "vector-quantize-pytorch")


def seconds(call: Callable[[], object], device: torch.device = CPU) -> float:
    """What one call takes: CPU time of this process, or time of the GPU."""
    if device.type == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3


def fastest(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, least: float = 0.02, device: torch.device = CPU
) -> dict[str, float]:
    """Seconds per call of each contender: the least over `rounds`, each in the reverse order of the last.

    A round repeats a call until it has taken `least` seconds, as the clock of the process is coarse.
    """
    repeats = {}
    for name, call in contenders.items():
        call()  # first calls allocate and choose kernels
        repeats[name] = max(1, round(least / max(seconds(call, device), 1e-6)))

    def repeated(name: str) -> Callable[[], object]:
        return lambda: [contenders[name]() for _ in range(repeats[name])]

    best = turns({name: repeated(name) for name in contenders}, rounds=rounds, device=device)
    return {name: best[name] / repeats[name] for name in contenders}


def turns(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device = CPU
) -> dict[str, float]:
    """The same for calls of many seconds: nothing is called apart from the rounds, of which the least counts anyway."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else list(contenders)[::-1]:
            best[name] = min(best[name], seconds(contenders[name], device))
    return best


def peak_mb() -> float:
    """The most memory that this process has held, in MB of 1e6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held before it became this process
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def growth_mb(call: Callable[[], object], device: torch.device = CPU) -> float:
    """The most memory that a call held above what was held before it; on a CPU only a fresh process tells the truth."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    restart = Path("/proc/self/clear_refs")
    if restart.exists():
        restart.write_text("5", encoding="ascii")  # the peak starts again from what is held now
    before = peak_mb()
    call()
    return peak_mb() - before


def child(module: str, *arguments: object) -> dict[str, float]:
    """Run `python -m module arguments` alone and read the JSON that it prints last: memory needs fresh processes."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine() -> dict[str, object]:
    """What the figures depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu(),
        "threads": 1,
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(cpu family|model|model name)\s*: (.*)$", text, re.MULTILINE))
    return f"{fields.get('model name', '?')} (family {fields.get('cpu family')}, model {fields.get('model')})"


def write(name: str, rows: Sequence[Mapping[str, object]], note: str) -> None:
    """Keep a benchmark's rows, and what they mean, in results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    data = {"benchmark": name, **machine(), "note": note, "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
