"""The one weighted sum of losses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.text import nearest


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """sum_i weights[i] * losses[i], a scalar. Raises ConfigError unless both have the same, non-empty set of names,
    so that a misspelt weight stops the run at its first step.
    """
    unweighted, unused = sorted(set(losses) - set(weights)), sorted(set(weights) - set(losses))
    if unweighted or unused:
        parts = [f"no weight for the loss {name!r}{nearest(name, unused, ', ')}" for name in unweighted]
        parts += [f"no loss for the weight {name!r}{nearest(name, unweighted, ', ')}" for name in unused]
        raise ConfigError(f"weights: {'; '.join(parts)} (losses: {', '.join(sorted(losses)) or 'none'})")
    if not losses:
        raise ConfigError("weights: there are no losses to weigh; name at least one loss and its weight")
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
