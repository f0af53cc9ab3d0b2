"""Shards on a Ray cluster: one task a shard, over the same plan, the same workers and the same files.

A task that is lost with its process or its machine is run again by Ray; a file that kills or hangs a worker is found
by the task itself, which does its work in a process of its own. Nothing goes through Ray's object store but counts.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smalti.errors import MachineError, SmaltiError
from smalti.tokens.plan import Plan, load_plan
from smalti.tokens.pool import Limits, Seen, Watch, work
from smalti.tokens.worker import Job

_RETRIES = 5
"""How often Ray runs a task again whose process or machine went away."""
_AHEAD = 2
"""Tasks that are handed out for every CPU of the cluster, so that Ray need not hold a million."""
_SILENCE = 3600.0
"""Seconds without any shard after which the cluster counts as stuck; a shard may take longer where its items do."""


class RayLimits(NamedTuple):
    """What a task asks of the cluster; none of it changes what is written."""

    gpus: float = 0.0
    """GPUs of one task; a fraction lets several share one."""
    timeout: float = 300.0
    """As in `Limits`."""
    memory: int | None = None
    """As in `Limits`."""
    address: str | None = None
    """Of the cluster; None takes what the environment says (RAY_ADDRESS), or starts one on this machine. One that
    happens to run here is not joined unasked."""
    silence: float = _SILENCE


def work_on_ray(plan: Plan, job: Job, shards: Sequence[int], limits: RayLimits, watch: Watch | None = None) -> None:
    """Make these shards on a cluster whose machines all see the set, the inputs and the tokenizer under the same paths.

    Raises what stops the whole work, as `work` does, and MachineError where Ray is not installed or gives up.
    """
    try:
        import ray
    except ImportError:
        raise MachineError("--engine ray needs Ray, which is not installed: pip install 'smalti[ray]'") from None
    tell = watch or (lambda seen: None)
    ours = not ray.is_initialized()
    if ours:
        address = limits.address or os.environ.get("RAY_ADDRESS", "local")
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        _run(ray, plan, job, shards, limits, tell)
    finally:
        if ours:
            ray.shutdown()


def _run(ray: Any, plan: Plan, job: Job, shards: Sequence[int], limits: RayLimits, tell: Watch) -> None:
    task = ray.remote(max_retries=_RETRIES, num_gpus=limits.gpus)(make_one)
    waiting, running, seen = list(shards)[::-1], dict[Any, int](), Seen(0, 0, 0, 0)
    last, failed = time.monotonic(), dict[int, str]()
    while waiting or running:
        most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < most:
            shard = waiting.pop()
            running[task.remote(job._asdict(), shard, limits._replace(address=None)._asdict())] = shard
        done, _ = ray.wait(list(running), timeout=1.0)
        for reference in done:
            shard, last = running.pop(reference), time.monotonic()
            try:
                counts = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, SmaltiError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                failed[shard] = type(error).__name__
                continue
            seen = Seen(seen.shards + 1, *(old + new for old, new in zip(seen[1:], counts, strict=True)))
            tell(seen)
        if time.monotonic() - last > limits.silence:
            shown = ", ".join(map(str, sorted(running.values())[:5]))
            raise MachineError(
                f"{plan.folder}: no shard in {limits.silence:g} s; Ray still has {shown}; see ray status"
            )
    if failed:
        shard, kind = min(failed.items())
        told = f"Ray gave up {len(failed)} shards after {_RETRIES} retries each, the first: {shard} ({kind})"
        raise MachineError(f"{plan.folder}: {told}; the rest is done, run again")


def make_one(job: dict[str, str], shard: int, limits: dict[str, Any]) -> tuple[int, int, int]:
    """The task: one shard by a worker of its own; (items, tokens, bad)."""
    own = RayLimits(**limits)
    last = Seen(0, 0, 0, 0)

    def watch(seen: Seen) -> None:
        nonlocal last
        last = seen

    given = Job(**job)
    work(load_plan(Path(given.folder)), given, [shard], Limits(1, own.timeout, own.memory), watch)
    return last.items, last.tokens, last.bad
