"""The common part of LFQ, FSQ and DSQ: one digit per channel.

Each channel j of a latent takes one of `levels[j]` values. A digit says which one; a code is the value looked up from
the digit. Digits are found by comparing, never by rounding, so they hold under any autocast.
"""

import math
from abc import abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from smalti.config import Config, Tuple
from smalti.quantize.entropy import WholeCode, batch_entropy, soft_digits, token_entropy
from smalti.quantize.quantizer import LARGEST_CODEBOOK, Quantizer, straight_through

LARGEST_BATCH_ENTROPY = 2**24
"""The marginal over all codes is one float each: 64 MB here, twice that with its gradient."""

LossName = Literal["token_entropy", "batch_entropy", "commitment"]


class ScalarQuantizerConfig(Config):
    """The fields that every scalar quantizer has."""

    temperature: float = Field(1.0, gt=0)
    """Temperature of the soft digits in the entropies: p(digit) ~ exp(-(z - value)^2 / temperature). The paper's LFQ
    has 0.01, where the entropy has no gradient once |z| > 0.03; at 1 it still pulls at |z| = 1."""
    losses: Tuple[LossName] = ()
    """Losses that `forward` returns, unweighted."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Values per channel."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _within_limits(self) -> "ScalarQuantizerConfig":
        levels = self.digit_levels
        if not levels or min(levels) < 2:
            raise ValueError(f"every channel needs at least 2 levels (found {list(levels)})")
        size = math.prod(levels)
        if size > LARGEST_CODEBOOK:
            raise ValueError(f"{size:,} codes are more than 2^62, the most that an id can name")
        if size > LARGEST_BATCH_ENTROPY and "batch_entropy" in self.losses:
            raise ValueError(f"batch_entropy is exact over all codes and takes at most 2^24 of them (found {size:,})")
        return self


class ScalarQuantizer(Quantizer):
    """A quantizer that treats each channel of z on its own: a digit a channel, whose value is looked up.

    A kind has a surrogate, thresholds and values; everything here is in rows, `n d`, one row a position.
    """

    def __init__(self, config: ScalarQuantizerConfig) -> None:
        super().__init__(config.digit_levels, len(config.digit_levels))
        self.config = config

    @abstractmethod
    def surrogate(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The differentiable path from z to the scale of `values`; the straight-through gradient flows along it."""

    @abstractmethod
    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
        """The digit of every channel: how many of its thresholds z exceeds."""

    @abstractmethod
    def values(self) -> Float[Tensor, "d l"]:
        """The value of each digit, before `scale_codes`; rows of channels with fewer levels are padded at the end."""

    def scale_codes(self, values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """A per-channel map from values to codes; the identity unless the quantizer learns one."""
        return values

    def look_up(self, digits: Int[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the code of each digit."""
        return self.scale_codes(self._values_of(digits))

    def pass_through(
        self, z: Float[Tensor, "n d"], digits: Int[Tensor, "n d"], whole: WholeCode | None = None
    ) -> tuple[Float[Tensor, "n d"], dict[str, Tensor]]:
        """Return the codes of digits with the gradient of the surrogate, and the losses that the config asks for."""
        surrogate, values = self.surrogate(z), self._values_of(digits)
        return self.scale_codes(straight_through(surrogate, values)), self._losses(surrogate, values, whole)

    def recognise(self, codes: Float[Tensor, "n d"]) -> tuple[Int[Tensor, "n d"], Float[Tensor, " n"]]:
        """Return the nearest digits channel by channel, and the largest distance over the channels."""
        table = self.scale_codes(self.values().T).T  # a column of values is a row of channels
        present = torch.arange(table.shape[1], device=table.device) < self._level_counts[:, None]
        far = (codes.unsqueeze(-1) - table).abs().masked_fill(~present, torch.inf)
        distance, digits = far.min(-1)
        steps = table.diff(dim=1).abs().masked_fill(~present[:, 1:], torch.inf).amin(1)
        return digits, (distance / steps).amax(1)

    def _values_of(self, digits: Int[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return self.values()[torch.arange(self.dim, device=digits.device), digits]

    def _losses(self, surrogate: Tensor, values: Tensor, whole: WholeCode | None) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        wanted = self.config.losses
        if "commitment" in wanted:
            losses["commitment"] = (surrogate - values).square().mean()
        if "token_entropy" in wanted or "batch_entropy" in wanted:
            log_p = soft_digits(surrogate, self.values(), self.levels, self.config.temperature)
            if "token_entropy" in wanted:
                losses["token_entropy"] = token_entropy(log_p)
            if "batch_entropy" in wanted:
                losses["batch_entropy"] = batch_entropy(log_p, self.levels, whole)
        return losses
