"""A generator as a task of `fit`: its state, one training step (masked or autoregressive, on rows of a token set),
validation and samples."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.data.source import mix, sample_rng
from smalti.devices import fast_kernels, send
from smalti.errors import ConfigError, IntegrityError
from smalti.families import load as load_tokenizer
from smalti.generation import (
    Condition,
    Generator,
    MaskedConfig,
    MaskedTransformer,
    MaskNoise,
    Origin,
    Prompt,
    TaskConfig,
    TokenLoss,
    TokenModel,
    autoregressive_loss,
    complete,
    masked_loss,
    task_cells,
    task_tokens,
    validate,
)
from smalti.generation.blocks import TransformerBlock
from smalti.metrics.contact_sheet import contact_sheet
from smalti.tokenizer import Tokenizer
from smalti.tokens.dataset import TokenBatch, token_batches
from smalti.training.ahead import Copies, done
from smalti.training.distributed import World
from smalti.training.generator_config import GeneratorTraining
from smalti.training.generator_rows import GridRows, settle_classes
from smalti.training.late import MOST
from smalti.training.optimizer import (
    OptimizerState,
    clip_gradient,
    make_optimizer,
    set_lr,
    skips_alone,
    update,
    update_ema,
    wrap_ddp,
)
from smalti.training.samples import count_samples, keep_skipped
from smalti.training.sharded import ModuleWeights, ShardedRun, shard
from smalti.training.task import RunState, Samples, Stateful, Task, each_step
from smalti.video import limit_pixels, to_uint8

_TASK, _DROPOUT, _MASKS = 1, 2, 3
"""The streams of random numbers of a (seed, step)."""
_HOST = torch.device("cpu")
_SAMPLES, _BATCH = 4, 16
"""Samples of a task in the log; held-out rows that are scored together."""


@dataclass(kw_only=True)
class GeneratorState(RunState):
    """The state of a run."""

    config: GeneratorTraining
    model: TokenModel
    objective: nn.Module
    """The loss of a batch, wrapped for several ranks, or in shards over them."""
    ema: Generator
    """The generator with the EMA weights: it is validated, sampled from and kept."""
    optimizer: Optimizer
    tokenizer: Tokenizer | None

    @property
    def averaged(self) -> nn.Module:
        """The EMA weights that a step moves: this rank's shards of them where the run is in shards."""
        return self.ema.model if self.sharded is None else self.sharded.averages


class Objective(nn.Module):
    """The loss as a module, so that ranks exchange its gradients."""

    def __init__(self, model: TokenModel, config: GeneratorTraining) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, ids: Tensor, prompt: Prompt, rng: torch.Generator, chances: MaskNoise) -> TokenLoss:
        """Return the loss of true ids under a prompt; dropout is of `rng`. All of it was checked before: no value is
        looked at."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            if isinstance(self.model, MaskedTransformer):
                return masked_loss(self.model, ids, prompt, self.config.loss, rng, chances, check=False)
            about = prompt.condition
            return autoregressive_loss(self.model, ids, about, self.config.loss, rng, chances, check=False)


def start_generator(config: GeneratorTraining, rows: GridRows, world: World) -> GeneratorState:
    """Return a fresh state; random weights are a function of the seed. Raises IntegrityError for another tokenizer."""
    tokens = rows.tokens
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = config.generator.build()
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(str(config.tokenizer), world.device)
        tokens.check(tokenizer)
    is_sharded = config.shard and world.size > 1
    model.to("cpu" if is_sharded else world.device).train()  # shards move to the device one after the other
    classes = rows.classes if config.generator.classes else ()
    fps = next((row.fps for row in tokens), None)
    info = tokens.tokenizer_info
    if info.first_frames > 1:
        raise ConfigError(
            f"data: the tokenizer of this token set puts {info.first_frames} frames into the first latent; token models"
            " are of videos whose first frame stands alone"
        )
    origin = Origin(tokenizer=info.fingerprint, strides=info.strides, classes=classes, fps=fps)
    ema, objective, sharded = copy.deepcopy(model).requires_grad_(False).eval(), Objective(model, config), None
    if is_sharded:
        blocks = [layer for layer in model.modules() if isinstance(layer, TransformerBlock)]
        wrapped = shard(objective, blocks, world)
        sharded = ShardedRun(ema, model, world)
    else:
        wrapped = wrap_ddp(objective, world, unused=isinstance(model, MaskedTransformer) and model.config.hints)
    return GeneratorState(
        config=config,
        world=world,
        model=model,
        objective=wrapped,
        ema=Generator(ema, origin),
        sharded=sharded,
        optimizer=make_optimizer(model, config.optimizer),
        tokenizer=tokenizer,
    )


def task_of_step(config: GeneratorTraining, number: int) -> TaskConfig:
    """Return the task of a step: a function of (seed, step)."""
    shares = torch.tensor([share.share for share in config.tasks], dtype=torch.float64)
    rng = sample_rng(config.seed, number, _TASK)
    point = torch.rand((), generator=rng, dtype=torch.float64) * shares.sum()
    return config.tasks[min(int((shares.cumsum(0) <= point).sum()), len(shares) - 1)].task


def prompt_of(state: GeneratorState, task: TaskConfig, ids: Tensor, labels: Tensor) -> Prompt:
    """Return the known and hinted cells of true ids under a task.

    Known cells have the true ids. Hinted cells get ids from re-encoding the decoded clip with the missing pixels filled
    in. Which cells are known and hinted stays in the CPU's memory, where masks are made.
    """
    config, strides = state.config.generator, state.ema.origin.strides
    tasks = task_tokens(task.kind, config.tasks, len(ids))
    condition = Condition(labels if config.classes else None, None if tasks is None else send(tasks, ids.device))
    reach = None if state.tokenizer is None else state.tokenizer.encoder.reach
    cells = task_cells(task, (ids.shape[1], ids.shape[2], ids.shape[3]), strides, reach=reach)
    known, hinted = (mask.expand_as(ids) for mask in cells)
    if not bool(cells.hinted.any()) or state.tokenizer is None or not state.ema.hints:
        return Prompt(ids, known, None, condition)
    shown = draft(state.tokenizer, task, ids, check=not skips_alone(state.optimizer))
    return Prompt(torch.where(send(cells.known, ids.device), ids, shown), known, hinted, condition)


def draft(tokenizer: Tokenizer, task: TaskConfig, ids: Tensor, *, check: bool) -> Tensor:
    """Return the ids of the clips of `ids` with their missing pixels filled in. Without `check` nobody waits for the
    device to see whether a clip is not finite; its ids then say nothing."""
    quantizer = tokenizer.quantizer
    with torch.inference_mode():
        video = limit_pixels(task.fill(tokenizer.decode_codes(quantizer.decode(ids, check=False))))
        z = tokenizer.latents(video, check=False)
        drafted = quantizer.encode(z) if check else quantizer.nearest(z)[0]
    return drafted.clone()  # outside, so that what is computed from it may have gradients


class GeneratorStep(NamedTuple):
    """The figures of a step; means over ranks."""

    step: int
    task: str
    loss: float
    """The smoothed loss per token, which is minimised."""
    bits_per_token: float
    accuracy: float
    """Share of the masked subtokens whose largest logit is at the true value."""
    lr: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    skipped: bool
    """Whether the update was left out because a loss or gradient was not finite."""
    samples: int | None = None
    """Digest of the samples of all steps of a run so far."""

    @property
    def note(self) -> str:
        """The loss, in bits too."""
        return f"loss {self.loss:.4f} bits/token {self.bits_per_token:.3f}"

    def line(self) -> dict[str, Any]:
        """Return the line for log.jsonl, without the samples."""
        return dict(list(self._asdict().items())[:-1])


class BegunStep(NamedTuple):
    """A step whose figures were not looked at yet."""

    step: int
    task: str
    lr: float
    figures: Tensor
    """Loss, nats and entries of each sub-token, right ones, norm of the gradient, whether skipped; on the device."""


def generator_step(state: GeneratorState, batch: TokenBatch) -> GeneratorStep:
    """Train on one batch of this rank; advances `state`."""
    (result,) = read_generator(state, [begin_generator(state, batch.to(state.world.device))])
    return result


def begin_generator(state: GeneratorState, batch: TokenBatch) -> BegunStep:
    """Train as `generator_step` does on a batch that is on the device, and look at no figure. At most `late.MOST` steps
    are begun before `read_generator` has their figures."""
    config, world = state.config, state.world
    ids, task = batch.ids, task_of_step(config, state.step)
    prompt = prompt_of(state, task, ids, batch.labels)
    rng, chances = _noise(state, len(ids))
    lr = config.optimizer.lr_at(state.step, config.steps)
    set_lr(state.optimizer, config.optimizer, lr)
    with fast_kernels(config.fast_kernels):
        losses: TokenLoss = state.objective(ids, prompt, rng, chances)
        entries = world.mean(losses.entries.double())
        loss = losses.total * (len(entries) / entries.sum())  # ranks then add up to the mean over all entries
        loss.backward()
    sums = world.mean(torch.stack([loss.detach().double(), *losses.nats.double(), losses.right.sum().double()]))
    norm = clip_gradient(state.model, config.optimizer.clip)
    skip = world.highest(1 - (sums[0] + norm).isfinite().float())
    with fast_kernels(config.fast_kernels):  # Muon multiplies matrices
        update(state.optimizer, skip)
    if (late := state.begin_late()) is not None:
        update_ema(state.averaged, state.model, late.ema_decay(skip))
    elif not skip:
        update_ema(state.averaged, state.model, config.ema_decay(state.updates))
        state.updates += 1
    state.step += 1
    figures = torch.cat([sums, entries, torch.stack([norm.double(), skip.double()])])
    return BegunStep(state.step, task.kind, lr, figures)


def read_generator(state: GeneratorState, steps: Sequence[BegunStep]) -> list[GeneratorStep]:
    """Return the figures of all steps since the last reading: one wait for a GPU, not one for each number."""
    results = []
    for begun, figures in zip(steps, torch.stack([begun.figures for begun in steps]).cpu(), strict=True):
        parts = (len(figures) - 4) // 2
        loss, nats, right, entries, norm, skip = figures.split([1, parts, 1, parts, 1, 1])
        bits, accuracy = float((nats / entries).sum()) / math.log(2), float(right / entries.sum())
        measured = float(loss), bits, accuracy, begun.lr, float(norm), bool(skip)
        results.append(GeneratorStep(begun.step, begun.task, *measured))
    state.end_late(sum(not result.skipped for result in results))
    return results


def _noise(state: GeneratorState, count: int) -> tuple[torch.Generator, MaskNoise]:
    """Return this rank's dropout generator, and the random numbers of each row by its place in the global batch, in the
    CPU's memory."""
    config, world, model = state.config, state.world, state.config.generator
    rng = torch.Generator(world.device).manual_seed(mix(config.seed, state.step, world.rank, _DROPOUT) >> 1)
    places = [world.rank + i * world.size for i in range(count)]
    entries = model.entries if isinstance(model, MaskedConfig) else 0
    return rng, MaskNoise.of_rows(mix(config.seed, _MASKS), places, state.step, entries, _HOST)


class GeneratorTask(Task):
    """The training of a token model. What can fail for want of files or memory fails when it is made."""

    def __init__(self, config: GeneratorTraining, world: World, previous: GeneratorTraining | None = None) -> None:
        self.rows = GridRows(config.data, config.generator)
        config, self.notes = settle_classes(config, self.rows, previous)
        self.rows.check_classes(config.generator.classes)
        self.held_out = None
        if config.validation is not None:
            self.held_out = GridRows(config.validation, config.generator, self.rows.classes)
            self.held_out.check_classes(config.generator.classes)
        if self.held_out is not None and self.held_out.tokens.tokenizer_info != self.rows.tokens.tokenizer_info:
            raise IntegrityError(f"{config.validation}: made by another tokenizer than {config.data}")
        self.state: GeneratorState = start_generator(config, self.rows, world)
        self.ema = self.state.ema.model
        self.data_count, self.data_digest = len(self.rows), self.rows.tokens.plan
        self.data_counts = {"rows": len(self.rows), "rows_of_other_shapes": self.rows.other_shapes}
        if config.validation is None:
            self.notes += ("no validation: set validation to a token set of other media",)

    def steps(self, folder: Path, wanted: Callable[[int], bool] = each_step) -> Iterator[GeneratorStep]:
        """Train to the last step; a token set has no files that cannot be read."""
        places = range(self.state.world.rank, self.state.config.batch_size, self.state.world.size)
        for result, names in self._trained(wanted):
            if result.skipped:
                keep_skipped(self.state, folder, result.line(), names, places)
            yield result

    def _trained(self, wanted: Callable[[int], bool]) -> Iterator[tuple[GeneratorStep, Sequence[str]]]:
        """Train to the last step; yield the steps that were read together, and the rows of each by their numbers."""
        config, world = self.state.config, self.state.world
        stream = token_batches(
            self.rows,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=self.state.step,
            part=(world.rank, world.size),
            workers=config.workers,
        )
        copies, begun = Copies(world.device), list[tuple[BegunStep, list[str], int | None]]()

        def load() -> TokenBatch:
            return copies.begin(next(stream))

        ahead: Future[TokenBatch] | None = None
        for number in range(self.state.step + 1, config.steps + 1):
            batch, ahead = copies.finish(load() if ahead is None else ahead.result()), None
            one, names = begin_generator(self.state, batch), [str(row) for row in batch.rows.tolist()]
            count_samples(self.state, names, range(world.rank, config.batch_size, world.size))
            begun.append((one, names, self.state.samples))
            if copies.are_ahead and number < config.steps:
                ahead = done(load)
            if wanted(number) or self.state.late is None or len(begun) == MOST:
                results = read_generator(self.state, [one for one, *_ in begun])
                for result, (_, seen, samples) in zip(results, begun, strict=True):
                    yield result._replace(samples=samples), seen
                begun.clear()

    def tensors(self) -> dict[str, Stateful]:
        """Return the weights and the optimizer's tensors."""
        return {
            "live": ModuleWeights(self.state.model),
            "optimizer": OptimizerState(self.state.optimizer, self.state.model),
        }

    def export(self, folder: Path) -> None:
        """Write the generator with the EMA weights."""
        self.state.ema.save(folder, replace=True)

    def validate(self) -> dict[str, float]:
        """Score held-out rows under the first task: bits per token at each fixed share of masks, or in raster order."""
        if self.held_out is None:
            return {}
        sums: dict[str, TokenLoss] = {}
        count = min(len(self.held_out), self.state.config.validation_limit)
        for at in range(0, count, _BATCH):
            for name, losses in self._losses(self.held_out, range(at, min(at + _BATCH, count))).items():
                before = sums.get(name)
                sums[name] = losses if before is None else TokenLoss(*map(torch.add, before, losses))
        return {name: float(total.nats_per_token) / math.log(2) for name, total in sums.items()}

    def samples(self) -> Samples:
        """Sample every task under fixed noise, from the first rows of the held-out set (of the set without one)."""
        config, source = self.state.config, self.held_out or self.rows
        ids, labels = self._batch(source, range(min(_SAMPLES, len(source))))
        values: dict[str, Any] = {}
        sheet: list[list[Any]] = []
        for share in config.tasks:
            prompt = prompt_of(self.state, share.task, ids, labels)
            sampled = complete(self.state.ema.model, prompt, config.sampling)
            values[share.task.kind] = sampled.flatten(1).tolist()
            sheet += self._images(sampled)
        return Samples(contact_sheet(sheet, [""] * len(sheet[0])) if sheet else None, values)

    def _losses(self, source: GridRows, rows: range) -> dict[str, TokenLoss]:
        config, model = self.state.config, self.state.ema.model
        ids, labels = self._batch(source, rows)
        prompt = prompt_of(self.state, config.tasks[0].task, ids, labels)
        if isinstance(model, MaskedTransformer):
            return {f"bits_at_{share:g}": loss for share, loss in validate(model, ids, prompt, list(rows)).items()}
        with torch.no_grad():
            return {"bits": autoregressive_loss(model, ids, prompt.condition, config.loss, None)}

    def _batch(self, source: GridRows, rows: range) -> tuple[Tensor, Tensor]:
        examples = [source[row] for row in rows]
        ids, labels = torch.stack([row.ids for row in examples]), torch.tensor([row.label for row in examples])
        return ids.to(self.state.world.device), labels.to(self.state.world.device)

    def _images(self, ids: Tensor) -> list[list[Any]]:
        """Return a row of images for each sample: up to five of its frames."""
        if self.state.tokenizer is None:
            return []
        with torch.inference_mode():
            video = to_uint8(self.state.tokenizer.decode(ids).cpu()).numpy()
        frames = sorted({round(i * (video.shape[1] - 1) / 4) for i in range(5)})
        return [[clip[frame] for frame in frames] for clip in video]
