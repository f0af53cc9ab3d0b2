"""The one weighted sum of losses."""

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor

from smalti.errors import ConfigError


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """sum_i weights[i] * losses[i], a scalar. Raises ConfigError unless both have the same, non-empty set of names,
    so that a misspelt weight stops the run at its first step.
    """
    unweighted, unused = sorted(set(losses) - set(weights)), sorted(set(weights) - set(losses))
    if unweighted or unused:
        parts = [f"no weight for the loss {name!r}{_nearest(name, unused)}" for name in unweighted]
        parts += [f"no loss for the weight {name!r}{_nearest(name, unweighted)}" for name in unused]
        raise ConfigError(f"weights: {'; '.join(parts)} (losses: {', '.join(sorted(losses)) or 'none'})")
    if not losses:
        raise ConfigError("weights: there are no losses to weigh; name at least one loss and its weight")
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _nearest(name: str, others: list[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
