"""Vector quantization: a code is a row of a learned table (van den Oord et al. 2017, arXiv 1711.00937).

With rows e_k and a latent z, the id is by the law

    euclidean   argmin_k |z - e_k|^2 = argmax_k  z . e_k - |e_k|^2 / 2      VQ-VAE, VQGAN
    cosine      argmax_k  z . e_k / |e_k|, and the code is e_k / |e_k|      ViT-VQGAN, LlamaGen
    inner       argmax_k  z . e_k                                           IBQ (arXiv 2412.02692)

so all three are the largest of one score, a matrix product and a constant a row. The table is walked in pieces: a
matrix of all latents and all rows is never made. Among equal scores the first row is taken.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Config, Tuple
from smalti.quantize.entropy import WholeCode
from smalti.quantize.quantizer import Quantizer, straight_through

Lookup = Literal["euclidean", "cosine", "inner"]
"""Law that finds the row of a latent: the smallest distance, the largest cosine, or the largest inner product."""
CodebookLossName = Literal["codebook", "commitment"]

_CHUNK = 1 << 22
"""Floats in the scores of one piece (16 MB): the rest of the latents and rows waits, so memory is bounded."""
_ROWS = 1 << 13
"""Rows of the table in one piece."""


class CodebookConfig(Config):
    """A table of `size` rows of `dim` channels: `size` codes, one digit."""

    kind: Literal["codebook"] = "codebook"
    size: int = Field(8192, ge=2, le=1 << 24)
    """Rows of the table: the codebook size."""
    dim: int = Field(256, ge=1)
    """Channels of a latent and of a row. Narrow ones (8, with `by="cosine"`) keep more of a large table in use
    (ViT-VQGAN, arXiv 2110.04627)."""
    by: Lookup = "euclidean"
    """Law that finds the row of a latent. A tokenizer keeps that of its training: another one gives other ids."""
    gradient: Literal["straight", "indices"] = "straight"
    """Gradient of the codes: to the latent alone (straight-through), or also to every row through the softmax of the
    scores (index back-propagation, IBQ: the whole table learns at each step)."""
    losses: Tuple[CodebookLossName] = ("codebook", "commitment")
    """Losses that `forward` returns, unweighted: the mean squared distance of the rows from the latents (the table
    learns) and that of the latents from the rows (the encoder commits itself)."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """One digit: the row."""
        return (self.size,)

    def build(self) -> "Codebook":
        """The quantizer."""
        return Codebook(self)


class Codebook(Quantizer):
    """Finds the row of each latent; `codebook` is the table, `size dim`, as it is learned and stored."""

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__(config.digit_levels, config.dim)
        self.config = config
        # Fresh latents have a deviation of 0.1 to 0.4, behind a norm, a SiLU and one or two projections. VQGAN's rows,
        # within 1/size of zero, are all at one place among them: 11 of 8,192 are used after 100 steps.
        self.codebook = nn.Parameter(torch.randn(config.size, config.dim) * (1 if config.by == "cosine" else 0.3))

    def table(self) -> Float[Tensor, "k d"]:
        """Return the codes: the rows, of length 1 if they are found by their cosine."""
        return F.normalize(self.codebook, dim=1, eps=1e-12) if self.config.by == "cosine" else self.codebook

    def on_scale(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return latents on the scale of the codes, on which they are compared: of length 1 if rows are found by their
        cosine."""
        return F.normalize(z, dim=1, eps=1e-12) if self.config.by == "cosine" else z

    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n 1"]:
        """Find the row of each latent."""
        with torch.no_grad():
            table = self.table()
            bias = self._bias(table)
            return torch.cat([_best(part, table, bias) for part in _pieces(z, len(table))]).unsqueeze(1)

    def look_up(self, digits: Integer[Tensor, "n 1"]) -> Float[Tensor, "n d"]:
        """Return the codes of rows."""
        return self.table()[digits[:, 0]]

    def pass_through(
        self, z: Float[Tensor, "n d"], digits: Integer[Tensor, "n 1"], whole: WholeCode | None = None
    ) -> tuple[Float[Tensor, "n d"], dict[str, Tensor]]:
        """Return the codes with the gradient that the config asks for, and its losses.

        They are means over rows, so those of a part of a batch need no `whole`."""
        latent = self.on_scale(z)
        rows = self.look_up(digits)
        losses: dict[str, Tensor] = {}
        if "codebook" in self.config.losses:
            losses["codebook"] = (rows - latent.detach()).square().mean()
        if "commitment" in self.config.losses:
            losses["commitment"] = (latent - rows.detach()).square().mean()
        if self.config.gradient == "straight":
            return straight_through(latent, rows.detach()), losses
        table = self.table()
        inputs = (latent, table, self._bias(table), digits[:, 0])
        through: Tensor = _ThroughIndices.apply(*inputs)  # type: ignore[no-untyped-call, unused-ignore]
        return through, losses

    def recognise(self, codes: Float[Tensor, "n d"]) -> tuple[Int[Tensor, "n 1"], Float[Tensor, " n"]]:
        """Return the nearest rows, and how far off each is on the way to the next nearest. Of equal rows, the first."""
        with torch.no_grad():
            table = self.table()
            bias = -table.square().sum(1) / 2
            pieces = _pieces(codes, len(table))
            nearest = [_best(part, table, bias) for part in pieces]
            others = [_best(part, table, bias, but=rows) for part, rows in zip(pieces, nearest, strict=True)]
            first, second = torch.cat(nearest), torch.cat(others)
            near, next_near = ((codes - table[rows]).norm(dim=1) for rows in (first, second))
            return first.unsqueeze(1), near / (near + next_near).clamp_min(torch.finfo(near.dtype).tiny)

    def _bias(self, table: Tensor) -> Tensor:
        """Return what the score of a row has beside the inner product."""
        return -table.square().sum(1) / 2 if self.config.by == "euclidean" else table.new_zeros(len(table))


def _pieces(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut latents so that the scores of one piece stay small; a compiled graph has them whole, for any number."""
    return (rows,) if torch.compiler.is_compiling() else rows.split(max(1, _CHUNK // min(_ROWS, size)))


def _best(z: Tensor, table: Tensor, bias: Tensor, *, but: Tensor | None = None) -> Tensor:
    """Return the first row with the largest score of each latent, other than `but`, walking the table in pieces."""
    bests: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(table), _ROWS):
        scores = torch.addmm(bias[start : start + _ROWS], z, table[start : start + _ROWS].T)
        if but is not None:
            row = but.unsqueeze(1) - start
            inside = (row >= 0) & (row < scores.shape[1])
            place = row.clamp(0, scores.shape[1] - 1)
            scores.scatter_(1, place, scores.gather(1, place).masked_fill(inside, -torch.inf))
        best = scores.max(1)
        bests.append((best.values, best.indices + start))
    values, rows = (torch.stack(parts, 1) for parts in zip(*bests, strict=True))
    return rows.gather(1, values.argmax(1, keepdim=True))[:, 0]


class _ThroughIndices(torch.autograd.Function):
    """Rows of the table, with the gradient of onehot(ids) + softmax(scores) - sg(softmax(scores)), times the table.

    The softmax over all rows lives for one piece of latents at a time, and is computed in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, table: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(z, table, bias, ids)
        return table[ids]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        z, table, bias, ids = ctx.saved_tensors
        to_table = torch.zeros_like(table).index_add_(0, ids, gradients[0])
        to_bias, to_z = torch.zeros_like(bias), torch.empty_like(z)
        size = max(1, _CHUNK // len(table))
        for latent, gradient, out in zip(z.split(size), gradients[0].split(size), to_z.split(size), strict=True):
            p = torch.addmm(bias, latent, table.T).softmax(1)
            share = gradient @ table.T
            to_scores = p * (share - (p * share).sum(1, keepdim=True))
            out.copy_(to_scores @ table)
            to_table += to_scores.T @ latent
            to_bias += to_scores.sum(0)
        return to_z, to_table, to_bias, None
