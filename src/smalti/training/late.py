"""Steps whose figures are read later: on a CUDA device the host waits for it once every so many steps, not at each.

A step that is not finite changes nothing. On a CPU the host looks, and leaves the update out. A CUDA device decides by
itself: AdamW and Muon take a tensor that says whether to skip, averages keep what they were, and how many steps have
changed the weights, on which the decay of the EMA depends, is counted there until the host reads the figures of all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 100
"""Steps that are begun before any of them is read."""


def decides_alone(device: torch.device) -> bool:
    """Return whether a device decides by itself which steps are skipped: the one place where devices differ in it."""
    return device.type == "cuda"


class Late:
    """The steps since the last reading, as far as the device must know of them."""

    def __init__(self, decays: Sequence[float], device: torch.device) -> None:
        """`decays` are those of the EMA at the next updates, `MOST` of them."""
        self._decays = torch.tensor(decays, dtype=torch.float64).to(device, non_blocking=True)
        self._updates = torch.zeros(1, dtype=torch.int64, device=device)

    def ema_decay(self, skip: Tensor) -> Tensor:
        """Return the decay of the EMA at this step, 1 where it is skipped; count the step where it is not."""
        decay = torch.where(skip > 0, 1.0, self._decays.gather(0, self._updates)[0])
        self._updates += (skip == 0).long()
        return decay
