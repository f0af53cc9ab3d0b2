"""Shards made by worker processes on this machine, which may hang and die without harm.

No shard is claimed. Whoever finds that one is missing makes it, and a rename puts it in place; two that make the same
one write the same bytes, so a duplicate costs time and nothing else.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from smalti.errors import BadFile, ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.tokens.plan import Plan, WorkerConfig
from smalti.tokens.shard import is_done
from smalti.tokens.tokenize import NOTHING_DONE, WRITING, OnWork, WorkProgress

TRIES = 3
"""How often an item may kill or hang its worker before it is left out."""

_POLL = 0.2
_START = 600.0
"""Seconds in which a worker must have loaded its tokenizer, or written a shard."""

_KINDS = {kind.exit_code: kind for kind in (ConfigError, InputError, IntegrityError, MachineError)}


class PoolLimits(NamedTuple):
    """Resources that the work may take on this machine; none of them changes what is written."""

    workers: int = 1
    """Number of processes."""
    timeout: float = 300.0
    """Seconds in which an item, or the next second or so of a video, must be done."""
    memory: int | None = None
    """Bytes that one worker may hold."""


def run_pool(
    plan: Plan, config: WorkerConfig, shards: Sequence[int], limits: PoolLimits, on_work: OnWork | None = None
) -> None:
    """Make these shards. An item that kills or hangs its worker `TRIES` times is left out and named in the report.

    Raises what stops the whole work: IntegrityError for another tokenizer than the plan's, MachineError for a full
    disk or workers that cannot start, ConfigError.
    """
    if limits.workers < 1:
        raise ConfigError(f"`workers` {limits.workers}: a pool needs at least 1; 0 is for `make_shards`")
    _Pool(plan, config, shards, limits, on_work or (lambda progress: None)).run()


class _Worker:
    """One worker process and what it is doing."""

    def __init__(self, config: WorkerConfig) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smalti.tokens.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ready = False
        self.shard: int | None = None
        self.item: int | None = None
        """The item that it is about to touch, as it said."""
        self.tokens = 0
        self.since = time.monotonic()
        self._rest = b""
        self.send(config._asdict())

    @property
    def output(self) -> IO[bytes]:
        """The pipe of its answers."""
        assert self.process.stdout is not None
        return self.process.stdout

    def send(self, order: Mapping[str, Any]) -> None:
        """Give it a line; one that is dead is recognised by its silence."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def answers(self) -> Iterator[dict[str, Any]] | None:
        """Return the lines that have arrived; None where it has ended."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            return None
        self.since = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return (json.loads(line) for line in lines)

    def bytes(self) -> int:
        """Return the memory that it holds; 0 where the system does not say."""
        with suppress(OSError, ValueError, IndexError):
            pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        return 0

    def end(self) -> int:
        """Kill it if it lives, and return its exit code."""
        self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return code


class _Pool:
    """Hands out shards, and finds out which item is to blame when a worker dies."""

    def __init__(
        self, plan: Plan, config: WorkerConfig, shards: Sequence[int], limits: PoolLimits, on_work: OnWork
    ) -> None:
        self.plan, self.config, self.limits, self.on_work = plan, config, limits, on_work
        self.shards = deque(shards)
        self.probes = deque[tuple[int, int]]()
        self.skip: dict[int, dict[int, BadFile]] = {}
        self.deaths: Counter[tuple[int, int | None]] = Counter()
        self.workers: list[_Worker] = []
        self.progress = NOTHING_DONE
        self.select = selectors.DefaultSelector()

    def run(self) -> None:
        """Work until every shard is done. Raises what stops it all."""
        try:
            while self.shards or self.probes or any(worker.shard is not None for worker in self.workers):
                self._start_workers()
                for key, _ in self.select.select(_POLL):
                    self._read_answers(key.data)
                for worker in list(self.workers):
                    self._check_limits(worker)
                self._report()
        finally:
            for worker in self.workers:
                worker.end()
            self.select.close()

    def _start_workers(self) -> None:
        busy = sum(worker.shard is not None for worker in self.workers)
        needed = min(self.limits.workers, busy + len(self.shards) + len(self.probes))
        while len(self.workers) < needed:
            worker = _Worker(self.config._replace(device=_spread(self.config.device, len(self.workers))))
            self.workers.append(worker)
            self.select.register(worker.output, selectors.EVENT_READ, worker)
        for worker in self.workers:
            if worker.ready and worker.shard is None:
                self._send_order(worker)

    def _send_order(self, worker: _Worker) -> None:
        worker.item, worker.tokens, worker.since = None, 0, time.monotonic()
        if self.probes:
            worker.shard, number = self.probes.popleft()
            worker.send({"shard": worker.shard, "probe": number})
            return
        while self.shards:
            shard = self.shards.popleft()
            if is_done(self.plan, shard):  # by another command
                self.progress = self.progress._replace(shards=self.progress.shards + 1)
                continue
            worker.shard = shard
            faults = self.skip.get(shard, {}).items()
            worker.send({"shard": shard, "skip": {n: (b.path, b.code, b.message) for n, b in faults}})
            return

    def _read_answers(self, worker: _Worker) -> None:
        answers = worker.answers()
        if answers is None:
            self._replace_dead(worker, None)
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
                self.shards.appendleft(worker.shard)
                worker.shard = worker.item = None
            elif "done" in answer:
                worker.shard = worker.item = None
                worker.tokens = 0
                old = self.progress
                counts = old.items + answer["listed"], old.tokens + answer["tokens"], old.bad + answer["bad"]
                self.progress = WorkProgress(old.shards + 1, *counts)

    def _check_limits(self, worker: _Worker) -> None:
        if worker.ready and worker.shard is None:
            return
        limit = self.limits.timeout if worker.item not in (None, WRITING) else max(_START, self.limits.timeout)
        if time.monotonic() - worker.since > limit:
            self._replace_dead(worker, ("hang", f"did not answer for {limit:g} s"))
        elif self.limits.memory is not None and worker.bytes() > self.limits.memory:
            self._replace_dead(worker, ("memory", f"took more than {self.limits.memory / 1e6:,.0f} MB of memory"))

    def _replace_dead(self, worker: _Worker, reason: tuple[str, str] | None) -> None:
        """Replace a worker; suspect the item that it had in hand, and try that one alone before it is left out."""
        self.select.unregister(worker.output)
        code = worker.end()
        self.workers.remove(worker)
        kind, what = reason or ("crash", f"died ({_exit_reason(code)})")
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
                self.shards.appendleft(shard)
            return
        if not blamed:
            where = "before its first file" if item is None else "while it wrote a shard"
            raise MachineError(f"{self.plan.folder}: a worker {what} {where}, {TRIES} times; see what it printed")
        assert shard is not None
        assert item is not None
        fault = BadFile("item", kind, f"its reader {what}, {TRIES} times")
        self.skip.setdefault(shard, {})[item] = fault
        self.shards.appendleft(shard)

    def _report(self) -> None:
        items = sum((worker.item or 0) for worker in self.workers if worker.item != WRITING)
        tokens = sum(worker.tokens for worker in self.workers)
        self.on_work(self.progress._replace(items=self.progress.items + items, tokens=self.progress.tokens + tokens))


def _spread(device: str, number: int) -> str:
    """Return the device of worker `number`: workers take the GPUs of a machine in turn."""
    if device in ("cpu", "mps") or ":" in device:
        return device
    return f"{device}:{number % max(1, torch.accelerator.device_count())}"


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name
