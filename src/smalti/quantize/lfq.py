"""Lookup-free quantization: the sign of each channel (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737, section 3)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Tuple
from smalti.quantize.quantizer import LossName, ScalarQuantizer, ScalarQuantizerConfig


class LFQConfig(ScalarQuantizerConfig):
    """`bits` channels of two levels each: 2^bits codes."""

    kind: Literal["lfq"] = "lfq"
    bits: int = Field(18, ge=1, le=62)
    """Number of channels, one bit each; the codebook has 2^bits codes."""
    losses: Tuple[LossName] = ("token_entropy", "batch_entropy", "commitment")
    """Losses that `forward` returns, unweighted. Without an entropy loss nothing keeps the codes in use."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Two values per channel."""
        return (2,) * self.bits

    def build(self) -> "LFQ":
        """The quantizer."""
        return LFQ(self)


class LFQ(ScalarQuantizer):
    """code = +1 where z > 0, else -1; the gradient passes unchanged (surrogate z)."""

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config)
        self._values: Tensor
        self.constant("_values", torch.tensor([[-1.0, 1.0]] * config.bits))

    def surrogate(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Z itself."""
        return z

    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
        """1 where z > 0 (strictly: zero is digit 0)."""
        return (z > 0).long()

    def values(self) -> Float[Tensor, "d l"]:
        """-1 and +1."""
        return self._values
