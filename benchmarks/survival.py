"""What runs survive: random kills, every failpoint, signals, readers that go away, full disks.

    python -m benchmarks survival

A run of 16 steps with a discriminator is disturbed at a random moment and resumed, again and again until it ends; then
its last checkpoint is compared with that of an undisturbed run, byte for byte. The moments differ from call to call.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.utils.tensorboard

from smalti.errors import SmaltiError
from smalti.files import MANIFEST, check_manifest, sha256
from smalti.model_folder import checkpoints
from smalti.pipeline.train import train
from smalti.progress import say
from smalti.recipes import find
from smalti.tokenizer import Tokenizer
from smalti.training.fit import logged_lines

SETTINGS = (
    *("steps=16", "batch_size=2", "save_every=2", "keep=2", "log_every=1", "eval_every=100000", "sample_every=100000"),
    *("data.size=32", "validation=null", "tokenizer.width=8", "lpips=null", "weights={l2: 1.0, batch_entropy: 0.1}"),
    "gan={discriminator: {kind: patch, width: 8}, adaptive: true, lecam: 0.1, weight: 0.1}",
)
FAILPOINTS = (
    *("write_bytes:before-rename", "new_folder:before-manifest", "new_folder:before-rename"),
    "new_folder:after-rename",
)
UNREADABLE, TORN, OTHER_END = "unreadable", "torn", "other bytes at the end"
Disturbance = Callable[[Path, random.Random, float], int]
"""Goes on with the run in a folder, disturbed within about these seconds; returns the exit code, below 0 for a
signal."""


def begin(out: Path, before: Callable[[], object] = lambda: None) -> int:
    """Go on with the run in a process of its own, forked from this one; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        before()
        config = find("tiny", tiny=True).override(SETTINGS)
        train(config, out, resume=(out / "config.yaml").exists(), device="cpu", progress=tell)
        code = 0
    except SmaltiError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def tell(done: int, total: int | None = None, note: str = "") -> None:
    """Say each step."""
    say(f"step {done}: {note}")


def ended(child: int) -> int:
    """Wait for a process; returns its exit code, or the number of its signal below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def by_signal(number: int) -> Disturbance:
    def disturb(out: Path, rng: random.Random, seconds: float) -> int:
        child = begin(out)
        time.sleep(rng.uniform(0.02, seconds / 2))
        os.kill(child, number)
        return ended(child)

    return disturb


def by_failpoint(name: str) -> Disturbance:
    def disturb(out: Path, rng: random.Random, seconds: float) -> int:
        return ended(begin(out, lambda: os.environ.update(SMALTI_FAULT=name)))

    return disturb


def broken_pipe(out: Path, rng: random.Random, seconds: float) -> int:
    """End the reader of its output at a random moment."""
    reader, writer = os.pipe()

    def redirect() -> None:
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)

    child = begin(out, redirect)
    os.close(writer)
    time.sleep(rng.uniform(0.02, seconds / 2))
    os.close(reader)
    return ended(child)


def full_disk(out: Path, rng: random.Random, seconds: float) -> int:
    """Fill its disk up to a random rest at a random moment, and make room again when it has ended."""
    child, filler = begin(out), out.parent / "filler"
    time.sleep(rng.uniform(0.02, seconds / 2))
    status = os.statvfs(out.parent)
    rest = rng.randrange(64 << 10)
    with suppress(OSError):
        filler.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - rest)))
    code = ended(child)
    filler.unlink(missing_ok=True)
    return code


def digests(out: Path) -> Mapping[str, str]:
    """The digest of every file of tensors in the last checkpoint."""
    last = checkpoints(out)[-1]
    return {str(path.relative_to(last)): sha256(path) for path in sorted(last.rglob("*.safetensors"))}


def faults(out: Path) -> Counter[str]:
    """What a disturbance left that it must not: checkpoints that cannot be read, lines of the log in pieces."""
    found = Counter[str]()
    for folder in checkpoints(out):
        try:
            if (folder / MANIFEST).is_file():
                check_manifest(folder)
                Tokenizer.load(folder / "tokenizer")
            else:
                found[UNREADABLE] += 1
        except SmaltiError:
            found[UNREADABLE] += 1
    log = out / "log.jsonl"
    whole = list(logged_lines(log))
    lines = len(log.read_text().splitlines()) if log.is_file() else 0
    found[TORN] += lines - len(whole) > 1  # the last line of a killed run may be cut, and is taken out on resumption
    steps = [step for step, _ in whole]
    found[TORN] += steps != sorted(set(steps))
    return found


def survive(disturb: Disturbance, times: int, folder: Path, quiet: Mapping[str, str], seconds: float) -> Counter[str]:
    """Disturb runs so many times, each until it ends, and count what went wrong."""
    found, rng, number = Counter[str](disturbed=0, runs=0), random.Random(), 0
    while found["disturbed"] < times:
        number += 1
        out, code = folder / f"run-{number}", -1
        for _ in range(200):
            code = disturb(out, rng, seconds)
            if code == 0:
                seconds = max(0.2, seconds * 0.8)  # it ended before: the machine is faster than it was
                break
            seconds *= 1.02
            found["disturbed"] += 1
            found += faults(out) if out.exists() else Counter()
            if found["disturbed"] >= times:
                break
        if code:
            code = ended(begin(out))
        elif disturb is broken_pipe:
            found["disturbed"] += 1
        found["runs"] += 1
        found[OTHER_END] += code != 0 or digests(out) != quiet
        subprocess.run(["rm", "-rf", str(out)], check=True)
    return found


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.monotonic()
        if ended(begin(folder / "quiet")):
            raise RuntimeError("the undisturbed run failed")
        seconds, quiet = time.monotonic() - began, digests(folder / "quiet")
        small = folder / "small"
        small.mkdir()
        endings: dict[str, tuple[Disturbance, int]] = {"SIGKILL": (by_signal(signal.SIGKILL), 100)}
        endings |= {f"failpoint {name}": (by_failpoint(name), 5) for name in FAILPOINTS}
        endings |= {n: (by_signal(getattr(signal, n)), 20) for n in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")}
        endings |= {"broken pipe": (broken_pipe, 20)}
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True, check=False
        )
        if not mounted.returncode:  # needs the rights of root
            endings["full disk"] = (full_disk, 20)
        rows: list[Mapping[str, object]] = []
        try:
            for name, (disturb, times) in endings.items():
                found = survive(disturb, times, small if name == "full disk" else folder, quiet, seconds)
                wrong = {what: found[what] for what in (UNREADABLE, TORN, OTHER_END)}
                rows.append({"ending": name, "times": found["disturbed"], "runs": found["runs"], **wrong})
                print(rows[-1], file=sys.stderr, flush=True)
        finally:
            if not mounted.returncode:
                subprocess.run(["umount", str(small)], check=False)
    return "runs that were disturbed at random moments and resumed to their end", rows
