"""Turn a data set into a token set: the library function behind `smalti tokenize`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.config import Config
from smalti.data.source import check_bad_share
from smalti.devices import Precision, pick_device, usable_memory
from smalti.errors import ConfigError
from smalti.text import Progress
from smalti.tokens.config import MediaInputs, TokenizeOptions, inputs_at
from smalti.tokens.finalize import SetSummary, finish_set, summarize_set
from smalti.tokens.plan import prepare_set
from smalti.tokens.pool import PoolLimits, run_pool
from smalti.tokens.shard import pending_shards
from smalti.tokens.tokenize import WorkProgress, make_shards, report_to


class _TokenizeConfig(Config):
    """The two configs of a token set, so that `set` reaches the fields of both."""

    inputs: MediaInputs
    options: TokenizeOptions


def tokenize(
    tokenizer: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    fps: float | None = None,
    clip: int | None = None,
    overlap: int = 0,
    batch: int = 1,
    precision: Precision | None = None,
    source: Literal["files", "tars", "parquet"] | None = None,
    set: Sequence[str] = (),
    workers: int = 1,
    shard: str | None = None,
    engine: Literal["local", "ray"] = "local",
    gpus: float = 0.0,
    timeout: float = 300.0,
    memory: float | None = None,
    max_bad: float = 1.0,
    resume: bool = False,
    plan_only: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> SetSummary:
    """Make a token set at `out` of the images and videos at `data`, or go on with the one that is there.

    What goes into which shard is planned first; a run that was stopped continues with the same call, with any number
    of workers or machines, and the files come out the same, byte for byte. Bad files are left out and counted in the
    summary, whose `is_whole` says whether every shard is done; more than the share `max_bad` of them end the work.

    Args:
        tokenizer: name of the tokenizer, as `smalti.load` takes it; every worker loads it.
        data: folder, list, file, tars, Parquet files, or `hf:owner/name`.
        out: folder of the token set.
        size: height and width of the center crop, or one number for a square; None keeps the size of each file.
        fps: frame rate at which videos are encoded; None takes every frame.
        clip: frames of the clips that videos are cut into; None makes one row of a video.
        overlap: frames that a clip shares with the one before.
        batch: images of one size that are encoded together.
        precision: number format of the networks, a part of the plan; None is that of the tokenizer's file. In bfloat16
            some ids are others (2 to 5 % of the shipped tokenizers'), and as good.
        source: kind of `data`, where its name does not show it.
        set: further fields, as `options.min_side=128` or `inputs.caption=text`.
        workers: processes; 0 works in this one, where a file that crashes its decoder ends the work.
        shard: part of the work, as `3/8`, or `auto` to ask torchrun or Slurm.
        engine: this machine, or a Ray cluster.
        gpus: GPUs of a Ray task.
        timeout: seconds after which a silent worker counts as hung.
        memory: GB that a worker may hold; None shares 80 % of the free memory of this machine among its workers.
        max_bad: largest share of bad files, checked whenever a shard is done.
        resume: take the plan that is there and do not list `data` again.
        plan_only: write the plan and stop.
        device: device of the workers; None takes the best there is.
        progress: called with the number of files (for tars and tables: shards) that are done.

    Raises ConfigError and InputError for options and data that cannot be used, IntegrityError where the set was begun
    with another tokenizer, MachineError where the disk is full or workers cannot start.
    """
    by_name = "every worker loads the tokenizer by its name: save it, and give the folder"
    check_arguments(tokenize, locals(), {"tokenizer": by_name})
    check_out_folder("out", out)
    check_least({"clip": (clip, 1), "overlap": (overlap, 0), "batch": (batch, 1), "workers": (workers, 0)})
    check_least({"gpus": (gpus, 0), "timeout": (timeout, 0.1), "memory": (memory, 0.1), "max_bad": (max_bad, 0)})
    part = _part_of(shard)
    fields: dict[str, object] = {"size": size, "fps": fps, "clip": clip, "overlap": overlap, "batch": batch}
    fields["precision"] = precision
    options = TokenizeOptions.parse({k: v for k, v in fields.items() if v is not None}, where="tokenize")
    config = _TokenizeConfig(inputs=inputs_at(data, source), options=options).override(set)
    for name in options.model_fields_set:
        if getattr(config.options, name) != getattr(options, name) != getattr(TokenizeOptions(), name):
            raise ConfigError(f"`{name}`: set options.{name} says another; give one of them")
    remote = "cuda" if engine == "ray" and gpus else None  # this machine may have no GPU
    place = remote or (device if device is not None and ":" in device else pick_device(device).type)
    plan, worker, notes = prepare_set(tokenizer, config.inputs, Path(out), config.options, device=place, resume=resume)
    if plan_only:
        return summarize_set(plan)._replace(notes=notes)
    shards = pending_shards(plan, part)
    report = report_to(progress, plan, shards)

    def on_work(work: WorkProgress) -> None:
        report(work)
        check_bad_share(work.bad, work.items, max_bad)

    memory_bytes = None if memory is None else int(memory * 1e9)
    if memory is None and engine == "local" and (usable := usable_memory()) is not None:
        memory_bytes = usable // max(1, workers)
    if engine == "local" and not workers:
        make_shards(plan, worker, shards, on_work)
    elif engine == "ray":
        from smalti.tokens.ray_engine import RayLimits, run_on_ray

        run_on_ray(plan, worker, shards, RayLimits(gpus, timeout, memory_bytes), on_work)
    else:
        run_pool(plan, worker, shards, PoolLimits(workers, timeout, memory_bytes), on_work)
    return finish_set(plan)._replace(notes=notes)


def _part_of(shard: str | None) -> tuple[int, int]:
    """Return (part, parts) of `shard`; `auto` takes them from torchrun, a Slurm array or srun."""
    if shard is None:
        return 0, 1
    if shard == "auto":
        for index, count in (
            ("RANK", "WORLD_SIZE"),
            ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
        ):
            if index in os.environ and count in os.environ:
                first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0")) if "ARRAY" in index else 0
                return int(os.environ[index]) - first, int(os.environ[count])
        raise ConfigError("`shard` auto: neither torchrun nor Slurm says which part this is; give `shard` 0/8")
    index, slash, count = shard.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(count)):
        raise ConfigError(f"`shard` {shard}: expected part/parts, as in 0/8")
    return int(index), int(count)
