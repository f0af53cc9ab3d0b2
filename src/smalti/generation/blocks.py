"""Parts that the masked and the autoregressive transformer share: config, positions, attention, trunk, vocabulary."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Blocks, C, Config, Triple, Tuple
from smalti.errors import ConfigError
from smalti.generation.factorize import Factorization
from smalti.nn.blocks import fill_truncated_normal
from smalti.nn.causal import Stream

SizeName = Literal["S", "B", "L", "H"]
TaskKind = Literal["generation", "prediction", "interpolation", "outpainting", "inpainting"]


class ModelShape(NamedTuple):
    """Width, depth and attention heads of a transformer."""

    width: int
    depth: int
    heads: int


SIZES: dict[SizeName, ModelShape] = {
    "S": ModelShape(384, 12, 6),
    "B": ModelShape(768, 12, 12),
    "L": ModelShape(1024, 24, 16),
    "H": ModelShape(1280, 32, 16),
}
"""Sizes of MAGVIT's transformers (arXiv 2212.05199); MAGVIT-v2 and MaskBit use L."""


class NetworkConfig(Config):
    """Fields of every token model."""

    levels: Tuple[int]
    """Values of each digit of an id, as in the token set."""
    groups: Tuple[Tuple[int]] | None = None
    """Digits of each sub-token; null makes the fewest even groups that keep every sub-token within 8,192 values."""
    grid: Triple[int]
    """Latent frames, height and width."""
    classes: int = Field(0, ge=0)
    """Number of classes, with labels from 0; 0 is a model without classes."""
    tasks: Tuple[TaskKind] = ()
    """Tasks that have a token of their own."""
    width: int = Field(1024, ge=1)
    """Channels of the transformer."""
    depth: Blocks = Field(24, ge=1)
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
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of attention weights, active when a random generator is passed (MAGVIT, MaskBit: 0.1)."""
    part_layers: Blocks = Field(0, ge=0)
    """Blocks that predict the sub-tokens of a token one after the other; 0 predicts all at once, as if independent."""

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

    def sized(self: C, size: SizeName) -> C:
        """Return a copy with the width, depth and heads of S, B, L or H."""
        return self.replace(SIZES[size]._asdict())

    def factorization(self) -> Factorization:
        """Return the bijection between ids and sub-tokens."""
        return Factorization(self.levels, self.groups)


class Condition(NamedTuple):
    """Class and task of each sample of a batch."""

    labels: Int[Tensor, "b"] | None = None
    """Classes; None is no class."""
    tasks: Int[Tensor, "b"] | None = None
    """Indices into the config's `tasks`."""

    def take(self, rows: Tensor) -> "Condition":
        """Return the condition of some samples of the batch."""
        return Condition(*(None if x is None else x[rows] for x in self))

    def check(self, config: NetworkConfig, count: int) -> None:
        """Raise ConfigError for classes or tasks that a model of this config does not have."""
        ends = {"class": (self.labels, config.classes), "task": (self.tasks, len(config.tasks))}
        for what, (indices, end) in ends.items():
            if indices is None:
                continue
            if end == 0:
                raise ConfigError(f"{what}: this model was trained without any; leave it out")
            if indices.shape != (count,):
                raise ConfigError(f"{what}: {count} samples need one each (found shape {list(indices.shape)})")
            outside = indices[(indices < 0) | (indices >= end)]
            if len(outside):
                raise ConfigError(f"{what} {int(outside[0])} is outside [0, {end})")
        if config.tasks and self.tasks is None:
            raise ConfigError(f"task: this model needs one for each sample, of: {', '.join(config.tasks)}")


ROTARY_BASE = 10_000.0


class Rope(NamedTuple):
    """Rotary position embedding: cosine and sine of the angle of each pair of channels at each position."""

    cos: Float[Tensor, "n p"]
    sin: Float[Tensor, "n p"]

    def __call__(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Rotate queries or keys; channel p and channel p + d/2 are a pair."""
        left, right = x.chunk(2, -1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def grid_positions(grid: tuple[int, int, int], device: torch.device | None = None) -> Int[Tensor, "n 3"]:
    """Return (t, h, w) of every cell in raster order: w runs fastest."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid)).view(-1, 3)


def rope(positions: Int[Tensor, "n 3"], channels: int) -> Rope:
    """Compute the axial rotary embedding of positions (Su et al. 2021, arXiv 2104.09864, on each axis).

    A third of the pairs of channels belongs to h, a third to w, the rest to t; pair j of m on an axis rotates by
    position * 10000^(-j/m). The product of a rotated query and a rotated key depends only on the difference of their
    positions. Angles are float64, so that far positions stay exact.
    """
    pairs = channels // 2
    third = pairs // 3
    angles = []
    for axis, count in enumerate((pairs - 2 * third, third, third)):
        j = torch.arange(count, dtype=torch.float64, device=positions.device)
        angles.append(positions[:, axis, None].double() * ROTARY_BASE ** (-j / max(1, count)))
    angle = torch.cat(angles, 1)
    return Rope(angle.cos(), angle.sin())


def drop(x: Tensor, share: float, rng: torch.Generator | None) -> Tensor:
    """Apply dropout if a generator is passed, and nothing otherwise: no mode of a module decides."""
    if rng is None or share == 0:
        return x
    mask = torch.rand(x.shape, generator=rng, device=x.device) >= share
    return x * mask / (1 - share)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + 1e-6) * weight, over the channels of a head; under autocast, in the type of the weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Normalise the last axis; the result has the type of x."""
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, 1e-6).to(x.dtype)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention; with a stream, over all earlier tokens of the stream, too."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        size = config.width // config.heads
        self.query_norm, self.key_norm = (RMSNorm(size) if config.qk_norm else nn.Identity() for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rope: Rope | None,
        causal: bool,
        stream: Stream | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens of x; a stream is for causal attention alone."""
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.query_key_value(x).chunk(3, -1)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if rope is not None:
            query, key = rope(query), rope(key)
        if stream is not None:
            key, value = stream.extend(self, torch.stack([key, value]), 3)
        new, all_ = query.shape[2], key.shape[2]
        visible = None
        if causal and 1 < new < all_:
            visible = torch.ones(new, all_, dtype=torch.bool, device=x.device).tril(all_ - new)
        first = causal and new == all_ > 1
        if rng is not None and self.dropout > 0:
            # torch's own would take its noise from the global generator.
            hidden = None if visible is None else ~visible
            if first:
                hidden = torch.ones(new, all_, dtype=torch.bool, device=x.device).triu(1)
            scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
            shares = (scores if hidden is None else scores.masked_fill(hidden, -math.inf)).softmax(3)
            mixed = drop(shares, self.dropout, rng).to(value.dtype) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=first)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
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
        rope: Rope | None = None,
        causal: bool = False,
        stream: Stream | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply attention and MLP; a stream is for causal attention alone."""
        x = x + drop(self.attention(self.norm1(x), rope, causal, stream, rng), self.dropout, rng)
        return x + drop(self.narrow(F.gelu(self.widen(self.norm2(x)))), self.dropout, rng)


class Trunk(nn.Module):
    """A transformer: [task][class] + tokens through pre-norm blocks and a last norm.

    The table of classes has one row more than there are classes: the last stands for no class.
    """

    def __init__(self, config: NetworkConfig, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.tasks = nn.Embedding(len(config.tasks), config.width) if config.tasks else None
        # A causal model needs something to begin with, classes or not.
        self.labels = nn.Embedding(config.classes + 1, config.width) if config.classes or causal else None
        self.prefix = sum(table is not None for table in (self.tasks, self.labels))
        """Number of tokens before those of the grid."""
        learned = config.position == "learned"
        self.cells = nn.Parameter(torch.empty(*config.grid, config.width)) if learned else None
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def begin(self, condition: Condition, count: int) -> Float[Tensor, "b p d"]:
        """Embed the prefix of `count` samples. Here a label may be `classes`, which is no class."""
        columns = []
        if self.tasks is not None:
            columns.append(self.tasks(condition.tasks))
        if self.labels is not None:
            labels = condition.labels
            if labels is None:
                labels = torch.full((count,), self.config.classes, device=self.labels.weight.device)
            columns.append(self.labels(labels))
        return torch.stack(columns, 1) if columns else self.norm.weight.new_empty(count, 0, self.config.width)

    def add_positions(self, x: Float[Tensor, "b n d"], positions: Int[Tensor, "n 3"]) -> Float[Tensor, "b n d"]:
        """Add the learned vectors of the cells to their tokens, if the model has such."""
        if self.cells is None:
            return x
        return x + self.cells[positions[:, 0], positions[:, 1], positions[:, 2]]

    def rope(self, positions: Int[Tensor, "n 3"], prefix: int) -> Rope | None:
        """Compute the rotations of `prefix` tokens at the origin and then tokens at their cells; None if learned."""
        if self.cells is not None:
            return None
        origin = positions.new_zeros(prefix, 3)
        return rope(torch.cat([origin, positions]), self.config.width // self.config.heads)

    def check_grid(self, grid: tuple[int, int, int]) -> None:
        """Raise ConfigError for a grid that learned positions do not cover: they cover it, and fewer frames of it."""
        t, h, w = self.config.grid
        if self.cells is not None and (grid[0] > t or grid[1:] != (h, w)):
            raise ConfigError(
                f"grid: tokens of {grid[0]} x {grid[1]} x {grid[2]} do not fit a model whose learned positions are for "
                f"{t} x {h} x {w}; position: rotary takes any grid"
            )

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rope: Rope | None,
        stream: Stream | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply all blocks to a sequence that begins with the prefix or continues a stream."""
        x = drop(x, self.config.dropout, rng)
        for block in self.blocks:
            x = block(x, rope, self.causal, stream, rng)
        out: Tensor = self.norm(x)
        return out


class Vocabulary(nn.Module):
    """Sub-tokens in and out: logits_g = norm(gelu(W f_g + b)) E_g^T + c_g, where table E_g embeds sub-token g.

    Without `part_layers`, f_g is the feature of the token itself: all sub-tokens are sampled at once, as if independent
    given the feature. With them, f_g comes from a small causal stack over [feature, sub-token 0, sub-token 1, ...]
    (next sub-token prediction, Open-MAGVIT2), which can learn any joint distribution of the sub-tokens.
    """

    def __init__(self, config: NetworkConfig, masked: bool) -> None:
        super().__init__()
        self.factorization: Factorization = config.factorization()
        self.sizes = self.factorization.sizes
        self.tables = nn.ModuleList(nn.Embedding(size + masked, config.width) for size in self.sizes)
        """Embeddings of each sub-token; those of a masked model have one more row, the mask."""
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in self.sizes)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.part_layers))
        self.part_norm = nn.LayerNorm(config.width) if config.part_layers else None

    def embed(self, subtokens: Int[Tensor, "*b g"]) -> Float[Tensor, "*b d"]:
        """Embed tokens as the sum of the rows of their sub-tokens; `sizes[g]` is the mask."""
        embedded: Tensor = self.tables[0](subtokens[..., 0])
        for g in range(1, len(self.sizes)):
            embedded = embedded + self.tables[g](subtokens[..., g])
        return embedded

    def logits(self, features: Float[Tensor, "r d"], subtokens: Int[Tensor, "r g"]) -> list[Float[Tensor, "r _"]]:
        """Compute the logits of every sub-token, each given the true ones before it (used with `part_layers` only)."""
        if not self.blocks:
            shared = self._project(features)
            return [self._scores(shared, g) for g in range(len(self.sizes))]
        deep = self._project(self._deepen(features, subtokens[:, :-1]))
        return [self._scores(deep[:, g], g) for g in range(len(self.sizes))]

    def logits_at(self, g: int, features: Float[Tensor, "r d"], before: Int[Tensor, "r k"]) -> Float[Tensor, "r v"]:
        """Compute the logits of sub-token g given the g sub-tokens before it."""
        feature = self._deepen(features, before[:, :g])[:, -1] if self.blocks else features
        return self._scores(self._project(feature), g)

    def _deepen(self, features: Tensor, before: Tensor) -> Tensor:
        assert self.part_norm is not None
        rows = [features] + [self.tables[g](before[:, g]) for g in range(before.shape[1])]
        x = torch.stack(rows, 1)
        for block in self.blocks:
            x = block(x, causal=True)
        out: Tensor = self.part_norm(x)
        return out

    def _project(self, feature: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(feature)))
        return out

    def _scores(self, projected: Tensor, g: int) -> Tensor:
        table: Tensor = self.tables[g].weight[: self.sizes[g]]  # type: ignore[index]
        return F.linear(projected, table, self.biases[g])


def initialize(model: nn.Module, config: NetworkConfig) -> None:
    """Initialise from torch's global rng: matrices and tables ~ N(0, 0.64^2 / width), cut at two deviations, those that
    end a residual branch over sqrt(2 depth); biases 0, norms 1.

    At a width of 1024 that is the papers' 0.02; narrower models keep the size of their sums.
    """
    deviation = 0.64 / math.sqrt(config.width)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        elif "norm" not in name:
            ends = name.endswith(("out.weight", "narrow.weight"))
            std = deviation / math.sqrt(2 * config.depth) if ends else deviation
            fill_truncated_normal(parameter, std)
