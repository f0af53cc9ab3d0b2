"""What runs survive: random kills, every failpoint, signals, readers that go away, full disks.

    python -m benchmarks survival                        all of it: an hour of one core
    python -m benchmarks.survival SIGKILL 25             endings of this name, so many times each: minutes
    python -m benchmarks.survival failpoint

A run of 16 steps with a discriminator is disturbed at a random moment and resumed, again and again until it ends; then
its last checkpoint is compared with that of an undisturbed run, byte for byte. The same with a token set and a `.smt`
file at their failpoints. The moments differ from call to call. Parts of one commit add up in results/survival.json;
the rows of another are dropped.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.utils.tensorboard

import smalti
from benchmarks.measure import RESULTS, write
from smalti import files
from smalti.codec.format import Reader
from smalti.data import read_clip, write_video
from smalti.data.bundled import photos, videos
from smalti.errors import InputError, SmaltiError
from smalti.families.names import TINY_IMAGE, TINY_VIDEO
from smalti.files import MANIFEST, check_manifest, read_rows, remove_leftovers, sha256
from smalti.model_folder import checkpoints
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.text import say
from smalti.tokenizer import Tokenizer
from smalti.tokens.plan import PROVENANCE, load_plan
from smalti.tokens.shard import read_report

SETTINGS = (
    *("steps=16", "batch_size=2", "save_every=2", "keep=2", "log_every=1", "eval_every=100000", "sample_every=100000"),
    *("data.size=32", "validation=null", "tokenizer.width=8", "lpips=null", "weights={l2: 1.0, batch_entropy: 0.1}"),
    "gan={discriminator: {kind: patch, width: 8}, adaptive: true, lecam: 0.1, weight: 0.1}",
)
UNREADABLE, TORN, OTHER_END = "unreadable", "torn", "other bytes at the end"
WRONG = (UNREADABLE, TORN, OTHER_END)


class Work(NamedTuple):
    """What is disturbed: it goes on where it was when it is begun again."""

    name: str
    go: Callable[[Path], object]
    """Begins it in a folder, or goes on."""
    ends: Callable[[Path], Mapping[str, str]]
    """Digests of what it has made."""
    faults: Callable[[Path], Counter[str]]
    """What a disturbance left that it must not."""


Disturbance = Callable[[Work, Path, random.Random, float], int]
"""Goes on with a work in a folder, disturbed within about these seconds; returns the exit code, below 0 for a
signal."""


class Ending(NamedTuple):
    """A way to end a work, and how often it is tried."""

    work: Work
    disturb: Disturbance
    times: int
    on_a_small_disk: bool = False


def begin(work: Work, out: Path, before: Callable[[], object] = lambda: None) -> int:
    """Go on with the work in a process of its own, forked from this one; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        before()
        work.go(out)
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
    def disturb(work: Work, out: Path, rng: random.Random, seconds: float) -> int:
        child = begin(work, out)
        time.sleep(rng.uniform(0.02, seconds / 2))
        os.kill(child, number)
        return ended(child)

    return disturb


def by_failpoint(name: str, places: int) -> Disturbance:
    """Kill it where it comes past a failpoint, at one of the first so many times."""

    def disturb(work: Work, out: Path, rng: random.Random, seconds: float) -> int:
        fault = f"{name}@{rng.randint(1, places)}"
        return ended(begin(work, out, lambda: os.environ.update(SMALTI_FAULT=fault)))

    return disturb


def between_renames(work: Work, out: Path, rng: random.Random, seconds: float) -> int:
    """Kill it while it replaces its last checkpoint, on a disk that cannot exchange two names in one step.

    A run does so where that checkpoint is not whole: here its manifest is away, and comes back at the end.
    """
    while len(checkpoints(out)) < 2:  # the second of the folders that a checkpoint is: it and the tokenizer in it
        ended(begin(work, out, lambda: os.environ.update(SMALTI_FAULT="new_folder:after-rename@2")))
    last = checkpoints(out)[-1]
    hidden = (last / MANIFEST).rename(out.parent / MANIFEST)

    def before() -> None:
        files._exchange = lambda a, b: False  # what a network disk answers
        os.environ.update(SMALTI_FAULT="new_folder:between-renames")

    code = ended(begin(work, out, before))
    remove_leftovers(out)  # as the next one does that begins
    hidden.rename(last / MANIFEST)
    return code


def broken_pipe(work: Work, out: Path, rng: random.Random, seconds: float) -> int:
    """End the reader of its output at a random moment."""
    reader, writer = os.pipe()

    def redirect() -> None:
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)

    child = begin(work, out, redirect)
    os.close(writer)
    time.sleep(rng.uniform(0.02, seconds / 2))
    os.close(reader)
    return ended(child)


def full_disk(work: Work, out: Path, rng: random.Random, seconds: float) -> int:
    """Fill its disk up to a random rest at a random moment, and make room again when it has ended."""
    child, filler = begin(work, out), out.parent / "filler"
    time.sleep(rng.uniform(0.02, seconds / 2))
    status = os.statvfs(out.parent)
    rest = rng.randrange(64 << 10)
    with suppress(OSError):
        filler.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - rest)))
    code = ended(child)
    filler.unlink(missing_ok=True)
    return code


def train_on(out: Path) -> None:
    config = find("tiny", tiny=True).override(SETTINGS)
    train(config, out, resume=(out / "config.yaml").exists(), device="cpu", progress=tell)


def digests_of_run(out: Path) -> Mapping[str, str]:
    """The digest of every file of tensors in the last checkpoint."""
    last = checkpoints(out)[-1]
    return {str(path.relative_to(last)): sha256(path) for path in sorted(last.rglob("*.safetensors"))}


def faults_of_run(out: Path) -> Counter[str]:
    """Checkpoints that cannot be read, lines of the log in pieces."""
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
    steps = [row["step"] for row in read_rows(log, "step")]
    lines = len(log.read_text().splitlines()) if log.is_file() else 0
    found[TORN] += lines - len(steps) > 1  # the last line of a killed run may be cut, and is taken out on resumption
    found[TORN] += steps != sorted(set(steps))
    return found


def tokenize_on(out: Path) -> None:
    smalti.tokenize(TINY_IMAGE, photos("heldout"), out, size=32, set=["options.shard_files=3"], workers=0, device="cpu")


def digests_of_set(out: Path) -> Mapping[str, str]:
    """The digest of every file but the note about its making and what a dead writer left."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(out)): sha256(path) for path in paths if path.name not in ("made.json", PROVENANCE)}


def faults_of_set(out: Path) -> Counter[str]:
    """Plans, reports and shards that cannot be read."""
    found = Counter[str]()
    try:
        plan = load_plan(out)
        reports = [read_report(plan, shard) for shard in range(plan.shards)]
    except InputError:
        return found  # nothing was begun
    except SmaltiError:
        return Counter({UNREADABLE: 1})
    for report in reports:
        if report is not None:
            found[TORN] += sha256(plan.shard_path(report.shard)) != report.sha256
    return found


def compress_on(out: Path) -> None:
    smalti.compress(out.parent / "clip.mp4", out / "clip.smt", TINY_VIDEO, group=5, overwrite=True, device="cpu")


def digests_of_file(out: Path) -> Mapping[str, str]:
    return {path.name: sha256(path) for path in sorted(out.iterdir())}


def faults_of_file(out: Path) -> Counter[str]:
    try:
        for path in out.glob("*.smt"):
            with path.open("rb") as file:
                list(Reader(file, path.name).blocks())
    except SmaltiError:
        return Counter({UNREADABLE: 1})
    return Counter()


RUN = Work("train", train_on, digests_of_run, faults_of_run)
SET = Work("tokenize", tokenize_on, digests_of_set, faults_of_set)
FILE = Work("compress", compress_on, digests_of_file, faults_of_file)
FAILPOINTS = {
    "write_bytes:before-rename": {RUN: 20, SET: 10, FILE: 1},
    "new_folder:before-manifest": {RUN: 4},
    "new_folder:before-rename": {RUN: 4},
    "new_folder:after-rename": {RUN: 4},
    "write_shard:before-report": {SET: 3},
    "codec:after-block": {FILE: 3},
}
"""How often each work comes past each, about."""
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
ENDINGS: Mapping[str, Ending] = {
    "train SIGKILL": Ending(RUN, by_signal(signal.SIGKILL), 100),
    **{
        f"{work.name} failpoint {name}": Ending(work, by_failpoint(name, places), 10)
        for name, works in FAILPOINTS.items()
        for work, places in works.items()
    },
    "train failpoint new_folder:between-renames": Ending(RUN, between_renames, 10),
    **{f"train {name}": Ending(RUN, by_signal(getattr(signal, name)), 20) for name in SIGNALS},
    "train broken pipe": Ending(RUN, broken_pipe, 20),
    "train full disk": Ending(RUN, full_disk, 20, on_a_small_disk=True),
}


def survive(ending: Ending, times: int, folder: Path, quiet: Mapping[str, str], seconds: float) -> Counter[str]:
    """Disturb a work so many times, each until it ends, and count what went wrong."""
    work, disturb = ending.work, ending.disturb
    found, rng, number = Counter[str](disturbed=0, runs=0), random.Random(), 0
    while found["disturbed"] < times:
        number += 1
        if number > 20 + 2 * times:
            raise RuntimeError(f"{work.name} ended {number - 1} times before it could be disturbed")
        out, code = folder / f"run-{number}", -1
        for _ in range(200):
            code = disturb(work, out, rng, seconds)
            if code == 0:
                seconds = max(0.2, seconds * 0.8)  # it ended before: the machine is faster than it was
                break
            seconds *= 1.02
            found["disturbed"] += 1
            found += work.faults(out) if out.exists() else Counter()
            if found["disturbed"] >= times:
                break
        if code:
            code = ended(begin(work, out))
        elif disturb is broken_pipe:
            found["disturbed"] += 1
        found["runs"] += 1
        found[OTHER_END] += code != 0 or work.ends(out) != quiet
        subprocess.run(["rm", "-rf", str(out)], check=True)
    return found


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount 12 MB of memory in a folder, which needs the rights of root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def row_of(name: str, times: int) -> dict[str, object]:
    """Try an ending so many times, after an undisturbed work whose end is that of all."""
    ending = ENDINGS[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_video(folder / "clip.mp4", read_clip(sorted(videos("heldout").iterdir())[0], 12)[:, ::2, ::2], 24)
        began = time.monotonic()
        if ended(begin(ending.work, folder / "quiet")):
            raise RuntimeError(f"the undisturbed {ending.work.name} failed")
        seconds, quiet = time.monotonic() - began, ending.work.ends(folder / "quiet")
        with small_disk(folder / "small") if ending.on_a_small_disk else nullcontext():
            place = folder / "small" if ending.on_a_small_disk else folder
            found = survive(ending, times, place, quiet, seconds)
    row = {"ending": name, "times": found["disturbed"], "runs": found["runs"], **{what: found[what] for what in WRONG}}
    print(row, file=sys.stderr, flush=True)
    return row


NOTE = "works that were disturbed at random moments or at failpoints and begun again to their end, all at commit {}"


def commit() -> str:
    """The commit whose code runs here; RuntimeError where the code has been changed since."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    if git("status", "--porcelain", "--", "src", "benchmarks/*.py"):
        raise RuntimeError("the code has changes that are not committed: the figures would be of no commit")
    return git("rev-parse", "--short=10", "HEAD")


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    torch.set_num_threads(1)
    return NOTE.format(commit()), [row_of(name, ending.times) for name, ending in ENDINGS.items()]


def add(row: Mapping[str, object]) -> None:
    """Add a part to the row of its ending in results/survival.json, which holds rows of this commit only."""
    path, note = RESULTS / "survival.json", NOTE.format(commit())
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = {kept["ending"]: kept for kept in before.get("rows", []) if before["note"] == note}
    kept = rows.get(row["ending"], {})
    summed = {key: kept.get(key, 0) + value if isinstance(value, int) else value for key, value in row.items()}
    rows = {**rows, str(row["ending"]): summed}
    write("survival", [rows[name] for name in ENDINGS if name in rows], note=note)


def main(name: str, times: str = "") -> None:
    """Try the endings whose names contain a text, each so many times or as often as in a whole measurement."""
    chosen = [ending for ending in ENDINGS if name in ending]
    if not chosen:
        raise SystemExit(f"no ending is called {name}; there are: {', '.join(ENDINGS)}")
    torch.set_num_threads(1)
    for ending in chosen:
        add(row_of(ending, int(times) if times else ENDINGS[ending].times))


if __name__ == "__main__":
    main(*sys.argv[1:])
