"""A generator's run: masked (or autoregressive) training on the rows of a token set.

Order, task, masks and dropped classes of a step follow from (seed, step) and a row's place in the global batch, dropout
from (seed, step, rank): weights, optimizer, average and step are all the state there is.
"""

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.data.shuffle import mix, sample_rng
from smalti.errors import IntegrityError
from smalti.files import load_tensors, lock, new_folder, save_tensors
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
    masked_loss,
    task_prompt,
    task_tokens,
)
from smalti.model_folder import WEIGHTS
from smalti.tokenizer import Tokenizer
from smalti.tokenizer import load as load_tokenizer
from smalti.tokens.dataset import TokenBatch, TokenDataset, token_batches
from smalti.tokens.reader import TokenSet
from smalti.training.checkpoints import (
    checkpoint_path,
    keep_newest,
    read_about,
    resume_newest,
    write_about,
)
from smalti.training.distributed import World, join_world, update_ema
from smalti.training.fit import Hooks, Watch, check_ranks, follow, patient, prepare, stoppable
from smalti.training.generator_config import CHANGEABLE, GeneratorTraining
from smalti.training.generator_log import GeneratorLog
from smalti.training.optimizer import adamw, flatten, shared, unflatten
from smalti.training.token_data import GridRows

_TASK, _DROPOUT, _MASKS = 1, 2, 3
"""What the numbers that follow from (seed, step) are for."""


@dataclass
class GeneratorState:
    """The state of a run."""

    config: GeneratorTraining
    world: World
    model: TokenModel
    objective: nn.Module
    """The loss of a batch, wrapped for several ranks."""
    average: Generator
    """Moving average of the weights: what is measured, drawn and kept."""
    optimizer: Optimizer
    tokenizer: Tokenizer | None
    step: int = 0
    """Steps made, those skipped included."""
    updates: int = 0
    """Steps that changed the weights."""


class GeneratorMade(NamedTuple):
    """What a step was, for the log; means over ranks."""

    step: int
    task: str
    loss: float
    """Per token, smoothed: what is descended."""
    bits_per_token: float
    accuracy: float
    """How often a masked part has the largest logit at its true value."""
    rate: float
    gradient: float
    """Norm before clipping."""
    skipped: bool
    """Whether the update was left out because a loss or gradient was not finite."""

    @property
    def note(self) -> str:
        """The loss, in bits too."""
        return f"loss {self.loss:.4f} bits/token {self.bits_per_token:.3f}"


class Objective(nn.Module):
    """The loss as a module, so that ranks exchange its gradients."""

    def __init__(self, model: TokenModel, config: GeneratorTraining) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, ids: Tensor, prompt: Prompt, rng: torch.Generator, chances: MaskNoise) -> TokenLoss:
        """Of true ids under a prompt; dropout is of `rng`."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            if isinstance(self.model, MaskedTransformer):
                return masked_loss(self.model, ids, prompt, self.config.loss, rng, chances)
            return autoregressive_loss(self.model, ids, prompt.condition, self.config.loss, rng, chances)


def start(config: GeneratorTraining, tokens: TokenSet, world: World) -> GeneratorState:
    """A fresh state; random weights are a function of the seed. Raises IntegrityError for another tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = config.generator.build()
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(str(config.tokenizer), world.device)
        tokens.check(tokenizer)
    model.to(world.device).train()
    classes = tokens.classes if config.generator.classes else ()
    fps = next((row.fps for row in tokens), None)
    origin = Origin(tokenizer=tokens.about.fingerprint, strides=tokens.about.strides, classes=classes, fps=fps)
    return GeneratorState(
        config=config,
        world=world,
        model=model,
        objective=shared(
            Objective(model, config), world, unused=isinstance(model, MaskedTransformer) and model.config.hints
        ),
        average=Generator(copy.deepcopy(model).requires_grad_(False).eval(), origin),
        optimizer=adamw(model, config.optimizer),
        tokenizer=tokenizer,
    )


def run_generator(
    config: GeneratorTraining,
    out: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train `config` in the folder `out`; gives the folder of the trained (averaged) generator, `out/generator`.

    With `resume` a stopped run goes on from its newest whole checkpoint, and ends with the weights of an undisturbed
    run, bit for bit on the same machine. SIGTERM and SIGINT save first. Raises SmaltiError.
    """
    with join_world(device) as world:
        rows = GridRows(config.data, config.generator)
        held = None if config.validation is None else GridRows(config.validation, config.generator)
        if held is not None and held.tokens.about != rows.tokens.about:
            raise IntegrityError(f"{config.validation}: made by another tokenizer than {config.data}")
        state = start(config, rows.tokens, world)
        if world.leads:
            prepare(config, out, resume=resume, may_change=CHANGEABLE)
            if rows.left_out:
                print(f"{config.data}: {rows.left_out:,} rows of another shape are left out", file=sys.stderr)
        world.barrier()
        with lock(out / ".lock") if world.leads else nullcontext(), stoppable() as stopped:
            digest = rows.tokens.plan
            if resume:
                resume_newest(partial(load, state), out, digest, count=len(rows), leads=world.leads)
            check_ranks(world, config, digest, state.step)

            def keep() -> None:
                save(state, out, digest)
                keep_newest(out, config.keep)

            with GeneratorLog(out, state, rows, held) as log:
                hooks = Hooks(log.write, keep, log.draw, log.validate)
                follow(train(state, rows), config, world, hooks, watch=watch, stopped=stopped)
            if world.leads:
                state.average.save(out / "generator", replace=True)
            world.barrier()
        return out / "generator"


def train(state: GeneratorState, rows: TokenDataset) -> Iterator[GeneratorMade]:
    """Steps to the end of the run, yielding after each. Saves, logs and draws nothing: the caller does."""
    config, world = state.config, state.world
    batches = token_batches(
        rows,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=state.step,
        part=(world.rank, world.size),
        workers=config.workers,
    )
    return patient(step(state, next(batches)) for _ in range(state.step, config.steps))


def step(state: GeneratorState, batch: TokenBatch) -> GeneratorMade:
    """Train on one batch of this rank; advances `state`."""
    config, world = state.config, state.world
    ids, task = batch.ids.to(world.device), task_of(config, state.step)
    prompt = prompt_of(state, task, ids, batch.labels.to(world.device))
    rng, chances = _noise(state, len(ids))
    rate = config.optimizer.rate(state.step, config.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    found: TokenLoss = state.objective(ids, prompt, rng, chances)
    entries = world.mean(found.entries.double())
    loss = found.total * (len(entries) / entries.sum())  # ranks then add up to the mean over all entries
    loss.backward()
    sums = world.mean(torch.stack([loss.detach().double(), *found.nats.double(), found.right.sum().double()]))
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip or float("inf"))
    skipped = world.any(not (bool(torch.isfinite(norm)) and math.isfinite(float(sums[0]))))
    if not skipped:
        state.optimizer.step()
        update_ema(state.average.model, state.model, config.ema_decay(state.updates))
        state.updates += 1
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    bits = float((sums[1:-1] / entries).sum()) / math.log(2)
    accuracy = float(sums[-1] / entries.sum())
    return GeneratorMade(state.step, task.kind, float(sums[0]), bits, accuracy, rate, float(norm), skipped)


def _noise(state: GeneratorState, count: int) -> tuple[torch.Generator, MaskNoise]:
    """Of a step: the generator of this rank's dropout, and what each row's place in the global batch decides."""
    config, world, model = state.config, state.world, state.config.generator
    rng = torch.Generator(world.device).manual_seed(mix(config.seed, state.step, world.rank, _DROPOUT) >> 1)
    places = [world.rank + i * world.size for i in range(count)]
    entries = model.entries if isinstance(model, MaskedConfig) else 0
    return rng, MaskNoise.of_rows(mix(config.seed, _MASKS), places, state.step, entries, world.device)


def task_of(config: GeneratorTraining, number: int) -> TaskConfig:
    """The task of a step: a function of (seed, step)."""
    shares = torch.tensor([share.share for share in config.tasks], dtype=torch.float64)
    rng = sample_rng(config.seed, number, _TASK)
    drawn = torch.rand((), generator=rng, dtype=torch.float64) * shares.sum()
    return config.tasks[min(int((shares.cumsum(0) <= drawn).sum()), len(shares) - 1)].task


def prompt_of(state: GeneratorState, task: TaskConfig, ids: Tensor, labels: Tensor) -> Prompt:
    """What is known and hinted of true ids under a task.

    Known cells have the true ids. Those of hinted cells are the ids of the condition: of the decoded rows with all that
    is not given filled in, encoded again.
    """
    config, strides = state.config.generator, state.average.origin.strides
    tasks = task_tokens(task.kind, config.tasks, len(ids))
    condition = Condition(labels if config.classes else None, None if tasks is None else tasks.to(ids.device))
    reach = None if state.tokenizer is None else state.tokenizer.encoder.reach
    prompt = task_prompt(task, ids, strides, reach=reach, condition=condition)
    if prompt.hinted is None or not bool(prompt.hinted.any()):
        return prompt
    if state.tokenizer is None or not state.average.hints:
        return prompt._replace(hinted=None)
    with torch.inference_mode():
        shown = state.tokenizer.encode(task.fill(state.tokenizer.decode(ids)))
    return prompt._replace(ids=torch.where(prompt.known, ids, shown.clone()))


def save(state: GeneratorState, folder: Path, data_digest: str) -> Path:
    """Write `folder/step-N` whole or not at all; the averaged generator in it is a generator folder of its own."""
    target = checkpoint_path(folder, state.step)
    with new_folder(target, replace=True) as part:
        state.average.save(part / "generator")
        save_tensors(part / "live.safetensors", state.model.state_dict())
        save_tensors(part / "optimizer.safetensors", flatten(state.optimizer, state.model))
        write_about(part, data_digest, state.step, state.updates)
    return target


def load(state: GeneratorState, folder: Path) -> dict[str, Any]:
    """Restore a checkpoint into a fresh state; gives what `state.json` says. Raises IntegrityError on any change."""
    about = read_about(folder)
    state.model.load_state_dict(load_tensors(folder / "live.safetensors"))
    state.average.model.load_state_dict(load_tensors(folder / "generator" / WEIGHTS))
    unflatten(state.optimizer, state.model, load_tensors(folder / "optimizer.safetensors"))
    state.step, state.updates = about["step"], about["updates"]
    return about
