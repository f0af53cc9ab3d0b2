"""The first weights of a tokenizer as other projects have them, by the rules of their frameworks.

Networks are made with smalti's own: torch's defaults, but zeros in the second convolution of every residual block, in
the taps of past frames and in the biases of modulations, so that a fresh network is its stems, strides and skips alone
and treats every frame as an image.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from smalti.nn.blocks import fill_truncated_normal
from smalti.nn.causal import CausalConv, CausalUpsample
from smalti.tokenizer.tokenizer import Tokenizer

Initialisation = Literal["smalti", "torch", "magicmaster", "flax"]


@torch.no_grad()
def initialise(tokenizer: Tokenizer, kind: Initialisation) -> None:
    """Set all convolutions and linear layers by a rule, from torch's global rng; norms and quantizers stay.

    The kernels of a causal convolution count as one kernel over space and time, of `fan_in` inputs.

    - `smalti`: as they are.
    - `torch`: weights and biases ~ U(-1, 1) / sqrt(fan_in), torch's default, which is MindSpore's too (mindone).
    - `magicmaster`: the same, but an upsampling convolution is ~ U(-1, 1) sqrt(6 / fan_in) with the weights of all
      sub-pixels of a channel equal (no checkerboard at the start) and biases 0.
    - `flax`: LeCun normal, N(0, 1 / fan_in) cut at two standard deviations, and biases 0 (MAGVIT).
    """
    if kind == "smalti":
        return
    taps: set[nn.Module] = set()
    for module in tokenizer.modules():
        if isinstance(module, CausalConv):
            layers = [*module.past, module.now]
            taps.update(layers)
            _fill([layer.get_parameter("weight") for layer in layers], module.now.bias, kind)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module not in taps:
            _fill([module.weight], module.bias, kind)
    for module in tokenizer.modules():
        if isinstance(module, CausalUpsample) and kind == "magicmaster":
            _equal_phases(module)


def _fill(kernels: list[Tensor], bias: Tensor | None, kind: Initialisation) -> None:
    fan_in = sum(kernel[0].numel() for kernel in kernels)
    for kernel in kernels:
        if kind == "flax":
            # Cut at two standard deviations a normal distribution keeps 0.8796 of its own.
            deviation = 1 / math.sqrt(fan_in) / 0.87962566103423978
            fill_truncated_normal(kernel, deviation)
        else:
            nn.init.uniform_(kernel, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    if bias is not None and kind == "flax":
        nn.init.zeros_(bias)
    elif bias is not None:
        nn.init.uniform_(bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def _equal_phases(module: CausalUpsample) -> None:
    """Give all phases of a channel, in time, height and width, the same weights."""
    conv, (time, space) = module.conv, module.strides
    kernels = [layer.get_parameter("weight") for layer in (*conv.past, conv.now)]
    bound = math.sqrt(6 / sum(kernel[0].numel() for kernel in kernels))
    for kernel in kernels:
        phases = kernel.view(time, -1, space**2, *kernel.shape[1:])  # (time phase, channel, row and column phase)
        one = torch.empty_like(phases[:1, :, :1]).uniform_(-bound, bound)
        phases.copy_(one.expand_as(phases))
    if conv.now.bias is not None:
        nn.init.zeros_(conv.now.bias)
