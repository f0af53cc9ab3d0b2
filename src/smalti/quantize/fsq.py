"""Finite scalar quantization: each channel is squashed and rounded (Mentzer et al. 2023, arXiv 2309.15505)."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.config import Tuple
from smalti.quantize.quantizer import ScalarQuantizer, ScalarQuantizerConfig

MARGIN = 1e-3
"""Share by which the squash ends beyond the outermost values (`wide`) or before them (`paper`)."""
Squash = Literal["wide", "paper"]


class FSQConfig(ScalarQuantizerConfig):
    """`levels[j]` values in channel j: prod(levels) codes."""

    kind: Literal["fsq"] = "fsq"
    levels: Tuple[int] = (8, 8, 8, 5, 5, 5)
    """Values of each channel, at least 2; their product is the codebook size, here 64,000."""
    squash: Squash = "wide"
    """Squash of z: `wide` is that of MagicMaster and vector-quantize-pytorch, whose b(0) is 0; `paper` that of the
    authors' code, a little narrower, with another shift where the number of levels is even. Their ids differ near the
    thresholds, so a model keeps the one that it was trained with."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Values per channel."""
        return self.levels

    def build(self) -> "FSQ":
        """The quantizer."""
        return FSQ(self)


class FSQ(ScalarQuantizer):
    """For L levels: h = (L-1)(1+1e-3)/2, o = 1/2 for even L else 0, s = atanh(o/h), b = h tanh(z+s) - o.

    With the paper's squash h = (L-1)(1-1e-3)/2 and s = tan(o/h) (google-research/fsq; its page has no formula of s).

    The digit is round(b) + floor(L/2), the code round(b) / floor(L/2), the surrogate b / floor(L/2). Rounding is done
    by comparing z with the points where b crosses a half: atanh((k + 1/2 + o) / h) - s.
    """

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config)
        rows = [_channel(level, max(config.levels), config.squash) for level in config.levels]
        self._squash: Tensor
        self._thresholds: Tensor
        self._values: Tensor
        for j, name in enumerate(("_squash", "_thresholds", "_values")):
            self.constant(name, torch.tensor([row[j] for row in rows], dtype=torch.float64))

    def surrogate(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The squashed z, in the units of the codes."""
        half, offset, shift, step = self._squash.T
        return (half * torch.tanh(z + shift) - offset) / step

    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
        """How many thresholds z exceeds."""
        return (z.unsqueeze(-1) > self._thresholds).sum(-1)

    def values(self) -> Float[Tensor, "d l"]:
        """(digit - floor(L/2)) / floor(L/2)."""
        return self._values


def _channel(level: int, most: int, squash: Squash) -> tuple[list[float], list[float], list[float]]:
    """(h, o, s, floor(L/2)), the L-1 thresholds padded with infinity, the L values padded with zero."""
    # h and s are rounded to float32, as they are in the public implementations: the thresholds then agree to 1e-9.
    half32 = (torch.tensor(level, device="cpu") - 1) * (1 + MARGIN if squash == "wide" else 1 - MARGIN) / 2
    offset, step = 0.5 if level % 2 == 0 else 0.0, level // 2
    half, shift = half32.item(), ((offset / half32).atanh() if squash == "wide" else (offset / half32).tan()).item()
    thresholds = [math.atanh((k + 0.5 + offset) / half) - shift for k in range(-step, level - 1 - step)]
    values = [(digit - step) / step for digit in range(level)]
    padding = most - level
    return [half, offset, shift, float(step)], thresholds + [math.inf] * padding, values + [0.0] * padding
