"""The checks of a run folder (`smalti doctor RUN`): what its log shows, samples of skipped steps, bad files,
checkpoints and disk. They read and change nothing."""

from collections import Counter
from pathlib import Path

from smalti.errors import InputError, IntegrityError, SmaltiError
from smalti.files import check_manifest, read_rows
from smalti.model_folder import checkpoints
from smalti.pipeline.doctor import Check, check_disk
from smalti.pipeline.train import find_config, is_run
from smalti.recipes import AnyTraining
from smalti.training.fit import had_checkpoints, last_logged_step
from smalti.training.samples import skipped_steps
from smalti.training.watch import RunWatch

_NAMED = 3
"""Steps, and samples of each, that are named."""


def check_run(run: str | Path) -> list[Check]:
    """Check a run folder, finished or not, also while it trains: the rules of `smalti.training.watch` on its log,
    and its files. Raises InputError where there is no run, ConfigError where its config is none."""
    folder = Path(run)
    if not is_run(folder):
        raise InputError(f"{folder}: no run folder; one has config.yaml and log.jsonl")
    config = find_config(folder)
    return [*_log(folder, config), *_skipped(folder), _bad_files(folder), *_checkpoints(folder, config)]


def _log(folder: Path, config: AnyTraining) -> list[Check]:
    """Return how far the run is, and the faults that the rules find in its log."""
    watch, faults, last = RunWatch(config), [], dict[str, object]()
    path, read = folder / "log.jsonl", 0
    for line in read_rows(path, "step"):
        faults += watch.add(line)
        read, last = read + 1, line if "skipped" in line else last
    lost = (path.read_bytes().count(b"\n") if path.is_file() else 0) - read  # a line that a kill cut short has no end
    damaged = [Check("log lines", "note", f"{lost:,} of {path} cannot be read", "check the disk")] if lost > 0 else []
    if not last:
        remedy = f"wait for step {min(config.log_every, config.steps):,}"
        return [*damaged, Check("log", "note", "no step is logged yet", remedy)]
    rate = last.get("steps_per_second")
    speed = f", {rate:.3g} steps a second" if isinstance(rate, float) else ""
    checks = [*damaged, Check("log", "ok", f"step {last['step']:,} of {config.steps:,}{speed}")]
    checks += [Check(one.rule, "note", f"{one.what}, first at step {one.step:,}", one.remedy) for one in faults]
    return checks if faults else [*checks, Check("rules", "ok", "none of the faults that are looked for")]


def _skipped(folder: Path) -> list[Check]:
    """Name the samples of the first skipped steps, and those that are in several."""
    rows = skipped_steps(folder)
    if not rows:
        return []
    shown = "; ".join(
        f"step {row['step']:,} ({', '.join(row['not_finite']) or 'a gradient'}): {_some(row['samples'])}"
        for row in rows[:_NAMED]
    )
    often = [name for name, count in Counter(n for row in rows for n in row["samples"]).most_common() if count > 1]
    more = f"; in several of them: {_some(often)}" if often else ""
    what = f"{len(rows):,} updates were left out: {shown}{more}"
    remedy = f"look at these samples; load such a batch again by its seed ({rows[0]['seed']}) and step"
    return [Check("skipped steps", "note", what, remedy)]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _bad_files(folder: Path) -> Check:
    named = dict[str, str]()
    for path in sorted(folder.glob("bad_files*.jsonl")):
        named |= {str(row["path"]): str(row["code"]) for row in read_rows(path, "path", "code")}
    if not named:
        return Check("bad files", "ok", "none")
    kinds = ", ".join(f"{count} {code}" for code, count in Counter(named.values()).most_common())
    return Check("bad files", "note", f"{len(named)} ({kinds}): {_some([*named])}", "repair them; see bad_files.jsonl")


def _checkpoints(folder: Path, config: AnyTraining) -> list[Check]:
    """Check every checkpoint against its digests, and the disk for the next one."""
    found, damaged = checkpoints(folder), list[str]()
    final = folder / config.kind
    if final.is_dir():
        try:
            check_manifest(final)
        except SmaltiError as fault:
            return [Check("checkpoints", "broken", str(fault), "copy it from the newest checkpoint", fault.exit_code)]
    for checkpoint in found:
        try:
            check_manifest(checkpoint)
        except SmaltiError as fault:
            damaged.append(str(fault))
    if not found and had_checkpoints(folder, config):
        what = "there were some, and none is left"
        return [Check("checkpoints", "broken", what, "restore one, or start anew", IntegrityError.exit_code)]
    if not found:
        return [Check("checkpoints", "note", "none yet", f"one is written every {config.save_every:,} steps")]
    steps = [int(checkpoint.name.removeprefix("step-")) for checkpoint in found]
    late = max(0, last_logged_step(folder) - steps[-1])
    behind = f"{len(found)}, newest of step {steps[-1]:,}, {late:,} steps behind the log"
    size = max(sum(path.stat().st_size for path in one.rglob("*") if path.is_file()) for one in found)
    check = Check("checkpoints", "ok", f"{behind}, all whole")
    if len(damaged) == len(found):
        what = f"{behind}: none is whole; the newest: {damaged[-1]}"
        check = Check("checkpoints", "broken", what, "restore one, or start anew", IntegrityError.exit_code)
    elif damaged:
        what = f"{behind}: {len(damaged)} damaged: {damaged[-1]}"
        check = Check("checkpoints", "note", what, "resuming takes the newest whole one; check the disk")
    return [check, check_disk(folder, 2 * size)]
