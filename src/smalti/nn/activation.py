"""The activation of all networks."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def silu(fresh: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x * sigmoid(x). Written over its argument, which nobody else may hold, where nothing is differentiated."""
    return F.silu(fresh, inplace=not (torch.is_grad_enabled() and fresh.requires_grad))
