"""One training step of a generator: masked or autoregressive, on rows of a token set."""

import math
from typing import Any, NamedTuple

import torch

from smalti.data.shuffle import mix
from smalti.generation import MaskedConfig, MaskNoise, TokenLoss
from smalti.tokens.dataset import TokenBatch
from smalti.training.generator_state import GeneratorState, prompt_of, task_of_step
from smalti.training.optimizer import clip_gradient, update_ema

_DROPOUT, _MASKS = 2, 3
"""The streams of random numbers of a (seed, step), beside the choice of its task."""


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
    for group in state.optimizer.param_groups:
        group["lr"] = lr
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
