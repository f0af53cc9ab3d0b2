"""The config of a generator's run: token set, token model, tasks and their shares, loss, optimizer."""

from typing import ClassVar, Literal

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
from smalti.training.config import OptimizerConfig, RunConfig


class TaskShare(Config):
    """A task and its share of the batches."""

    task: TaskConfig
    """The task."""
    share: float = Field(1.0, gt=0)
    """Relative frequency of the task; the shares need not sum to 1."""


class GeneratorTraining(RunConfig):
    """The config of a token model's training run."""

    changeable: ClassVar[frozenset[str]] = RunConfig.changeable | {"sampling"}

    kind: Literal["generator"] = "generator"
    generator: GeneratorConfig
    """Architecture of the token model: masked or autoregressive."""
    data: PathField
    """A finished token set, held in memory at 2 to 8 bytes a token. Rows of another shape than `generator.grid` (the
    short last clip of a video) are left out."""
    class_conditional: bool | None = None
    """Whether the model learns the classes of the token set. In place of null, `smalti train` sets it to whether the
    set has labels or `generator.classes` is above 0, and `generator.classes` to the number of classes of the set if it
    is 0."""
    validation: PathField | None = None
    """A held-out token set of the same tokenizer, scored with the EMA weights under the first task: bits per token with
    0.25, 0.5, 0.75 and all tokens masked (autoregressive: over all tokens)."""
    tokenizer: PathField | None = None
    """Tokenizer of the token set: a folder, a run, or the name of one that ships with the package. Needed for sample
    images, and for tasks with hints."""
    tasks: Tuple[TaskShare] = (TaskShare(task=GenerationTask()),)
    """Tasks and their shares. Every batch is of one task, chosen by (seed, step)."""
    loss: LossConfig = LossConfig()
    """Loss: masking schedule, label smoothing, class dropout."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling of the sample images in the log."""
    batch_size: int = Field(256, ge=1, le=1 << 20)
    """Global batch size, over all ranks."""
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup=5_000, final=0.0
    )
    """Optimizer of the token model."""
    ema: float = Field(0.9999, ge=0, lt=1)
    """Decay of the EMA weights, which are evaluated, sampled from and exported; it rises as (1 + n) / (10 + n)."""
    validation_limit: int = Field(256, ge=1)
    """Largest number of rows of `validation` that are scored."""
    save_every: int = Field(1_000, ge=1)
    """Steps between checkpoints."""
    sample_every: int = Field(1_000, ge=1)
    """Steps between sample images."""
    eval_every: int = Field(1_000, ge=1)
    """Steps between validations."""

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
