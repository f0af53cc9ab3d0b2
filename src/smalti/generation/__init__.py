"""Token models: a masked transformer and an autoregressive one over ids of any `levels`, their tasks and sampling.

Everything here works on integers, `levels` and class labels; the token set says what the integers mean.
"""

from typing import Annotated

from pydantic import Field

from smalti.generation.autoregressive import AutoregressiveConfig, AutoregressiveTransformer, sample_autoregressive
from smalti.generation.blocks import SIZES, Condition, TaskKind
from smalti.generation.factorize import Factorization, balanced
from smalti.generation.loss import LossConfig, MaskNoise, TokenLoss, autoregressive_loss, masked_loss, validate
from smalti.generation.masked import (
    MaskedConfig,
    MaskedInput,
    MaskedTransformer,
    SamplingConfig,
    SamplingStep,
    sample,
    sample_steps,
)
from smalti.generation.model import Generator, Origin, TokenModel, complete, extend, find_generator
from smalti.generation.prompt import (
    GenerationTask,
    InterpolationTask,
    LatentCells,
    PaintingTask,
    PredictionTask,
    Prompt,
    TaskConfig,
    empty_prompt,
    keep_static,
    latent_cells,
    paste_known,
    prefix_prompt,
    task_cells,
    task_prompt,
    task_tokens,
)
from smalti.generation.sampling import GuidanceConfig, TokenSamplingConfig

GeneratorConfig = Annotated[MaskedConfig | AutoregressiveConfig, Field(discriminator="kind")]

__all__ = [
    "SIZES",
    "AutoregressiveConfig",
    "AutoregressiveTransformer",
    "Condition",
    "Factorization",
    "GenerationTask",
    "Generator",
    "GeneratorConfig",
    "GuidanceConfig",
    "InterpolationTask",
    "LatentCells",
    "LossConfig",
    "MaskNoise",
    "MaskedConfig",
    "MaskedInput",
    "MaskedTransformer",
    "Origin",
    "PaintingTask",
    "PredictionTask",
    "Prompt",
    "SamplingConfig",
    "SamplingStep",
    "TaskConfig",
    "TaskKind",
    "TokenLoss",
    "TokenModel",
    "TokenSamplingConfig",
    "autoregressive_loss",
    "balanced",
    "complete",
    "empty_prompt",
    "extend",
    "find_generator",
    "keep_static",
    "latent_cells",
    "masked_loss",
    "paste_known",
    "prefix_prompt",
    "sample",
    "sample_autoregressive",
    "sample_steps",
    "task_cells",
    "task_prompt",
    "task_tokens",
    "validate",
]
