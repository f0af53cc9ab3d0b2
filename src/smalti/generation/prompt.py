"""What a sample begins from: tokens that stay, tokens that hint, and what it is to be."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from smalti.errors import ConfigError
from smalti.generation.blocks import Condition, NetworkConfig


class Prompt(NamedTuple):
    """Known tokens stay bit for bit; hinted ones are shown to the model until their cell is filled; the rest is drawn.

    `ids` is read where `known` or `hinted` is true, and nowhere else.
    """

    ids: Int[Tensor, "b t h w"]
    known: Bool[Tensor, "b t h w"]
    hinted: Bool[Tensor, "b t h w"] | None = None
    condition: Condition = Condition()

    @property
    def given(self) -> Bool[Tensor, "b t h w"]:
        """Where `ids` mean something."""
        return self.known if self.hinted is None else self.known | self.hinted

    def to(self, device: torch.device) -> "Prompt":
        """The same on a device."""
        ids, known, hinted, condition = self
        moved = Condition(*(None if x is None else x.to(device) for x in condition))
        return Prompt(ids.to(device), known.to(device), None if hinted is None else hinted.to(device), moved)

    def checked(self, config: NetworkConfig, hints: bool) -> "Prompt":
        """The same, without hints at known cells. Raises ConfigError for what does not fit together or the model."""
        self.condition.check(config, len(self.ids))
        for name, mask in (("known", self.known), ("hinted", self.hinted)):
            if mask is not None and mask.shape != self.ids.shape:
                raise ConfigError(
                    f"prompt: {name} is {_by(mask)} and ids are {_by(self.ids)}; both are samples x t x h x w"
                )
        if self.hinted is None or not bool((self.hinted & ~self.known).any()):
            return self._replace(hinted=None)
        if not hints:
            raise ConfigError("prompt: hinted cells need a model of hints: true; this one was trained without")
        return self._replace(hinted=self.hinted & ~self.known)


def nothing(
    count: int,
    grid: tuple[int, int, int],
    *,
    labels: Int[Tensor, "b"] | None = None,
    tasks: Int[Tensor, "b"] | None = None,
    device: torch.device | None = None,
) -> Prompt:
    """A prompt of `count` samples without any token: whole pictures or videos, of a class or of none."""
    ids = torch.zeros(count, *grid, dtype=torch.int64, device=device)
    return Prompt(ids, torch.zeros_like(ids, dtype=torch.bool), None, Condition(labels, tasks))


def beginning(prefix: Int[Tensor, "b t h w"], grid: tuple[int, int, int], condition: Condition) -> Prompt:
    """A prompt whose first latent frames are known. Raises ConfigError for a prefix that does not fit the grid."""
    frames, *side = prefix.shape[1:]
    if tuple(side) != tuple(grid[1:]) or not 1 <= frames < grid[0]:
        raise ConfigError(
            f"prefix: {_by(prefix[0])} latent tokens (t x h x w) cannot begin a grid of "
            f"{grid[0]} x {grid[1]} x {grid[2]}; it needs the same rows and columns and fewer frames"
        )
    prompt = nothing(len(prefix), grid, device=prefix.device)
    prompt.ids[:, :frames], prompt.known[:, :frames] = prefix, True
    return prompt._replace(condition=condition)


def _by(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))
