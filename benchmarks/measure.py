"""The method: contenders take turns, the least process CPU time of all rounds counts, and a ratio is what is reported.

CPU time and not the clock, because other programs share the machine; turns, because its speed drifts; one thread,
because two on a shared machine wait for each other.
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

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("smalti", "torch", "numpy", "vector-quantize-pytorch")


def fastest(contenders: Mapping[str, Callable[[], object]], *, rounds: int, least: float = 0.02) -> dict[str, float]:
    """Seconds of CPU time per call of each contender: the least over `rounds`, each in the reverse order of the last.

    A round repeats a call until it has taken `least` seconds, as the clock of the process is coarse.
    """
    repeats = {}
    for name, call in contenders.items():
        call()  # first calls allocate and choose kernels
        began = time.process_time()
        call()
        repeats[name] = max(1, round(least / max(time.process_time() - began, 1e-6)))
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else list(contenders)[::-1]:
            began = time.process_time()
            for _ in range(repeats[name]):
                contenders[name]()
            best[name] = min(best[name], (time.process_time() - began) / repeats[name])
    return best


def peak_mb() -> float:
    """The most memory that this process has held, in MB of 1e6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held before it became this process
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


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
