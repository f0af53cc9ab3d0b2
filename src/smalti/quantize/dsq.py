"""Dynamic scalar quantization: the bins of each channel are learned (MagicMaster's "FDQ", in its consistent form).

Per channel with L levels, n = L - 1 bins and u = scale_in * z:

    widths      l_i = 2 softmax_i(max(a_i, 1e-3))        sum_i l_i = 2
    knots       b_0 = start, b_{i+1} = b_i + l_i
    thresholds  t_i = b_i + l_i / 2                      the middle of each bin
    digit       #{i : u > t_i}
    value       -1 + 2 digit / n
    surrogate   -1 + (2/n) sum_i clamp((u - b_i) / l_i, 0, 1)
    code        scale_out * value + bias

The surrogate is the piecewise linear ramp that the staircase of values crosses at every bin's middle. The digit always
comes from u: MagicMaster recomputes it from the scaled code, which is wrong as soon as the scales have moved.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.config import Tuple
from smalti.quantize.quantizer import ScalarQuantizer, ScalarQuantizerConfig

_LEAST_WIDTH = 1e-3


class DSQConfig(ScalarQuantizerConfig):
    """`levels[j]` values in channel j with learned bins: prod(levels) codes."""

    kind: Literal["dsq"] = "dsq"
    levels: Tuple[int] = (8, 8, 8, 5, 5, 5)
    """Values of each channel, at least 2; their product is the codebook size, here 64,000."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Values per channel."""
        return self.levels

    def build(self) -> "DSQ":
        """The quantizer."""
        return DSQ(self)


class DSQ(ScalarQuantizer):
    """Starts as rounding of clip(z, -1, 1) onto L even steps, ends included, and learns from there.

    Parameters, one row a channel: `start`, `widths` (logits a, padded to the most bins; the padding takes no part),
    `scale_in`, `scale_out`, `bias`.
    """

    def __init__(self, config: DSQConfig) -> None:
        super().__init__(config)
        bins = torch.tensor(config.levels) - 1
        most = max(config.levels) - 1
        self._present: Tensor
        self._values: Tensor
        self._step: Tensor
        step = 2.0 / bins.double()
        self.constant("_present", torch.arange(most) < bins[:, None])
        self.constant("_step", step)
        self.constant("_values", -1 + step[:, None] * torch.arange(most + 1))
        self.start = nn.Parameter(torch.full((self.dim,), -1.0))
        self.widths = nn.Parameter(step[:, None].repeat(1, most).float())
        self.scale_in = nn.Parameter(torch.ones(self.dim))
        self.scale_out = nn.Parameter(torch.ones(self.dim))
        self.bias = nn.Parameter(torch.zeros(self.dim))

    def bins(self) -> tuple[Float[Tensor, "d n"], Float[Tensor, "d n"]]:
        """Left knots b_i and widths l_i of every bin; absent bins have width 0."""
        logits = self.widths.clamp_min(_LEAST_WIDTH).masked_fill(~self._present, -torch.inf)
        widths = 2 * logits.softmax(1)
        return self.start[:, None] + widths.cumsum(1) - widths, widths

    def surrogate(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The piecewise linear ramp through the middles of the bins."""
        knots, widths = self.bins()
        u = (z * self.scale_in).unsqueeze(-1)
        safe = widths.where(self._present, torch.ones_like(widths))
        ramps = ((u - knots) / safe).clamp(0, 1)
        return -1 + self._step * (ramps * self._present.to(u.dtype)).sum(-1)

    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
        """How many bin middles scale_in * z exceeds."""
        with torch.no_grad():
            knots, widths = self.bins()
            middles = (knots + widths / 2).masked_fill(~self._present, torch.inf)
            return ((z * self.scale_in).unsqueeze(-1) > middles).sum(-1)

    def values(self) -> Float[Tensor, "d l"]:
        """-1 + 2 digit / (L - 1), before scale and bias."""
        return self._values

    def scale_codes(self, values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """scale_out * value + bias."""
        return values * self.scale_out + self.bias
