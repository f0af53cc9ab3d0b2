"""What the masked and the autoregressive model share: their config, attention blocks, and the trunk."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Config, Triple, Tuple
from smalti.errors import ConfigError
from smalti.generation.factorize import Factorization
from smalti.generation.positions import Rotation, rotation
from smalti.nn.stream import Stream

SizeName = Literal["S", "B", "L", "H"]
TaskKind = Literal["generation", "prediction", "interpolation", "outpainting", "inpainting"]


class Shape(NamedTuple):
    """Of a transformer."""

    width: int
    depth: int
    heads: int


SIZES: dict[SizeName, Shape] = {
    "S": Shape(384, 12, 6),
    "B": Shape(768, 12, 12),
    "L": Shape(1024, 24, 16),
    "H": Shape(1280, 32, 16),
}
"""MAGVIT's (arXiv 2212.05199); MAGVIT-v2 and MaskBit use L."""


class NetworkConfig(Config):
    """The fields that every generator has."""

    levels: Tuple[int]
    """Values of each digit of an id, as the token set gives them."""
    groups: Tuple[Tuple[int]] | None = None
    """Digits of each part (sub-token); null makes as few even groups as keep every part within 8,192 values."""
    grid: Triple[int]
    """Latent frames, height and width."""
    classes: int = Field(0, ge=0)
    """Number of classes, with labels from 0; 0 is a model without classes."""
    tasks: Tuple[TaskKind] = ()
    """Tasks that have a token of their own."""
    width: int = Field(1024, ge=1)
    """Channels of the transformer."""
    depth: int = Field(24, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(16, ge=1)
    """Number of attention heads."""
    position: Literal["learned", "rotary"] = "learned"
    """Position encoding: a learned vector for each cell of the grid, or rotations on the axes t, h, w, which take any
    grid."""
    qk_norm: bool = True
    """Whether queries and keys have RMS norms, which keep attention logits small in half precision."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of embeddings and residual branches, active when a random generator is passed."""
    part_layers: int = Field(0, ge=0)
    """Blocks that predict the parts of a token one after the other; 0 predicts all at once, as if independent."""

    @model_validator(mode="after")
    def _consistent(self) -> "NetworkConfig":
        self.factorization()
        if min(self.grid) < 1:
            raise ValueError(f"grid must be at least 1 on every axis (found {list(self.grid)})")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width ({self.width}) must be an even multiple of heads ({self.heads})")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must differ (found {', '.join(self.tasks)})")
        return self

    def factorization(self) -> Factorization:
        """How ids become parts."""
        return Factorization(self.levels, self.groups)


class Condition(NamedTuple):
    """What a sample is to be, beside its tokens."""

    labels: Int[Tensor, "b"] | None = None
    """Class ids; None is no class."""
    tasks: Int[Tensor, "b"] | None = None
    """Indices into the config's `tasks`."""

    def take(self, rows: Tensor) -> "Condition":
        """Those of some samples."""
        return Condition(*(None if x is None else x[rows] for x in self))

    def check(self, config: NetworkConfig, count: int) -> None:
        """Raises ConfigError for what a model of this config cannot be asked for."""
        ends = {"class": (self.labels, config.classes), "task": (self.tasks, len(config.tasks))}
        for what, (chosen, end) in ends.items():
            if chosen is None:
                continue
            if end == 0:
                raise ConfigError(f"{what}: this model was trained without any; leave it out")
            if chosen.shape != (count,):
                raise ConfigError(f"{what}: {count} samples need one each (found shape {list(chosen.shape)})")
            outside = chosen[(chosen < 0) | (chosen >= end)]
            if len(outside):
                raise ConfigError(f"{what} {int(outside[0])} is outside [0, {end})")
        if config.tasks and self.tasks is None:
            raise ConfigError(f"task: this model needs one for each sample, of: {', '.join(config.tasks)}")


def drop(x: Tensor, share: float, rng: torch.Generator | None) -> Tensor:
    """Dropout where a generator is given, and nothing elsewhere: no mode of a module decides."""
    if rng is None or share == 0:
        return x
    kept = torch.rand(x.shape, generator=rng, device=x.device) >= share
    return x * kept / (1 - share)


class HeadNorm(nn.Module):
    """x / sqrt(mean x^2 + 1e-6) * weight, over the channels of a head; under autocast, in the type of the weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The shape and type of x."""
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, 1e-6).to(x.dtype)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention; with a stream, over all that it has seen before, too."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        size = config.width // config.heads
        self.query_norm, self.key_norm = (HeadNorm(size) if config.qk_norm else nn.Identity() for _ in range(2))

    def forward(
        self, x: Float[Tensor, "b n d"], turn: Rotation | None, causal: bool, stream: Stream | None = None
    ) -> Float[Tensor, "b n d"]:
        """The shape of x. A stream is for causal attention alone."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.query_key_value(x).chunk(3, -1)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if turn is not None:
            query, key = turn(query), turn(key)
        if stream is not None:
            past = stream.get(self)
            if past is not None:
                key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            stream.put(self, torch.stack([key, value]))
        new, all_ = query.shape[2], key.shape[2]
        visible = None
        if causal and 1 < new < all_:
            visible = torch.ones(new, all_, dtype=torch.bool, device=x.device).tril(all_ - new)
        first = causal and new == all_ > 1
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=first)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with GELU and four times the width."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.widen = nn.Linear(config.width, 4 * config.width)
        self.narrow = nn.Linear(4 * config.width, config.width)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        turn: Rotation | None = None,
        causal: bool = False,
        stream: Stream | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The shape of x."""
        x = x + drop(self.attention(self.norm1(x), turn, causal, stream), self.dropout, rng)
        return x + drop(self.narrow(F.gelu(self.widen(self.norm2(x)))), self.dropout, rng)


class Trunk(nn.Module):
    """[task][class] + tokens through pre-norm blocks and a last norm.

    The class has a row more than there are classes: the last stands for no class.
    """

    def __init__(self, config: NetworkConfig, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.tasks = nn.Embedding(len(config.tasks), config.width) if config.tasks else None
        # A causal model needs something to begin with, classes or not.
        self.labels = nn.Embedding(config.classes + 1, config.width) if config.classes or causal else None
        self.prefix = sum(table is not None for table in (self.tasks, self.labels))
        """Tokens before those of the grid."""
        learned = config.position == "learned"
        self.cells = nn.Parameter(torch.empty(*config.grid, config.width)) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def begin(self, condition: Condition, count: int) -> Float[Tensor, "b p d"]:
        """The embedded prefix of `count` samples. Here a label may be `classes`, which is no class."""
        columns = []
        if self.tasks is not None:
            columns.append(self.tasks(condition.tasks))
        if self.labels is not None:
            labels = condition.labels
            if labels is None:
                labels = torch.full((count,), self.config.classes, device=self.labels.weight.device)
            columns.append(self.labels(labels))
        return torch.stack(columns, 1) if columns else self.norm.weight.new_empty(count, 0, self.config.width)

    def placed(self, x: Float[Tensor, "b n d"], at: Int[Tensor, "n 3"]) -> Float[Tensor, "b n d"]:
        """Tokens with the learned vectors of their cells, if the model has such."""
        if self.cells is None:
            return x
        return x + self.cells[at[:, 0], at[:, 1], at[:, 2]]

    def turns(self, at: Int[Tensor, "n 3"], prefix: int) -> Rotation | None:
        """The rotations of a sequence: `prefix` tokens that stand still, then tokens at their cells."""
        if self.cells is not None:
            return None
        still = at.new_zeros(prefix, 3)
        return rotation(torch.cat([still, at]), self.config.width // self.config.heads)

    def check_grid(self, grid: tuple[int, int, int]) -> None:
        """Raises ConfigError for a grid that learned positions do not cover: fewer frames, or the same."""
        t, h, w = self.config.grid
        if self.cells is not None and (grid[0] > t or grid[1:] != (h, w)):
            raise ConfigError(
                f"grid: tokens of {grid[0]} x {grid[1]} x {grid[2]} do not fit a model whose learned positions are for "
                f"{t} x {h} x {w}; position: rotary takes any grid"
            )

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        turn: Rotation | None,
        stream: Stream | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The shape of x."""
        x = drop(x, self.config.dropout, rng)
        for block in self.blocks:
            x = block(x, turn, self.causal, stream, rng)
        out: Tensor = self.norm(x)
        return out


def initialize(model: nn.Module, config: NetworkConfig) -> None:
    """Matrices and tables ~ N(0, 0.64^2 / width), cut at two deviations; those that end a residual branch over
    sqrt(2 depth); biases 0, norms 1. From torch's global rng.

    At the width of 1024 that is the papers' 0.02; narrower models keep the size of their sums.
    """
    deviation = 0.64 / math.sqrt(config.width)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        elif "norm" not in name:
            ends = name.endswith(("out.weight", "narrow.weight"))
            std = deviation / math.sqrt(2 * config.depth) if ends else deviation
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
