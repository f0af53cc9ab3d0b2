"""The checks of a recipe before hours are spent on it (`smalti doctor RECIPE`): data, learning rates, memory, speed,
both networks at the start, disk. They train for a few steps in memory and write nothing."""

import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from smalti.arguments import check_arguments
from smalti.data import Joint, Source
from smalti.data.source import sample_rng
from smalti.devices import FASTER, measure_precisions, usable_memory
from smalti.errors import BadFile, ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.pipeline.doctor import Check, check_disk
from smalti.pipeline.train import default_run, find_config, settle_config
from smalti.recipes import AnyTraining
from smalti.text import counts_text
from smalti.tokens.dataset import TokenBatch, token_batches
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World, join_world
from smalti.training.fit import check_equal_ranks
from smalti.training.generator_task import GeneratorTask, generator_step
from smalti.training.memory import SavedBytes, checkpoint_bytes, state_bytes
from smalti.training.task import StepResult
from smalti.training.tokenizer_figures import TokenizerStep, dead_digits
from smalti.training.tokenizer_step import step
from smalti.training.tokenizer_task import TokenizerTask
from smalti.training.watch import chance_loss
from smalti.video import to_video

_SAMPLES, _SECONDS = 64, 10.0
"""Samples that are read, and seconds after which no other one is begun."""
_ROWS = 2
"""Rows of the step by which memory is estimated."""
_PATIENCE = 20.0
"""Seconds that a step may take for two of them to be timed; a longer one is estimated from `_ROWS` rows."""
_HIGHEST_LR = 0.02
"""Learning rate above which a step of Adam replaces a weight: it moves each by about the rate, and weights of a
convolution of 100 channels have a standard deviation of 0.03."""
_GIB = 1 << 30
ELSEWHERE = "another process of this run says why"
"""Result of the check of a rank that ends because of another one."""

_PARTS: tuple[tuple[type[SmaltiError], str], ...] = (
    (ConfigError, "config"),
    (InputError, "data"),
    (IntegrityError, "files"),
    (MachineError, "machine"),
)
"""Kinds of errors, and the name of the check that one of them has ended."""

ENDING = (*(name for _, name in _PARTS), "run")
"""Names of the check that is the last one, because an error was raised."""


class _Probe(NamedTuple):
    """A run of which steps of any number of rows can be made."""

    task: TokenizerTask | GeneratorTask
    trained: Sequence[nn.Module]
    frozen: Sequence[nn.Module]
    step: Callable[[int], StepResult]
    """Train on this many rows of each rank."""


def check_recipe(
    recipe: str | Path | AnyTraining,
    out: str | Path | None = None,
    *,
    set: Sequence[str] = (),
    tiny: bool = False,
    quantizer: str | None = None,
    device: str | None = None,
) -> list[Check]:
    """Check a run before it is trained, with the arguments of `train`; writes nothing.

    Reads up to 64 samples, then trains for a few steps in memory, with the discriminator from the first on. Under
    torchrun all ranks take part. Raises ConfigError for a config that is none, InputError for an `init` that is not
    there; what else fails is a check that is `broken`, with its exit code.
    """
    check_arguments(check_recipe, locals(), {"recipe": "give the name of a recipe, a .yaml file or a config"})
    config = settle_config(find_config(recipe, tiny=tiny), set, quantizer)
    folder = Path(out) if out is not None else default_run(recipe) if isinstance(recipe, str | Path) else Path.cwd()
    checks = _learning_rates(config)
    try:
        with join_world(device, timeout=timedelta(seconds=config.rank_timeout)) as world:
            read, probe = _tokenizer(config, world) if isinstance(config, TokenizerTraining) else _tokens(config, world)
            checks = [*read, *checks]
            if world.size > 1:
                try:
                    check_equal_ranks(probe.task)
                except ConfigError as fault:  # found by all ranks: the first one tells it in its table
                    return [*checks, Check("ranks", "broken", str(fault), "see the message", fault.exit_code)]
                checks.append(Check("ranks", "ok", f"{world.size} processes agree on settings and data"))
            checks += [*_steps(config, probe, world), _format(config, world.device)]
    except SmaltiError as fault:
        name = next((name for kind, name in _PARTS if isinstance(fault, kind)), ENDING[-1])
        return [*checks, Check(name, "broken", str(fault) or ELSEWHERE, "see the message", fault.exit_code)]
    return [*checks, _disk(folder, config.keep, checkpoint_bytes(probe.task, probe.trained))]


def _learning_rates(config: AnyTraining) -> list[Check]:
    """Return the learning rates as they are applied over the run, and what of them is never reached."""
    checks = []
    for name, one in config.optimizers.items():
        warm = min(one.warmup, config.steps - 1)
        rates = [one.lr_at(n, config.steps) for n in (0, warm, config.steps - 1)]
        result = f"{rates[0]:.3g} at first, {rates[1]:.3g} after {warm:,} steps, {rates[2]:.3g} at the end"
        faults, remedies = list[str](), list[str]()
        if max(rates) > _HIGHEST_LR:
            faults.append(f"more than {_HIGHEST_LR:g} moves a weight by all of itself at each step")
            remedies.append(f"lower {name}.lr")
        if one.warmup >= config.steps:
            faults.append(f"the warm-up of {one.warmup:,} steps is as long as the run of {config.steps:,}")
            remedies.append(f"lower {name}.warmup")
        state: Literal["ok", "note"] = "note" if faults else "ok"
        checks.append(Check(f"{name}.lr", state, "; ".join([result, *faults]), ", ".join(remedies)))
    gan = config.gan if isinstance(config, TokenizerTraining) else None
    if gan is not None and gan.start >= config.steps:
        result = f"starts at step {gan.start:,} of {config.steps:,}: never"
        checks.append(Check("gan.start", "note", result, "lower gan.start, or set gan=null"))
    return checks


def _tokenizer(config: TokenizerTraining, world: World) -> tuple[list[Check], _Probe]:
    """Read samples of the data; return what they show, and the run with its discriminator from the first step on."""
    gan = None if config.gan is None else config.gan.replace({"start": 0, "ramp": 0})
    task = TokenizerTask(config.replace({"gan": gan, "accumulate": 1}), world)
    checks, clips = _read(task.source)
    checks = [Check("data", "ok", _counts(task)), *checks]
    if not clips:
        raise InputError(f"none of the first samples can be read: {checks[-1].result}")
    largest = max(clip.numel() for clip in clips)
    alike = [clip for clip in clips if clip.numel() == largest and clip.shape == clips[-1].shape] or clips[:1]

    def train(rows: int) -> TokenizerStep:
        video = torch.stack([alike[(row * world.size + world.rank) % len(alike)] for row in range(rows)])
        return step(task.state, to_video(video))

    state = task.state
    frozen = [network for network in (state.lpips, state.logits) if network is not None]
    trained: list[nn.Module] = [state.tokenizer, *([state.gan.discriminator] if state.gan is not None else [])]
    return checks, _Probe(task, trained, frozen, train)


def _counts(task: TokenizerTask | GeneratorTask) -> str:
    return counts_text({name.replace("_", " "): count for name, count in task.data_counts.items() if count})


def _read(source: Source) -> tuple[list[Check], list[Tensor]]:
    """Load samples spread over the source; return checks of files and values, and the pixels."""
    began, clips, bad = time.monotonic(), list[Tensor](), list[BadFile]()
    sources = (source.images, source.videos) if isinstance(source, Joint) else (source,)
    for part in sources:
        for place in range(min(_SAMPLES, len(part))):
            if time.monotonic() - began > _SECONDS * (1 + sources.index(part)) and place:
                break
            index = place * len(part) // min(_SAMPLES, len(part))
            try:
                clips.append(part.load(index, sample_rng(0, 0, index)))
            except BadFile as fault:
                bad.append(fault.bare())
    tried, seconds = len(clips) + len(bad), time.monotonic() - began
    named = "; ".join(map(str, bad[:3]))
    result = f"{len(bad)} of {tried} samples cannot be read" + (f": {named}" if bad else "")
    files = Check(
        "files", "note" if bad else "ok", result, "repair them or take them out; max_bad ends a run" if bad else ""
    )
    if not clips:
        return [files], []
    speed = Check("reading", "ok", f"{1000 * seconds / tried:,.1f} ms a sample in one process")
    return [files, speed, _values(clips)], clips


def _values(clips: Sequence[Tensor]) -> Check:
    """Check the range of pixels, and for samples of one value."""
    parts = [clip.float() for clip in clips]
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    flat = sum(float(part.std()) < 1 for part in parts)
    shapes = sorted({tuple(clip.shape[:3]) for clip in clips})
    shown = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:3])
    result = f"{shown} (t, h, w); {low:.0f} to {high:.0f} of 0 to 255; {flat} of {len(clips)} samples are of one colour"
    if high - low < 26:
        return Check(
            "values", "note", f"{result}; less than a tenth of the range", "see whether the files are what you think"
        )
    if flat > 0.1 * len(clips):
        return Check("values", "note", f"{result}, more than a tenth", "take them out: they teach nothing")
    return Check("values", "ok", result)


def _tokens(config: AnyTraining, world: World) -> tuple[list[Check], _Probe]:
    """Read the token set; return what it shows, and the run."""
    assert not isinstance(config, TokenizerTraining)
    task = GeneratorTask(config, world)
    result = f"{_counts(task)}; ids below {math.prod(config.generator.levels):,}, all read and checked"
    batch = next(
        token_batches(task.rows, batch_size=config.batch_size, seed=config.seed, part=(world.rank, world.size))
    )

    def train(rows: int) -> StepResult:
        chosen = torch.arange(rows) % len(batch.ids)
        return generator_step(task.state, TokenBatch(batch.ids[chosen], batch.labels[chosen], batch.rows[chosen], 0))

    notes = [Check("data", "note", note, "see the message") for note in task.notes]
    frozen = [] if task.state.tokenizer is None else [task.state.tokenizer]
    return [Check("data", "ok", result), *notes], _Probe(task, [task.state.model], frozen, train)


def _steps(config: AnyTraining, probe: _Probe, world: World) -> list[Check]:
    """Train for a few steps; return checks of memory, speed, discriminator and codes."""
    cuts = config.accumulate if isinstance(config, TokenizerTraining) else 1
    rows = -(-config.batch_size // (world.size * cuts))
    few = min(rows, _ROWS)
    with SavedBytes([*probe.trained, *probe.frozen]) as saved:
        result = probe.step(few)
    seconds = _time(probe, few, world)
    needed = state_bytes(probe.trained, probe.frozen, probe.task.ema) + saved.peak * rows // few
    checks = [_size(probe), _memory(needed, rows, world)]
    whole = checks[-1].state == "ok" and seconds * rows / few < _PATIENCE
    if rows > few and not world.any(not whole):
        probe.step(rows)
        per_step, how = cuts * _time(probe, rows, world), "timed"
    else:
        per_step, how = cuts * seconds * rows / few, "timed" if rows == few else f"estimated from {few} rows"
    hours = per_step * config.steps / 3600
    speed = f"{per_step:.3g} s a step of {config.batch_size} samples, {hours:,.2g} hours in all ({how})"
    checks.append(Check("speed", "ok", speed))
    if isinstance(config, TokenizerTraining) and isinstance(result, TokenizerStep):
        return checks + _start(config, result)
    return [*checks, _loss(result)]


def _time(probe: _Probe, rows: int, world: World) -> float:
    """Return the seconds of the faster of two steps, the same on all ranks."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        probe.step(rows)
        seconds.append(time.perf_counter() - began)
    return float(world.mean(torch.tensor(min(seconds), device=world.device)))


def _size(probe: _Probe) -> Check:
    numbers = [sum(p.numel() for p in module.parameters()) for module in (*probe.trained, *probe.frozen)]
    names = ["of the model", "of the discriminator"][: len(probe.trained)] + ["of a fixed network"] * len(probe.frozen)
    return Check("parameters", "ok", ", ".join(f"{n:,} {name}" for n, name in zip(numbers, names, strict=True)))


def _memory(needed: int, rows: int, world: World) -> Check:
    free = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else usable_memory()
    result = f"about {needed / _GIB:.2f} GiB for {rows} rows at once on {world.device}"
    if free is not None:
        result += f", {free / _GIB:.2f} GiB are free"
        if needed > free:
            remedy = "raise accumulate, set checkpoint_activations, lower batch_size, or take a smaller size"
            return Check("memory", "note", result, remedy)
    return Check("memory", "ok", result)


def _start(config: TokenizerTraining, result: TokenizerStep) -> list[Check]:
    """Return checks of the first step: codes in use, and the discriminator against a coin."""
    use = result.usage.summary(pixels=1)
    dead = dead_digits(use)
    codes = f"{use.tokens:,} tokens have {use.distinct:,} codes, perplexity {use.perplexity:,.1f}; {dead} dead digits"
    checks = [Check("codes", "ok", codes)]
    if use.tokens >= 16 and use.distinct == 1:
        checks = [
            Check("codes", "note", f"{codes}: all tokens are alike", "give batch_entropy a weight, or wait 100 steps")
        ]
    if config.gan is not None:
        coin, loss = chance_loss(config.gan.losses[1]), result.losses["discriminator"]
        shown = f"loss {loss:.3g} at the start, a coin's is {coin:.3g}; weight {result.gan_weight:.3g}"
        fair = 0.5 * coin < loss < 1.5 * coin
        remedy = (
            "" if fair else "take another gan.discriminator or its initialisation: 0.5 to 1.5 times a coin's is fair"
        )
        checks.append(Check("discriminator", "ok" if fair else "note", shown, remedy))
    if not math.isfinite(result.total) or result.skipped:
        checks.append(Check("loss", "broken", f"{result.total} at the first step", "see weights and data", 70))
    return checks


def _loss(result: StepResult) -> Check:
    if result.skipped:
        return Check("loss", "broken", f"{result.note}: not finite at the first step", "see generator and data", 70)
    return Check("loss", "ok", f"{result.note} at the first step")


def _format(config: AnyTraining, device: torch.device) -> Check:
    speeds = measure_precisions(device)
    result = (
        ", ".join(f"{name} {speed:,.0f} GFLOP/s" for name, speed in speeds.items())
        + f"; precision is {config.precision}"
    )
    other = next(name for name in speeds if name != config.precision)
    if speeds[other] > FASTER * speeds[config.precision]:
        return Check("number format", "note", f"{result}, more than {FASTER} times slower", f"set precision={other}")
    return Check("number format", "ok", result)


def _disk(folder: Path, keep: int, size: int) -> Check:
    """Compare what the checkpoints of a run take, one in the making included, with the disk."""
    check = check_disk(folder, (keep + 1) * size)
    remedy = "free some space, lower keep, or give another `out`"
    return (
        check
        if check.state == "ok"
        else check._replace(state="broken", remedy=remedy, exit_code=MachineError.exit_code)
    )
