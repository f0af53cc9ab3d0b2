"""Parts in and parts out: one embedding table a group, summed at the input and tied to the group's head."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.generation.blocks import Block, NetworkConfig
from smalti.generation.factorize import Factorization


class Vocabulary(nn.Module):
    """logits_g = norm(gelu(W f_g + b)) E_g^T + c_g, where E_g is the table that part g is embedded by.

    With no `part_layers`, f_g is the feature of the token itself: all parts are drawn at once, as if independent given
    the feature. With them, f_g comes from a small causal stack over [feature, part 0, part 1, ...] (next sub-token
    prediction, Open-MAGVIT2): p(parts) = prod_g p(part_g | feature, parts before g), any joint distribution.
    """

    def __init__(self, config: NetworkConfig, masked: bool) -> None:
        super().__init__()
        self.factorization: Factorization = config.factorization()
        self.sizes = self.factorization.sizes
        self.tables = nn.ModuleList(nn.Embedding(size + masked, config.width) for size in self.sizes)
        """Of a masked model, with one more row each: the mask."""
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in self.sizes)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.part_layers))
        self.part_norm = nn.LayerNorm(config.width) if config.part_layers else None

    def embed(self, parts: Int[Tensor, "*b g"]) -> Float[Tensor, "*b d"]:
        """The sum of the parts' rows; part `sizes[g]` is the mask."""
        embedded: Tensor = self.tables[0](parts[..., 0])
        for g in range(1, len(self.sizes)):
            embedded = embedded + self.tables[g](parts[..., g])
        return embedded

    def logits(self, features: Float[Tensor, "r d"], parts: Int[Tensor, "r g"]) -> list[Float[Tensor, "r _"]]:
        """Logits of every part, each given the true parts before it (which matter with `part_layers` alone)."""
        if not self.blocks:
            shared = self._ready(features)
            return [self._scores(shared, g) for g in range(len(self.sizes))]
        deep = self._ready(self._deepen(features, parts[:, :-1]))
        return [self._scores(deep[:, g], g) for g in range(len(self.sizes))]

    def logits_at(self, g: int, features: Float[Tensor, "r d"], before: Int[Tensor, "r k"]) -> Float[Tensor, "r v"]:
        """Logits of part g given the g parts before it."""
        feature = self._deepen(features, before[:, :g])[:, -1] if self.blocks else features
        return self._scores(self._ready(feature), g)

    def _deepen(self, features: Tensor, before: Tensor) -> Tensor:
        assert self.part_norm is not None
        rows = [features] + [self.tables[g](before[:, g]) for g in range(before.shape[1])]
        x = torch.stack(rows, 1)
        for block in self.blocks:
            x = block(x, causal=True)
        out: Tensor = self.part_norm(x)
        return out

    def _ready(self, feature: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(feature)))
        return out

    def _scores(self, ready: Tensor, g: int) -> Tensor:
        table: Tensor = self.tables[g].weight[: self.sizes[g]]  # type: ignore[index]
        return F.linear(ready, table, self.biases[g])
