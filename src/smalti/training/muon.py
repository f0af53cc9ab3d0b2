"""Muon (Jordan et al. 2024): momentum whose every matrix is made orthogonal, so that all its directions move alike.

torch has it from 2.9 on, for matrices alone; this one takes the kernels of convolutions as matrices too, works with
every torch that smalti does, and is beside AdamW in one optimizer. On a matrix it takes the step of torch's.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW, Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's polynomial: singular values of 0.002 and more come near 1 in five turns, between 0.7 and 1.2."""


def orthogonalize(
    matrix: Float[Tensor, "m n"], turns: int = 5, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "m n"]:
    """Return nearly the orthogonal matrix next to one, by a Newton-Schulz iteration of so many turns in a number type.

    Singular vectors stay, singular values become about 1; a zero matrix stays zero.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.to(dtype)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(turns):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon(Optimizer):
    """Muon for some groups of parameters, and AdamW for those that it is given, as one optimizer.

    A kernel `out in ...` is the matrix of `out` rows. Its update is the orthogonalized Nesterov momentum times
    sqrt(max(1, out / in)), so that one learning rate suits all shapes. Weight decay is that of AdamW.
    """

    def __init__(
        self, groups: list[dict[str, Any]], adamw: AdamW, *, momentum: float, turns: int, dtype: torch.dtype
    ) -> None:
        for group in groups:
            group |= {"momentum": momentum, "turns": turns, "dtype": dtype}
        super().__init__([*groups, *adamw.param_groups], {})
        self._own = self.param_groups[: len(groups)]
        self._adamw = adamw
        self._adamw.param_groups = self.param_groups[len(groups) :]
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step along the gradients; parameters without one stay."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self._own:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        self._adamw.step()
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient, keep = self.state[parameter], parameter.grad, group["momentum"]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - keep)
        matrix = gradient.lerp(state["momentum"], keep).flatten(1)
        update = orthogonalize(matrix, group["turns"], group["dtype"]).view(parameter.shape).to(parameter.dtype)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5)
