"""The masked transformer of MAGVIT-v2 (Yu et al. 2023, arXiv 2310.05737, section 3), pre-norm and with QK-norm."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from smalti.generation.blocks import SIZES, Condition, NetworkConfig, SizeName, Trunk, initialize
from smalti.generation.masking import Unit
from smalti.generation.positions import places
from smalti.generation.vocabulary import Vocabulary


class MaskedConfig(NetworkConfig):
    """A masked transformer. By default L: 305.7 M parameters with 2^18 codes, 16 x 16 cells and 1,000 classes."""

    kind: Literal["masked"] = "masked"
    unit: Unit = Field("token")
    """Unit of masking in training and sampling: a whole token, or each part on its own (MaskBit)."""
    hints: bool = False
    """Whether masked cells may show the token of a condition in place of the mask (COMMIT, MAGVIT)."""

    def sized(self, size: SizeName) -> "MaskedConfig":
        """A copy with the width, depth and heads of S, B, L or H."""
        return self.replace(SIZES[size]._asdict())

    @property
    def entries(self) -> int:
        """How many can be masked: the tokens of the grid, or all of their parts."""
        return math.prod(self.grid) * (len(self.factorization().sizes) if self.unit == "part" else 1)

    def build(self) -> "MaskedTransformer":
        """The model, with weights from torch's global rng."""
        return MaskedTransformer(self)


class Seen(NamedTuple):
    """What the masked model sees."""

    parts: Int[Tensor, "b t h w g"]
    """`sizes[g]` where part g is masked."""
    condition: Condition = Condition()
    hinted: Bool[Tensor, "b t h w"] | None = None
    """Cells that show a condition's token, which may be wrong."""


class MaskedTransformer(nn.Module):
    """Every token sees every other; a masked part is predicted from all that is not masked."""

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config, masked=True)
        self.factorization = self.vocabulary.factorization
        self.trunk = Trunk(config, causal=False)
        self.hint = nn.Parameter(torch.empty(config.width)) if config.hints else None
        initialize(self, config)

    def forward(
        self,
        seen: Seen,
        parts: Int[Tensor, "b t h w g"],
        rows: Bool[Tensor, "b n"],
        rng: torch.Generator | None = None,
    ) -> list[Float[Tensor, "r _"]]:
        """Logits of each part at the cells in `rows`, `parts` being the truth; all that training needs.

        With a generator, on the device of the weights, dropout is on.
        """
        return self.vocabulary.logits(self.features(seen, rng)[rows], parts.flatten(1, 3)[rows])

    def features(self, seen: Seen, rng: torch.Generator | None = None) -> Float[Tensor, "b n d"]:
        """What the vocabulary's heads read, for every cell in raster order."""
        count, *grid, _ = seen.parts.shape
        self.trunk.check_grid((grid[0], grid[1], grid[2]))
        at = places((grid[0], grid[1], grid[2]), seen.parts.device)
        x = self.trunk.placed(self.vocabulary.embed(seen.parts).flatten(1, 3), at)
        if self.hint is not None and seen.hinted is not None:
            x = x + self.hint * seen.hinted.flatten(1)[..., None]
        prefix = self.trunk.begin(seen.condition, count)
        x = self.trunk(torch.cat([prefix, x], 1), self.trunk.turns(at, prefix.shape[1]), rng=rng)
        return x[:, prefix.shape[1] :]

    def blank(self, grid: tuple[int, int, int], count: int) -> Int[Tensor, "b t h w g"]:
        """Parts of `count` samples that are all masked."""
        masks = torch.tensor(self.vocabulary.sizes, device=self.vocabulary.dense.weight.device)
        return masks.expand(count, *grid, -1).contiguous()
