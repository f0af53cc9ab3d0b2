"""A hundred thousand mutations of other projects' checkpoints: nothing runs, nothing hangs, memory is bounded.

    python -m tests.base.mutations FOLDER [--count 100000] [--seconds 300]

Six containers (zip, legacy pickle, TorchScript, lightning, .npz, safetensors) take turns: a small file of each, and
hostile pickles inside of a zip with right checksums. Mutation K is the same in every process: the state in FOLDER says
how far it is and what was found, and the same command goes on there. Audit hooks count whatever is imported, opened,
executed or called while a file is read; CPU time and memory are taken of each file.
"""

import argparse
import io
import json
import pickle
import random
import resource
import sys
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import peak_mb
from smalti.errors import SmaltiError
from smalti.files import save_tensors
from smalti.foreign import naming_file, read_checkpoint, tensors
from smalti.metrics import read_published_statistics
from tests.base.test_hostile_checkpoints import EITHER, INERT, REFUSED, archive, call, name, text
from tests.damage import damaged
from tests.goldens import rule

ADDRESSES = 1 << 30
"""Bytes that a process may take beyond what it has when the first file is read."""
HANG = 5.0
"""Seconds of CPU that no file may take."""
QUIET = {"builtins.id", "mmap.__new__", "sys._getframe", "object.__getattr__", "code.__new__"}
MACHINERY = {
    "zip": "zip.pth",
    "zip of a pickle": "zip.pth",
    "legacy": "legacy.pt",
    "TorchScript": "script.jit",
    "lightning": "lightning.ckpt",
    "npz": "published.npz",
    "safetensors": "foreign.safetensors",
    "real": "real.bin",
    "hostile": "hostile.pth",
}


def originals(folder: Path) -> dict[str, list[bytes]]:
    """Small files of each container; those of `hostile` would run code in pickle's own reader."""
    tree = {
        "state_dict": {f"layer.{i}.weight": torch.arange(3.0 * (i + 1)).view(3, i + 1) for i in range(4)},
        "meta": {"epoch": 7, "betas": (0.5, 0.9), "bytes": b"\x00\xff", "name": "model = 1"},
    }
    torch.save(tree, folder / "zip.pth")
    torch.save(tree, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({**tree, "pytorch-lightning_version": "2.1.0", "optimizer_states": [tree]}, folder / "lightning.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save(str(folder / "script.jit"))
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    np.savez(folder / "published.npz", mu=vectors.mean(0), sigma=np.cov(vectors, rowvar=False))
    save_tensors(folder / "foreign.safetensors", tree["state_dict"])
    found = {kind: [(folder / file).read_bytes()] for kind, file in MACHINERY.items() if (folder / file).is_file()}
    found["real"] = [(rule.FOLDER / "maskgit_tiny.bin").read_bytes()]
    heavy = [data for data in EITHER.values() if len(data) < 100_000]
    hostile = [*INERT.values(), *(data for data, _ in REFUSED.values()), *heavy]
    found["hostile"] = [data for data in hostile if len(data) < 100_000]
    shell = archive(call(name("os", "system"), text("touch canary")))
    found["hostile"] += [shell] * 20
    found["legacy"].append(pickle.dumps({"a": np.arange(6.0), "b": [1, "x"], "c": (None, {1: b"z"})}))
    return {kind: found[kind] for kind in MACHINERY}


def resealed(data: bytes, dice: random.Random, number: int) -> bytes:
    """Damage a member of a zip and give it the checksum that fits: an attacker writes it too."""
    raw = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(raw, "w") as made:
        entries = [(entry.filename, whole.read(entry)) for entry in whole.infolist()]
        pickles = [place for place, (entry, _) in enumerate(entries) if entry.endswith("data.pkl")] or [0]
        chosen = dice.choice((dice.choice(pickles), dice.randrange(len(entries))))
        for place, (entry, content) in enumerate(entries):
            made.writestr(entry, damaged(content, dice, number) if place == chosen and content else content)
    return raw.getvalue()


def mutation(files: dict[str, list[bytes]], number: int) -> tuple[str, bytes]:
    """Make mutation `number`: its container and its bytes, one to three damages of an original."""
    dice, kinds = random.Random(number), list(files)
    kind = kinds[number % len(kinds)]
    data, turn = dice.choice(files[kind]), number // len(kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are there twice
        for again in range(dice.choice((1, 1, 2, 3))):
            is_zip = data[:2] == b"PK"
            if kind in ("zip of a pickle", "hostile") and is_zip and dice.random() < 0.8:
                try:
                    data = resealed(data, dice, turn + again)
                except Exception:  # it is no whole zip any more
                    break
            elif data:
                data = damaged(data, dice, turn + again)
    return kind, data


def read(path: Path) -> str:
    """Read it as the package does; `read`, or the name of the error. Other errors are not caught."""
    try:
        if path.suffix == ".npz":
            read_published_statistics(path, 6)
        else:
            tree = read_checkpoint(path)
            with naming_file(path):
                tensors(tree)
    except SmaltiError as fault:
        line = str(fault)
        if path.name not in line or not line.isprintable() or len(line) > 1000:
            raise AssertionError(f"no line with the file's name: {line!r}") from None
        if fault.exit_code not in (3, 4):
            raise AssertionError(f"exit code {fault.exit_code}: {line}") from None
        return type(fault).__name__
    return "read"


class Watch:
    """What Python's audit events say while a file is read, but for the opening of the file itself."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Note an event; on no account may this raise."""
        if self.path is None or event in QUIET:
            return
        if event == "open" and str(arguments[0]) == str(self.path):
            return
        if event == "compile" and self.path.suffix == ".npz":
            return  # numpy parses the head of an array as a literal (ast.literal_eval): a tree that is never run
        self.seen.append(f"{event} {arguments}"[:200])


def mutate(folder: Path, count: int, seconds: float) -> dict[str, object]:
    """Go on in a folder until there are so many mutations, or for so many seconds; returns the state."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "state.json"
    fresh = {"done": 0, "outcomes": {}, "faults": [], "slowest": 0, "grown_mb": 0}
    state = json.loads(place.read_text()) if place.is_file() else fresh
    files, outcomes = originals(folder), Counter[str](state["outcomes"])
    for protocol in (0, 2, 5):  # codecs and modules are imported when they are first used
        (folder / "real.bin").write_bytes(pickle.dumps({"é": b"\xff", 2**70: [1.5, "a"]}, protocol))
        read(folder / "real.bin")
    for kind, datas in files.items():
        (folder / MACHINERY[kind]).write_bytes(datas[0])
        read(folder / MACHINERY[kind])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES,) * 2)
    before, began, watch = peak_mb(), time.monotonic(), Watch()
    number = int(state["done"])
    while number < count and time.monotonic() - began < seconds:
        kind, data = mutation(files, number)
        path = folder / MACHINERY[kind]
        path.write_bytes(data)
        start, watch.path = time.process_time(), path
        try:
            said = read(path)
        except BaseException as error:
            said = f"FAULT {type(error).__name__}"
            state["faults"].append(f"{number} {kind}: {type(error).__name__}: {error}"[:500])
        watch.path = None
        took = time.process_time() - start
        if took > HANG:
            state["faults"].append(f"{number} {kind}: {took:.1f} s")
        state["slowest"] = max(state["slowest"], round(took, 2))
        state["faults"] += [f"{number} {kind}: {event}" for event in watch.seen]
        watch.seen.clear()
        outcomes[f"{kind}: {said}"] += 1
        number += 1
    state |= {"done": number, "outcomes": dict(outcomes), "canary": Path("canary").exists()}
    state["grown_mb"] = max(state["grown_mb"], round(peak_mb() - before))
    place.write_text(json.dumps(state, indent=1))
    return state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=300.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(mutate(given.folder, given.count, given.seconds), indent=1))
