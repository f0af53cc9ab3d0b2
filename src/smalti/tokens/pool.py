"""Shards on this machine: in this process, or in worker processes that may hang and die without harm.

No shard is claimed. Who finds it undone makes it, and a rename puts it in place; two that make the same one write the
same bytes, so a duplicate costs time and nothing else.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from smalti.errors import BadFile, ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.tokens.plan import Plan
from smalti.tokens.shard import is_done
from smalti.tokens.tokenize import WRITING
from smalti.tokens.worker import Job

TRIES = 3
"""How often an item may kill or hang its worker before it is left out."""

_POLL = 0.2
_START = 600.0
"""Seconds in which a worker must have loaded its tokenizer, or written a shard."""

_KINDS = {kind.exit_code: kind for kind in (ConfigError, InputError, IntegrityError, MachineError)}


class Limits(NamedTuple):
    """What the work may take on this machine; none of it changes what is written."""

    workers: int = 1
    """Processes. 0: work in this one, where a decoder that hangs or crashes takes the run with it."""
    timeout: float = 300.0
    """Seconds in which an item, or the next second or so of a video, must be done."""
    memory: int | None = None
    """Bytes that one worker may hold."""


class Seen(NamedTuple):
    """How far the work is."""

    shards: int
    """Done now or before, of those asked for."""
    items: int
    """In this run."""
    tokens: int
    bad: int


Watch = Callable[[Seen], None]


def pending(plan: Plan, part: tuple[int, int] = (0, 1)) -> list[int]:
    """The shards of part i of n that are not done, beginning at another one in every process, so that several commands
    on one set seldom make the same."""
    index, parts = part
    if not 0 <= index < parts:
        raise ConfigError(f"--shard {index}/{parts}: parts are numbered from 0 to {parts - 1}")
    left = [shard for shard in range(index, plan.shards, parts) if not is_done(plan, shard)]
    turn = os.getpid() * 7919 % max(1, len(left)) if parts == 1 else 0
    return left[turn:] + left[:turn]


def work(plan: Plan, job: Job, shards: Sequence[int], limits: Limits, watch: Watch | None = None) -> None:
    """Make these shards. An item that kills or hangs its worker `TRIES` times is left out and named in the report.

    Raises what stops the whole work: IntegrityError for another tokenizer than the plan's, MachineError for a full
    disk or workers that cannot start, ConfigError.
    """
    tell = watch or (lambda seen: None)
    if limits.workers == 0:
        _work_here(plan, job, shards, tell)
    else:
        _Pool(plan, job, shards, limits, tell).run()


def _work_here(plan: Plan, job: Job, shards: Sequence[int], tell: Watch) -> None:
    from smalti.tokenizer import load
    from smalti.tokens.tokenize import make_shard

    tokenizer = load(job.tokenizer, job.device)
    plan.about.check(tokenizer.info, plan.folder)
    seen = Seen(0, 0, 0, 0)
    for shard in shards:
        before, items = seen, 0

        def watch(item: int, tokens: int, before: Seen = before) -> None:
            nonlocal items
            items = max(items, item)
            tell(before._replace(items=before.items + items, tokens=before.tokens + tokens))

        if not is_done(plan, shard):
            report = make_shard(plan, shard, Path(job.root), tokenizer, watch=watch)
            counts = before.items + report.listed, before.tokens + report.tokens, before.bad + len(report.bad)
            seen = Seen(before.shards, *counts)
        seen = seen._replace(shards=seen.shards + 1)
        tell(seen)


class _Worker:
    """One child process and what it is doing."""

    def __init__(self, job: Job) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smalti.tokens.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ready = False
        self.shard: int | None = None
        self.item: int | None = None
        """The item that it has said it touches."""
        self.tokens = 0
        self.since = time.monotonic()
        self._rest = b""
        self.send(job._asdict())

    @property
    def output(self) -> IO[bytes]:
        """Where its answers come from."""
        assert self.process.stdout is not None
        return self.process.stdout

    def send(self, order: Mapping[str, Any]) -> None:
        """Give it a line; one that is dead will be found out by its silence."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def answers(self) -> Iterator[dict[str, Any]] | None:
        """The lines that have come; None where it has ended."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            return None
        self.since = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return (json.loads(line) for line in lines)

    def bytes(self) -> int:
        """The memory that it holds; 0 where the system does not say."""
        with suppress(OSError, ValueError, IndexError):
            pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        return 0

    def end(self) -> int:
        """Kill it if it lives; how it ended."""
        self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return code


class _Pool:
    """Hands out shards, and finds out which item is to blame for a worker's end."""

    def __init__(self, plan: Plan, job: Job, shards: Sequence[int], limits: Limits, tell: Watch) -> None:
        self.plan, self.job, self.limits, self.tell = plan, job, limits, tell
        self.left = deque(shards)
        self.probes = deque[tuple[int, int]]()
        self.avoid: dict[int, dict[int, BadFile]] = {}
        self.deaths: Counter[tuple[int, int | None]] = Counter()
        self.workers: list[_Worker] = []
        self.seen = Seen(0, 0, 0, 0)
        self.select = selectors.DefaultSelector()

    def run(self) -> None:
        """Work until every shard is done, or raise what stops it all."""
        try:
            while self.left or self.probes or any(worker.shard is not None for worker in self.workers):
                self._engage()
                for key, _ in self.select.select(_POLL):
                    self._listen(key.data)
                for worker in list(self.workers):
                    self._check(worker)
                self._report()
        finally:
            for worker in self.workers:
                worker.end()
            self.select.close()

    def _engage(self) -> None:
        busy = sum(worker.shard is not None for worker in self.workers)
        wanted = min(self.limits.workers, busy + len(self.left) + len(self.probes))
        while len(self.workers) < wanted:
            worker = _Worker(self.job._replace(device=_spread(self.job.device, len(self.workers))))
            self.workers.append(worker)
            self.select.register(worker.output, selectors.EVENT_READ, worker)
        for worker in self.workers:
            if worker.ready and worker.shard is None:
                self._order(worker)

    def _order(self, worker: _Worker) -> None:
        worker.item, worker.tokens, worker.since = None, 0, time.monotonic()
        if self.probes:
            worker.shard, number = self.probes.popleft()
            worker.send({"shard": worker.shard, "probe": number})
            return
        while self.left:
            shard = self.left.popleft()
            if is_done(self.plan, shard):  # by another command
                self.seen = self.seen._replace(shards=self.seen.shards + 1)
                continue
            worker.shard = shard
            faults = self.avoid.get(shard, {}).items()
            worker.send({"shard": shard, "avoid": {n: (b.path, b.code, b.message) for n, b in faults}})
            return

    def _listen(self, worker: _Worker) -> None:
        answers = worker.answers()
        if answers is None:
            self._died(worker, None)
            return
        for answer in answers:
            if "fault" in answer:
                raise _KINDS.get(answer["code"], SmaltiError)(answer["fault"])
            if "ready" in answer:
                worker.ready = True
                del self.deaths[-1, None]
            elif "item" in answer:
                worker.item, worker.tokens = answer["item"], answer["tokens"]
            elif "probed" in answer:
                assert worker.shard is not None
                self.left.appendleft(worker.shard)
                worker.shard = worker.item = None
            elif "done" in answer:
                worker.shard = worker.item = None
                worker.tokens = 0
                old = self.seen
                counts = old.items + answer["listed"], old.tokens + answer["tokens"], old.bad + answer["bad"]
                self.seen = Seen(old.shards + 1, *counts)

    def _check(self, worker: _Worker) -> None:
        if worker.ready and worker.shard is None:
            return
        limit = self.limits.timeout if worker.item not in (None, WRITING) else max(_START, self.limits.timeout)
        if time.monotonic() - worker.since > limit:
            self._died(worker, ("hang", f"did not answer for {limit:g} s"))
        elif self.limits.memory is not None and worker.bytes() > self.limits.memory:
            self._died(worker, ("memory", f"took more than {self.limits.memory / 1e6:,.0f} MB of memory"))

    def _died(self, worker: _Worker, reason: tuple[str, str] | None) -> None:
        """Replace a worker; suspect the item that it had in hand, and try that one alone before it is left out."""
        self.select.unregister(worker.output)
        code = worker.end()
        self.workers.remove(worker)
        kind, what = reason or ("crash", f"died ({_told(code)})")
        shard, item = worker.shard, worker.item
        place = (-1 if shard is None else shard, item)
        self.deaths[place] += 1
        blamed = item is not None and item != WRITING
        if self.deaths[place] < TRIES:
            if blamed:
                assert shard is not None
                assert item is not None
                self.probes.append((shard, item))
            elif shard is not None:
                self.left.appendleft(shard)
            return
        if not blamed:
            where = "before its first file" if item is None else "while it wrote a shard"
            raise MachineError(f"{self.plan.folder}: a worker {what} {where}, {TRIES} times; see what it printed")
        assert shard is not None
        assert item is not None
        fault = BadFile("item", kind, f"its reader {what}, {TRIES} times")
        self.avoid.setdefault(shard, {})[item] = fault
        self.left.appendleft(shard)

    def _report(self) -> None:
        items = sum((worker.item or 0) for worker in self.workers if worker.item != WRITING)
        tokens = sum(worker.tokens for worker in self.workers)
        self.tell(self.seen._replace(items=self.seen.items + items, tokens=self.seen.tokens + tokens))


def _spread(device: str, number: int) -> str:
    """Workers take the GPUs of a machine in turn."""
    if device in ("cpu", "mps") or ":" in device:
        return device
    import torch

    return f"{device}:{number % max(1, torch.accelerator.device_count())}"


def _told(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name
