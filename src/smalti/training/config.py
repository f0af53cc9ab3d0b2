"""What a training run is: model, data, losses, optimizers, and when to save, measure and draw."""

import math
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from smalti.config import Config, PathField
from smalti.data import OneKindConfig, SourceConfig
from smalti.discriminators import DiscriminatorConfig
from smalti.losses.frame_choice import Frames
from smalti.losses.perceptual import LPIPSConfig
from smalti.tokenizer import AnyTokenizerConfig

Pair = Annotated[tuple[float, float], Strict(False)]


class OptimizerConfig(Config):
    """AdamW, a linear warm-up, then cosine or constant. Weight decay is on matrices and kernels only."""

    lr: float = Field(1e-3, gt=0)
    betas: Pair = (0.9, 0.99)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(100, ge=0)
    """Steps from 0 to `lr`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    final: float = Field(0.02, ge=0, le=1)
    """The share of `lr` that the cosine ends at."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the whole gradient; null leaves it."""

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step in [0, steps)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        along = (step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * along)))


class AdversaryConfig(Config):
    """The other player: its network, its loss, and how much of it reaches the tokenizer."""

    discriminator: DiscriminatorConfig
    loss: Literal["hinge", "non_saturating"] = "hinge"
    weight: float = Field(0.1, ge=0)
    """Of the adversarial loss; with `adaptive`, of the ratio of the two gradients at the last layer."""
    adaptive: bool = False
    order: Literal["together", "alternate"] = "together"
    """Both players move at once, or the discriminator first and the tokenizer then against the new one (MagicMaster,
    VQGAN): one more pass of the discriminator over the fakes, and no `accumulate`."""
    start: int = Field(0, ge=0)
    """The step at which it begins to play."""
    ramp: int = Field(0, ge=0)
    """Steps over which its weight then rises to the whole."""
    penalty: Literal["none", "zero_centred", "one_centred"] = "none"
    """On the discriminator's gradient at real samples: R1, or MagicMaster's (norm - 1)^2."""
    penalty_weight: float = Field(1.0, ge=0)
    penalty_every: int = Field(1, ge=1)
    """Compute the penalty at every n-th step, n times as heavy."""
    lecam: float = Field(0.0, ge=0)
    """Weight of the LeCAM regulariser."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=4e-4, betas=(0.5, 0.9), schedule="constant", weight_decay=0.0)

    def share(self, step: int) -> float:
        """How much of `weight` holds at a step: 0 before `start`, then up to 1 along the ramp."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / self.ramp) if self.ramp else 1.0


class TokenizerTraining(Config):
    """A tokenizer's training run. `batch_size` is global: over all ranks and accumulated parts."""

    kind: Literal["tokenizer"] = "tokenizer"
    tokenizer: AnyTokenizerConfig
    data: SourceConfig
    validation: OneKindConfig | None = None
    """Held-out data, measured every `eval_every` steps with the averaged weights."""
    validation_limit: int = Field(32, ge=1)
    """At most so many clips of it."""
    init: PathField | None = None
    """A tokenizer or run folder to start from (an inflated one, for instance), or `smalti/tiny-image` or
    `smalti/tiny-video`; null starts from random weights."""
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    """Parts that a batch is computed in, one after the other."""
    seed: int = Field(0, ge=0)
    weights: dict[str, float]
    """Loss name -> weight: `l1`, `l2` on [-1, 1] pixels, `lpips`, and those of the quantizer. Every loss that is
    computed needs a weight and every weight a loss."""
    entropy_boost: float = Field(0.0, ge=0)
    """The entropies' weights start at (1 + this) times their value and fall to it linearly (MAGVIT-v2: 2)."""
    entropy_boost_steps: int = Field(2000, ge=1)
    lpips: LPIPSConfig | None = None
    lpips_frames: Frames = "all"
    adversary: AdversaryConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, those that are measured and kept; 0 keeps the weights themselves."""
    ema_rise: Literal["ratio", "exponential", "none"] = "ratio"
    """How the decay rises to `ema` with the updates n: as (1 + n) / (10 + n), as 1 - exp(-n / 2000) (mindone), or it is
    `ema` from the start (MagicMaster)."""
    ema_start: int = Field(0, ge=0)
    """Until so many updates the averaged weights are the weights themselves (MagicMaster: 2,000 to 200,000)."""
    ema_moves: int = Field(1, ge=1)
    """Moves of the averaged weights at an update; `ema_rise` counts them (mindone: one for each accumulated part)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions; parameters, norms, quantizer and losses stay float32."""
    workers: int = Field(0, ge=0)
    """Processes that read data, per rank."""
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    """Checkpoints to keep: the newest ones."""
    sample_every: int = Field(500, ge=1)
    """Steps between pictures of reconstructions."""
    eval_every: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "TokenizerTraining":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate ({self.accumulate}) must divide batch_size ({self.batch_size})")
        if (self.lpips is None) != ("lpips" not in self.weights):
            raise ValueError("lpips and weights.lpips go together: give both or neither")
        if self.accumulate > 1 and self.adversary is not None and self.adversary.order == "alternate":
            raise ValueError("adversary.order alternate needs accumulate 1: the discriminator moves within the batch")
        return self

    def ema_decay(self, updates: int) -> float:
        """The decay of the averaged weights at the update after `updates` others: the product of its moves' decays."""
        if updates < self.ema_start:
            return 0.0
        moves = range(updates * self.ema_moves, (updates + 1) * self.ema_moves)
        return math.prod(self._decay_of_move(n) for n in moves)

    def _decay_of_move(self, n: int) -> float:
        if self.ema_rise == "exponential":
            return self.ema * (1 - math.exp(-n / 2000))
        return min(self.ema, (1 + n) / (10 + n)) if self.ema_rise == "ratio" else self.ema


RESUMABLE = {
    "workers",
    "log_every",
    "save_every",
    "keep",
    "sample_every",
    "eval_every",
    "validation_limit",
    "accumulate",
}
"""Fields that may differ between a run and its resumption: none changes what is learnt (`accumulate`: but rounding)."""
