"""What a generator's run is: a token set, a token model, tasks and their shares, loss, optimizer, and when to save."""

from typing import Literal

from pydantic import Field, model_validator

from smalti.config import Config, PathField, Tuple
from smalti.generation import (
    GenerationTask,
    GeneratorConfig,
    InterpolationTask,
    LossConfig,
    MaskedConfig,
    PaintingTask,
    SamplingConfig,
    TaskConfig,
)
from smalti.training.config import OptimizerConfig


class TaskShare(Config):
    """A task, and how often a batch is of it."""

    task: TaskConfig
    share: float = Field(1.0, gt=0)
    """Beside the shares of the other tasks; they need not sum to 1."""


class GeneratorTraining(Config):
    """A token model's training run. `batch_size` is global: over all ranks."""

    kind: Literal["generator"] = "generator"
    generator: GeneratorConfig
    data: PathField
    """A finished token set, whose rows all have the shape `generator.grid`."""
    validation: PathField | None = None
    """A held-out token set of the same tokenizer, measured under fixed masks with the averaged weights."""
    validation_limit: int = Field(256, ge=1)
    """At most so many rows of it."""
    tokenizer: PathField | None = None
    """The tokenizer of the set, its run, or the name of one that smalti ships: draws pictures of samples, and makes the
    conditions of tasks that hint."""
    tasks: Tuple[TaskShare] = (TaskShare(task=GenerationTask()),)
    """Every batch is of one task."""
    loss: LossConfig = LossConfig()
    sampling: SamplingConfig = SamplingConfig()
    """Of the samples in the log."""
    steps: int = Field(ge=1)
    batch_size: int = Field(256, ge=1)
    seed: int = Field(0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup=5_000, final=0.0
    )
    ema: float = Field(0.9999, ge=0, lt=1)
    """Decay of the averaged weights, those that are measured and kept; it rises as (1 + n) / (10 + n)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; parameters, norms and losses stay float32."""
    workers: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    save_every: int = Field(1_000, ge=1)
    keep: int = Field(2, ge=1)
    sample_every: int = Field(1_000, ge=1)
    eval_every: int = Field(1_000, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "GeneratorTraining":
        if not self.tasks:
            raise ValueError("tasks is empty: give at least one")
        kinds = [share.task.kind for share in self.tasks]
        known = self.generator.tasks
        missing = next((kind for kind in kinds if known and kind not in known), None)
        if missing:
            raise ValueError(f"tasks has {missing}, which generator.tasks has not ({', '.join(known)})")
        if not isinstance(self.generator, MaskedConfig):
            if set(kinds) != {"generation"}:
                raise ValueError("an autoregressive generator learns generation alone; it continues any beginning")
            return self
        for share in self.tasks:
            if isinstance(share.task, InterpolationTask | PaintingTask):
                self._check_hints(share.task.kind)
        return self

    def _check_hints(self, kind: str) -> None:
        if self.tokenizer is None:
            raise ValueError(f"task {kind} needs `tokenizer`: which tokens are known or hinted follows from pixels")
        if isinstance(self.generator, MaskedConfig) and not self.generator.hints:
            raise ValueError(f"task {kind} hints at cells: set generator.hints to true")

    def ema_decay(self, updates: int) -> float:
        """The decay of the averaged weights at the update after `updates` others."""
        return min(self.ema, (1 + updates) / (10 + updates))


CHANGEABLE = {
    "workers",
    "log_every",
    "save_every",
    "keep",
    "sample_every",
    "eval_every",
    "validation_limit",
    "sampling",
}
"""Fields that may differ between a run and its resumption: none changes what is learnt."""
