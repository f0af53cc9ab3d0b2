"""Token models: a masked transformer and an autoregressive one over ids of any `levels`, their tasks and sampling.

Everything here sees integers, `levels` and class labels; what the integers mean, the token set names.
"""

from typing import Annotated

from pydantic import Field

from smalti.generation.autoregressive import AutoregressiveConfig, AutoregressiveTransformer, sample_autoregressive
from smalti.generation.blocks import SIZES, Condition, TaskKind
from smalti.generation.factorize import Factorization, balanced
from smalti.generation.fill import TokenModel, complete, extend
from smalti.generation.guidance import GuidanceConfig
from smalti.generation.logits import DrawConfig
from smalti.generation.loss import Chances, LossConfig, TokenLoss, autoregressive_loss, masked_loss, validate
from smalti.generation.model import Generator, Origin
from smalti.generation.prompt import Prompt, beginning, nothing
from smalti.generation.sample import SamplingConfig, sample, sample_steps
from smalti.generation.tasks import (
    Cells,
    GenerationTask,
    InterpolationTask,
    PaintingTask,
    PredictionTask,
    TaskConfig,
    cells,
    hold,
    paste,
    task_prompt,
    task_tokens,
)
from smalti.generation.transformer import MaskedConfig, MaskedTransformer, Seen

GeneratorConfig = Annotated[MaskedConfig | AutoregressiveConfig, Field(discriminator="kind")]

__all__ = [
    "SIZES",
    "AutoregressiveConfig",
    "AutoregressiveTransformer",
    "Cells",
    "Chances",
    "Condition",
    "DrawConfig",
    "Factorization",
    "GenerationTask",
    "Generator",
    "GeneratorConfig",
    "GuidanceConfig",
    "InterpolationTask",
    "LossConfig",
    "MaskedConfig",
    "MaskedTransformer",
    "Origin",
    "PaintingTask",
    "PredictionTask",
    "Prompt",
    "SamplingConfig",
    "Seen",
    "TaskConfig",
    "TaskKind",
    "TokenLoss",
    "TokenModel",
    "autoregressive_loss",
    "balanced",
    "beginning",
    "cells",
    "complete",
    "extend",
    "hold",
    "masked_loss",
    "nothing",
    "paste",
    "sample",
    "sample_autoregressive",
    "sample_steps",
    "task_prompt",
    "task_tokens",
    "validate",
]
