"""Distances of pixels: means over all elements, in float32 or wider.

With pixels in [-1, 1] an l1 is twice, an l2 four times that of pixels in [0, 1].
"""

import torch
from jaxtyping import Float
from torch import Tensor


def l1(recon: Float[Tensor, "b 3 t h w"], video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
    """mean |recon - video|."""
    return (widen(recon) - widen(video)).abs().mean()


def l2(recon: Float[Tensor, "b 3 t h w"], video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
    """mean (recon - video)^2."""
    return (widen(recon) - widen(video)).square().mean()


def widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """bfloat16 and float16 as float32; float32 and float64 as they are. Losses are computed after it, because a mean
    over 10^6 elements needs more than the 8 bits of bfloat16.
    """
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
