"""What there is to do on a GPU, in ten minutes: the marked tests, a training run with its curves, and the benchmarks by
the GPU's own clock.

    bash benchmarks/gpu.sh                                   # a row is added to results/gpu.json
    bash benchmarks/gpu.sh --device cpu --tiny --out row.json    # only to see that the program runs

Nothing is installed. A part whose packages or checkout are missing is named in the row and left out.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import entropy, magicmaster, replay, speed, training_memory, training_run, training_step
from benchmarks.measure import RESULTS, TINY, machine
from benchmarks.peers.magicmaster import HOW, find

MINUTES = 10
NEEDED = {"tests": ("pytest", "hypothesis", "jaxtyping", "beartype"), "entropy": ("vector_quantize_pytorch", "loguru")}
NEEDED |= {"training_run": ("tensorboard", "matplotlib"), "magicmaster": ("einops",)}


class Part(NamedTuple):
    """One thing to do."""

    name: str
    run: Callable[[torch.device], object]


def marked_tests(device: torch.device) -> object:
    """The tests that are marked `gpu`; what pytest says at the end, or a CPU's "none ran"."""
    root = Path(__file__).resolve().parents[1]
    files = [str(path) for path in sorted((root / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *files]  # the others need more packages
    if device.type == "cpu":
        command.append("--collect-only")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
    return {"exit": done.returncode, "said": done.stdout.strip().splitlines()[-1:]}


def rows(measure: Callable[[torch.device], tuple[str, Sequence[Mapping[str, object]]]]) -> Callable[..., object]:
    """The rows of a benchmark."""
    return lambda device: list(measure(device)[1])


def trained(device: torch.device) -> object:
    """A training run's curves."""
    return training_run.measure(device, tiny=bool(os.environ.get(magicmaster.TINY)))


PARTS = (
    Part("tests", marked_tests),
    Part("replay", rows(replay.measure)),
    Part("training_run", trained),
    Part("training_step", rows(training_step.measure)),
    Part("recorded_step", rows(training_step.measure_recorded)),
    Part("training_memory", rows(training_memory.measure)),
    Part("magicmaster", rows(magicmaster.measure)),
    Part("entropy", rows(entropy.measure)),
    Part("speed", rows(speed.measure)),
)


def absent(name: str, device: torch.device) -> str | None:
    """Why a part cannot be done here."""
    if name == "recorded_step" and device.type != "cuda":
        return "needs a CUDA device"
    missing = [package for package in NEEDED.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return HOW if name == "magicmaster" and find() is None else None


def hardware(device: torch.device) -> dict[str, object]:
    """What the figures depend on."""
    found = machine()
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"gpu": about.name, "gpu_gb": about.total_memory / 1e9, "cuda": torch.version.cuda}
        found["tf32"] = {"convolutions": torch.backends.cudnn.allow_tf32}
    return found


def main() -> int:
    """Do the parts in turn while there is time, and keep the row after each."""
    parser = argparse.ArgumentParser(description="tests and benchmarks on a GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: only to see that the program runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="these alone")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"this torch ({torch.__version__}) finds no CUDA device; nothing was measured", file=sys.stderr)
        return 3
    if given.tiny:
        os.environ[magicmaster.TINY] = os.environ[TINY] = "1"
        entropy.SIZES, entropy.LARGEST, training_step.SIZE = ((6, 64),), (8, 64), 32
    began = time.monotonic()
    moment = datetime.now(timezone.utc).isoformat(timespec="seconds")
    row: dict[str, object] = {"began": moment, **hardware(device), "parts": {}}
    done: dict[str, Any] = {}
    for name, run in PARTS:
        if given.parts and name not in given.parts:
            continue
        spent = (time.monotonic() - began) / 60
        reason = absent(name, device) or (f"{MINUTES} minutes were over" if spent > MINUTES - 1 else None)
        print(f"{name}: {reason or 'begins'} ({spent:.1f} min)", file=sys.stderr, flush=True)
        done[name] = {"left out": reason} if reason else attempt(run, device)
        keep(given.out, row | {"parts": done})
        if name == "training_run" and "curves" in (found := done[name]):
            card = next((word.lower() for word in str(row.get("gpu", "")).split() if word[1:].isdigit()), device.type)
            training_run.draw(found["curves"], given.out.with_name(f"{given.out.stem}-{row['date']}-{card}.png"))
    print(json.dumps(row | {"parts": done}, indent=2))
    return 1 if any(isinstance(found, dict) and "failed" in found for found in done.values()) else 0


def attempt(run: Callable[[torch.device], object], device: torch.device) -> Any:
    """What a part found, or how it failed: the parts after it are still done."""
    try:
        return run(device)
    except Exception as fault:
        traceback.print_exc()
        return {"failed": f"{type(fault).__name__}: {fault}"[:300]}


def keep(path: Path, row: Mapping[str, object]) -> None:
    """Put the row after those of other runs, in place of what this run has kept already."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [other for other in kept if other.get("began") != row["began"]]
    path.write_text(json.dumps([*kept, row], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
