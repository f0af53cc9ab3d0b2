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
from smalti.tokens.plan import Plan, WorkerConfig, load_plan
from smalti.tokens.pool import PoolLimits, run_pool
from smalti.tokens.tokenize import NOTHING_DONE, OnWork, WorkProgress

_RETRIES = 5
"""How often Ray runs a task again whose process or machine went away."""
_AHEAD = 2
"""Tasks that are handed out for every CPU of the cluster, so that Ray need not hold a million."""
_SILENCE = 3600.0
"""Long, for a shard takes as long as its items do."""


class RayLimits(NamedTuple):
    """Resources that a task takes on the cluster; none of them changes what is written."""

    gpus: float = 0.0
    """GPUs of one task; a fraction lets several share one."""
    timeout: float = 300.0
    """Seconds for an item, as in `PoolLimits`."""
    memory: int | None = None
    """Bytes that one worker may hold, as in `PoolLimits`."""
    address: str | None = None
    """Address of the cluster; None takes RAY_ADDRESS of the environment, or else starts one on this machine. One that
    happens to run here is not joined unless it is named."""
    silence: float = _SILENCE
    """Seconds without any finished shard after which the cluster counts as stuck."""


def run_on_ray(
    plan: Plan, config: WorkerConfig, shards: Sequence[int], limits: RayLimits, on_work: OnWork | None = None
) -> None:
    """Make these shards on a cluster whose machines all see the set, the inputs and the tokenizer under the same paths.

    Raises what stops the whole work, as `run_pool` does, and MachineError where Ray is not installed or gives up.
    """
    try:
        import ray
    except ImportError:
        raise MachineError("`engine` ray needs Ray, which is not installed: pip install 'smalti[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        address = limits.address or os.environ.get("RAY_ADDRESS", "local")
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        _run(ray, plan, config, shards, limits, on_work or (lambda progress: None))
    finally:
        if ours:
            ray.shutdown()


def _run(ray: Any, plan: Plan, config: WorkerConfig, shards: Sequence[int], limits: RayLimits, on_work: OnWork) -> None:
    task = ray.remote(max_retries=_RETRIES, num_gpus=limits.gpus)(make_one)
    waiting, running, progress = list(shards)[::-1], dict[Any, int](), NOTHING_DONE
    last, failed = time.monotonic(), dict[int, str]()
    while waiting or running:
        most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < most:
            shard = waiting.pop()
            running[task.remote(config._asdict(), shard, limits._replace(address=None)._asdict())] = shard
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
            totals = (old + new for old, new in zip(progress[1:], counts, strict=True))
            progress = WorkProgress(progress.shards + 1, *totals)
            on_work(progress)
        if time.monotonic() - last > limits.silence:
            shown = ", ".join(map(str, sorted(running.values())[:5]))
            raise MachineError(
                f"{plan.folder}: no shard in {limits.silence:g} s; Ray still has {shown}; see ray status"
            )
    if failed:
        shard, kind = min(failed.items())
        what = f"Ray gave up {len(failed)} shards after {_RETRIES} retries each, the first: {shard} ({kind})"
        raise MachineError(f"{plan.folder}: {what}; the rest is done, run again")


def make_one(config: dict[str, str], shard: int, limits: dict[str, Any]) -> tuple[int, int, int]:
    """Make one shard by a worker of its own, as a Ray task, and return its numbers of items, tokens and bad items."""
    own, worker, last = RayLimits(**limits), WorkerConfig(**config), NOTHING_DONE

    def on_work(progress: WorkProgress) -> None:
        nonlocal last
        last = progress

    run_pool(load_plan(Path(worker.folder)), worker, [shard], PoolLimits(1, own.timeout, own.memory), on_work)
    return last.items, last.tokens, last.bad
