"""The state of a generator's run, and one training step: masked or autoregressive, on rows of a token set."""

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.data.source import mix, sample_rng
from smalti.errors import ConfigError
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
    masked_loss,
    task_prompt,
    task_tokens,
)
from smalti.tokenizer import Tokenizer
from smalti.tokens.dataset import TokenBatch
from smalti.training.distributed import World
from smalti.training.generator_config import GeneratorTraining
from smalti.training.optimizer import clip_gradient, make_optimizer, set_lr, update_ema, wrap_ddp
from smalti.training.task import RunState
from smalti.training.token_data import GridRows
from smalti.video import limit_pixels

_TASK, _DROPOUT, _MASKS = 1, 2, 3
"""The streams of random numbers of a (seed, step)."""


@dataclass(kw_only=True)
class GeneratorState(RunState):
    """The state of a run."""

    config: GeneratorTraining
    model: TokenModel
    objective: nn.Module
    """The loss of a batch, wrapped for several ranks."""
    ema: Generator
    """The generator with the EMA weights: it is validated, sampled from and kept."""
    optimizer: Optimizer
    tokenizer: Tokenizer | None


class Objective(nn.Module):
    """The loss as a module, so that ranks exchange its gradients."""

    def __init__(self, model: TokenModel, config: GeneratorTraining) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, ids: Tensor, prompt: Prompt, rng: torch.Generator, chances: MaskNoise) -> TokenLoss:
        """Return the loss of true ids under a prompt; dropout is of `rng`."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            if isinstance(self.model, MaskedTransformer):
                return masked_loss(self.model, ids, prompt, self.config.loss, rng, chances)
            return autoregressive_loss(self.model, ids, prompt.condition, self.config.loss, rng, chances)


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
    model.to(world.device).train()
    classes = rows.classes if config.generator.classes else ()
    fps = next((row.fps for row in tokens), None)
    info = tokens.tokenizer_info
    if info.first_frames > 1:
        raise ConfigError(
            f"data: the tokenizer of this token set puts {info.first_frames} frames into the first latent; token models"
            " are of videos whose first frame stands alone"
        )
    origin = Origin(tokenizer=info.fingerprint, strides=info.strides, classes=classes, fps=fps)
    unused = isinstance(model, MaskedTransformer) and model.config.hints
    return GeneratorState(
        config=config,
        world=world,
        model=model,
        objective=wrap_ddp(Objective(model, config), world, unused=unused),
        ema=Generator(copy.deepcopy(model).requires_grad_(False).eval(), origin),
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
    in.
    """
    config, strides = state.config.generator, state.ema.origin.strides
    tasks = task_tokens(task.kind, config.tasks, len(ids))
    condition = Condition(labels if config.classes else None, None if tasks is None else tasks.to(ids.device))
    reach = None if state.tokenizer is None else state.tokenizer.encoder.reach
    prompt = task_prompt(task, ids, strides, reach=reach, condition=condition)
    if prompt.hinted is None or not bool(prompt.hinted.any()):
        return prompt
    if state.tokenizer is None or not state.ema.hints:
        return prompt._replace(hinted=None)
    with torch.inference_mode():
        shown = state.tokenizer.encode(limit_pixels(task.fill(state.tokenizer.decode(ids))))
    return prompt._replace(ids=torch.where(prompt.known, ids, shown.clone()))


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

    @property
    def note(self) -> str:
        """The loss, in bits too."""
        return f"loss {self.loss:.4f} bits/token {self.bits_per_token:.3f}"

    def line(self) -> dict[str, Any]:
        """Return the line for log.jsonl."""
        return self._asdict()


def generator_step(state: GeneratorState, batch: TokenBatch) -> GeneratorStep:
    """Train on one batch of this rank; advances `state`."""
    config, world = state.config, state.world
    ids, task = batch.ids.to(world.device), task_of_step(config, state.step)
    prompt = prompt_of(state, task, ids, batch.labels.to(world.device))
    rng, chances = _noise(state, len(ids))
    lr = config.optimizer.lr_at(state.step, config.steps)
    set_lr(state.optimizer, config.optimizer, lr)
    losses: TokenLoss = state.objective(ids, prompt, rng, chances)
    entries = world.mean(losses.entries.double())
    loss = losses.total * (len(entries) / entries.sum())  # ranks then add up to the mean over all entries
    loss.backward()
    sums = world.mean(torch.stack([loss.detach().double(), *losses.nats.double(), losses.right.sum().double()]))
    norm = clip_gradient(state.model, config.optimizer.clip)
    skipped = world.any(not (bool(torch.isfinite(norm)) and math.isfinite(float(sums[0]))))
    if not skipped:
        state.optimizer.step()
        update_ema(state.ema.model, state.model, config.ema_decay(state.updates))
        state.updates += 1
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    bits = float((sums[1:-1] / entries).sum()) / math.log(2)
    accuracy = float(sums[-1] / entries.sum())
    return GeneratorStep(state.step, task.kind, float(sums[0]), bits, accuracy, lr, float(norm), skipped)


def _noise(state: GeneratorState, count: int) -> tuple[torch.Generator, MaskNoise]:
    """Return this rank's dropout generator, and the random numbers of each row by its place in the global batch."""
    config, world, model = state.config, state.world, state.config.generator
    rng = torch.Generator(world.device).manual_seed(mix(config.seed, state.step, world.rank, _DROPOUT) >> 1)
    places = [world.rank + i * world.size for i in range(count)]
    entries = model.entries if isinstance(model, MaskedConfig) else 0
    return rng, MaskNoise.of_rows(mix(config.seed, _MASKS), places, state.step, entries, world.device)
