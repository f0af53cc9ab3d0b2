"""The state of a generator's run, and the prompts that its steps and samples have.

Order, task, masks and dropped classes of a step follow from (seed, step) and a row's place in the global batch, dropout
from (seed, step, rank): weights, optimizer, EMA weights and step are all the state there is.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.data.shuffle import sample_rng
from smalti.families import load as load_tokenizer
from smalti.generation import (
    Condition,
    Generator,
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
from smalti.training.distributed import World
from smalti.training.generator_config import GeneratorTraining
from smalti.training.optimizer import adamw, wrap_ddp
from smalti.training.task import RunState
from smalti.training.token_data import GridRows
from smalti.video import limit_pixels

_TASK = 1
"""Apart from the noise and the masks of a step, which generator_step.py numbers from 2."""


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
    origin = Origin(tokenizer=info.fingerprint, strides=info.strides, classes=classes, fps=fps)
    unused = isinstance(model, MaskedTransformer) and model.config.hints
    return GeneratorState(
        config=config,
        world=world,
        model=model,
        objective=wrap_ddp(Objective(model, config), world, unused=unused),
        ema=Generator(copy.deepcopy(model).requires_grad_(False).eval(), origin),
        optimizer=adamw(model, config.optimizer),
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
