"""From sources to batches: the same samples at the same step for any number of workers, ranks and restarts.

Two sources, of images and of videos, are `Joint`: each batch is of one kind, and the step alone decides which. One
source in several sizes is `Views`: each batch is of one size.
"""

import json
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smalti.data.mixture import Joint, Views, even_batches
from smalti.data.source import Order, Source, memory_as_bad_file, sample_rng
from smalti.devices import send
from smalti.errors import BadFile, ConfigError, InputError
from smalti.files import naming_os_errors
from smalti.video import to_video

OnBad = Callable[[BadFile], None]
_T = TypeVar("_T")


class Batch(NamedTuple):
    """Samples of one step, without those of bad files, so `b` may be smaller than the batch size, and 0."""

    pixels: Tensor
    """uint8 `b t h w 3`; `0 0 0 0 3` if every row is bad."""
    keys: tuple[str, ...]
    """Names of the samples in the source."""
    step: int
    labels: tuple[int | None, ...]
    """Classes; None where the source has none."""
    places: tuple[int, ...]
    """Place of each row in the global batch (in `evaluation`: in the source), counted with the bad ones."""
    listed: int
    """Rows of the global batch (in `evaluation`: of the source), over all ranks and with the bad ones."""

    @property
    def video(self) -> Tensor:
        """Float `b 3 t h w` in [-1, 1], made anew on the device of the pixels; `0 3 0 0 0` if every row is bad."""
        return to_video(self.pixels) if len(self.pixels) else self.pixels.new_empty(0, 3, 0, 0, 0, dtype=torch.float32)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its pixels on a device, as bytes; the program does not wait for a CUDA device."""
        return self._replace(pixels=send(self.pixels, device))


class _Row(NamedTuple):
    """A sample of a batch."""

    part: int
    """Index of its source: 0, or 1 for the videos of a `Joint`; or that of its view."""
    epoch: int
    sample: int


class _Loaded(NamedTuple):
    """A batch as a worker sends it: pixels of the good rows, stacked, and the faults of the others."""

    pixels: Tensor | None
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]
    rows: tuple[int, ...]
    """Numbers of the good rows among all of them."""
    bad: tuple[BadFile, ...]
    fault: InputError | None
    """Reason why the rows cannot be stacked."""


def batches(
    source: Source | Joint | Views,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    on_bad: OnBad | None = None,
    timeout: int | float = 120.0,
) -> Iterator[Batch]:
    """Yield batches of an endless shuffled run, from `start_step` on.

    The GLOBAL batch of step n is positions n B ... n B + B - 1 of `Order`; of these, `part` (r, W) takes r, r + W, ....
    So order and augmentation are a pure function of (seed, epoch, index), and restarts, workers and ranks change
    nothing. A `Joint` source gives whole batches of one kind, and `Views` of one view: `batch_size` is then that of
    clips, and of the first view.

    A bad file goes to `on_bad` and its row is dropped; nothing takes its place. If all rows are bad, the batch has
    none, so that every rank has a batch for each step. With workers, a file that kills its reader three times, or takes
    longer than `timeout` seconds twice (0: no limit), is a bad file (crash, hang) from then on; without, it takes this
    process with it. Raises InputError where rows differ in size, ConfigError where there are more ranks than rows.
    """
    rank, world = part
    for size in even_batches(batch_size, source.pixels) if isinstance(source, Views) else (batch_size,):
        check_part(part, size)
    rows_of = _planner(source, seed, batch_size)
    listed: deque[int] = deque()  # what is planned and not yet loaded

    def plan() -> Iterator[list[_Row]]:
        for step in count(start_step):
            rows = rows_of(step)
            listed.append(len(rows))
            yield rows[rank::world]

    loaded = _load(_Reader(_parts(source), seed, workers), plan(), workers, timeout, on_bad)
    for step, rows in zip(count(start_step), loaded, strict=False):
        pixels = torch.empty(0, 0, 0, 0, 3, dtype=torch.uint8) if rows.pixels is None else rows.pixels
        places = tuple(rank + world * row for row in rows.rows)
        yield Batch(pixels, rows.keys, step, rows.labels, places, listed.popleft())


def evaluation(
    source: Source,
    *,
    batch_size: int = 1,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    on_bad: OnBad | None = None,
    timeout: int | float = 120.0,
) -> Iterator[Batch]:
    """Yield every sample once, in the order of the source, for evaluation; `step` counts batches.

    `part` (r, W) takes samples r, r + W, .... Bad files go to `on_bad` and are dropped; a batch of bad files alone is
    skipped, so that `ok + bad = listed`. Random crops are the same at every call. Batches of more than one need
    samples of one size. Raises as `batches` does, and InputError at the end where every file was bad (not for a part
    of several: another may have good ones).
    """
    rank, world = part
    mine = range(rank, len(source), world)
    plan = [[_Row(0, 0, i) for i in mine[at : at + batch_size]] for at in range(0, len(mine), batch_size)]
    good, last = 0, None
    for step, rows in enumerate(_load(_Reader((source,), 0, workers), plan, workers, timeout, on_bad)):
        last = rows.bad[-1] if rows.bad else last
        if rows.pixels is not None:
            good += len(rows.keys)
            places = tuple(mine[step * batch_size + row] for row in rows.rows)
            yield Batch(rows.pixels, rows.keys, step, rows.labels, places, len(source))
    if last is not None and not good and world == 1:
        raise InputError(f"all {len(mine)} files are bad, the last: {last}")


class BadFileLog:
    """A callback for `on_bad` that writes each bad file once to `bad_files.jsonl`, and counts the kinds of fault.

    A row is {path, code, message, bytes}. An existing log is continued, so that a resumed run counts
    each file once. Raises MachineError where the disk refuses.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        """Number of files with each code."""
        self._noted: set[tuple[str, str]] = set()
        if path is not None and path.exists():
            with naming_os_errors(path):
                lines = path.read_text(encoding="utf-8").splitlines()
            for line in lines:
                try:
                    row = json.loads(line)
                    self._note(row["path"], row["code"])
                except (ValueError, KeyError, TypeError):
                    continue  # the last row of a killed run may be cut

    def __call__(self, bad: BadFile) -> None:
        """Record a bad file, unless it has been."""
        if not self._note(bad.path, bad.code) or self.path is None:
            return
        row = {**bad.plain(), "bytes": _bytes(bad.path)}
        with naming_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @property
    def total(self) -> int:
        """Return the number of bad files."""
        return self.counts.total()

    def summary(self) -> str:
        """Return one line, as `3 bad files: 2 truncated, 1 empty`; empty where there are none."""
        kinds = ", ".join(f"{n} {code}" for code, n in self.counts.most_common())
        return f"{self.total} bad files: {kinds}" if self.total else ""

    def _note(self, path: str, code: str) -> bool:
        if (path, code) in self._noted:
            return False
        self._noted.add((path, code))
        self.counts[code] += 1
        return True


def check_part(part: tuple[int, int], batch_size: int) -> tuple[int, int]:
    """Return `part`, a (rank, number of ranks). Raises ConfigError where a rank would get no row of a batch."""
    rank, world = part
    if not 0 <= rank < world <= batch_size:
        what = f"ranks count from 0, and each needs a row: give batch_size of {world} or more"
        raise ConfigError(f"rank {rank} of {world} in batches of {batch_size}: {what}")
    return part


class ReaderFault(InputError):
    """Processes of a loader that died, or that were killed because they took too long."""

    def __init__(self, message: str, code: Literal["crash", "hang"], pids: Sequence[int]) -> None:
        super().__init__(message)
        self.code, self.pids = code, tuple(pids)


def planned_loader(
    dataset: Dataset[_T],
    plan: Iterable[Any],
    workers: int = 0,
    *,
    reading: Callable[[], str],
    late: Callable[[], Sequence[int]] = tuple,
) -> Iterator[_T]:
    """Load `dataset[item]` for each item of `plan`, in its order: in `workers` processes, or in this one if 0.

    An item stands for a whole batch, so `dataset` stacks its samples itself. The global random generator is not used.
    With workers, raises ReaderFault where one of them dies, or where `late` (asked each second that no item comes)
    gives the numbers of processes that take too long; all of them are killed then. `reading` names what is being read.
    """
    if workers == 0:
        return (dataset[item] for item in plan)
    loader: DataLoader[_T] = DataLoader(
        dataset,
        sampler=cast(Any, plan),
        batch_size=None,  # an item of the plan is a whole batch already
        num_workers=workers,
        collate_fn=cast(Any, _unchanged),
        timeout=_TICK,
        generator=torch.Generator().manual_seed(0),  # its own, so that the global generator is not used
    )
    return _watched(loader, reading, late)


_TICK = 1.0
"""Seconds after which a loader that waits for a batch looks whether its processes live."""


def _watched(loader: DataLoader[_T], reading: Callable[[], str], late: Callable[[], Sequence[int]]) -> Iterator[_T]:
    with _keeping_child_handler():
        iterator = iter(loader)
    # Not by `active_children`, which leaves out a process that has died before it is asked for the first time.
    processes: Sequence[BaseProcess] = cast(Any, iterator)._workers
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:  # not of the data: those are of a class of their own
            waited = str(error).startswith("DataLoader timed out")
            if not waited:
                time.sleep(0.1)  # what a dead process had sent is gone a moment before the process is
            dead = [process.pid or 0 for process in processes if not process.is_alive() and process.exitcode]
            slow = late() if waited and not dead else ()
            if waited and not dead and not slow:
                continue
            if not dead and not slow:
                raise
            code: Literal["crash", "hang"] = "crash" if dead else "hang"
            what = f"a reader {'died' if dead else 'hangs'} while reading {reading()}; take it out"
            for process in processes:
                process.kill()  # one that hangs in a decoder hears no other signal
            raise ReaderFault(what, code, dead or slow) from None
        yield item


@contextmanager
def _keeping_child_handler() -> Iterator[None]:
    """Keep torch's handler of SIGCHLD out: it raises wherever the program is just then, as in the middle of a step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:  # set from C
            signal.signal(signal.SIGCHLD, before)


def _unchanged(batch: _T) -> _T:
    return batch


def _parts(source: Source | Joint | Views) -> tuple[Source, ...]:
    if isinstance(source, Views):
        return source.views
    return (source.images, source.videos) if isinstance(source, Joint) else (source,)


def _planner(source: Source | Joint | Views, seed: int, batch_size: int) -> Callable[[int], list[_Row]]:
    """Return the function from a step to the rows of its global batch."""
    if isinstance(source, Views):
        rows_of = source.plan(seed, batch_size)
        return lambda step: [_Row(*row) for row in rows_of(step)]
    orders = [Order(len(part), seed) for part in _parts(source)]

    def rows(step: int) -> list[_Row]:
        part, nth, size = 0, step, batch_size
        if isinstance(source, Joint):
            kind, nth = source.turn(step, seed)
            part = ("images", "videos").index(kind)
            size = batch_size * source.images_per_clip if kind == "images" else batch_size
        return [_Row(part, *orders[part](nth * size + i)) for i in range(size)]

    return rows


class _Reader(Dataset[_Loaded]):
    """Load the rows of a batch, in the workers or in this process."""

    def __init__(self, parts: Sequence[Source], seed: int, workers: int) -> None:
        self.parts = parts
        self.seed = seed
        self.reading = torch.full((max(1, workers), 4), -1).share_memory_()
        """(part, index, process, second of its start) of the file that each worker is reading; -1 for none."""
        self.faults: Counter[tuple[int, int, str]] = Counter()
        """How often (part, index) killed its reader, or took too long."""

    def __getitem__(self, rows: list[_Row]) -> _Loaded:
        worker = torch.utils.data.get_worker_info()
        mine = self.reading[worker.id if worker else 0]
        clips, keys, labels, good, bad = [], [], [], [], []
        for number, row in enumerate(rows):
            source = self.parts[row.part]
            mine.copy_(torch.tensor([row.part, row.sample, os.getpid(), int(time.monotonic())]))
            try:
                self._refuse(row.part, row.sample)
                with memory_as_bad_file(source.key(row.sample)):
                    clips.append(source.load(row.sample, sample_rng(self.seed, row.epoch, row.sample)))
                keys.append(source.key(row.sample))
                labels.append(source.label(row.sample))
                good.append(number)
            except BadFile as error:
                bad.append(error.bare())
        mine.fill_(-1)
        fault = _mismatch(clips, keys)
        pixels = torch.stack(clips) if clips and fault is None else None
        return _Loaded(pixels, tuple(keys), tuple(labels), tuple(good), tuple(bad), fault)

    def names(self) -> str:
        """Return the names of the files that are being read."""
        return (
            ", ".join(self.parts[part].key(index) for part, index, *_ in self.reading.tolist() if part >= 0)
            or "no file"
        )

    def late(self, seconds: int | float) -> list[int]:
        """Return the processes that have read one file for longer than that; none if 0."""
        now = time.monotonic()
        rows = [row for row in self.reading.tolist() if row[0] >= 0]
        return [pid for _, _, pid, began in rows if seconds and now - began > seconds]

    def note(self, fault: ReaderFault) -> bool:
        """Count a fault of the files that its processes were reading; return whether there were any."""
        files = [(part, index) for part, index, pid, _ in self.reading.tolist() if part >= 0 and pid in fault.pids]
        self.faults.update((part, index, fault.code) for part, index in files)
        self.reading.fill_(-1)
        return bool(files)

    def _refuse(self, part: int, index: int) -> None:
        for code, (times, what) in _FAULTS.items():
            if self.faults[part, index, code] >= times:
                raise BadFile(self.parts[part].key(index), code, what)


_FAULTS = {
    "crash": (3, "killed the process that read it three times; take it out"),
    "hang": (2, "was read for too long twice; take it out"),
}
"""How often each fault may happen, less one: a process may be killed, and a disk stall, for reasons of their own."""


def _mismatch(clips: list[Tensor], keys: list[str]) -> InputError | None:
    odd = next((i for i, clip in enumerate(clips) if clip.shape != clips[0].shape), None)
    if odd is None:
        return None
    first, other = (" x ".join(map(str, clips[i].shape[:3])) for i in (0, odd))
    return InputError(f"{keys[0]} is {first} (t, h, w), {keys[odd]} is {other}: set `size`, or take batches of 1")


def _load(
    reader: _Reader, plan: Iterable[list[_Row]], workers: int, timeout: int | float, on_bad: OnBad | None
) -> Iterator[_Loaded]:
    ahead: deque[list[_Row]] = deque()  # what workers were given, and not yielded yet
    rest = iter(plan)

    def noted() -> Iterator[list[_Row]]:
        for rows in rest:
            ahead.append(rows)
            yield rows

    going = True
    while going:
        again = list(ahead)
        loader = planned_loader(
            reader, chain(again, noted()), workers, reading=reader.names, late=lambda: reader.late(timeout)
        )
        going = False
        try:
            for loaded in loader:
                ahead.popleft()
                if loaded.fault is not None:
                    raise loaded.fault
                for bad in loaded.bad:
                    if on_bad:
                        on_bad(bad)
                yield loaded
        except ReaderFault as fault:
            if not reader.note(fault):
                raise
            going = True


def _bytes(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return None
