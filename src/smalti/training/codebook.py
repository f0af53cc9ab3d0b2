"""Tables of codes in training: rows as moving averages of their latents, and dead rows that begin anew.

n_k latents of a batch have row k, and s_k is their sum. With a decay g (van den Oord et al. 2017, arXiv 1711.00937,
appendix A.1, equations 6 to 8)

    N_k <- g N_k + (1 - g) n_k        m_k <- g m_k + (1 - g) s_k        e_k = m_k / N_k

Counts and sums of micro-batches and of ranks add up to those of the batch, so rows do not depend on how it is cut. A
row whose N_k is a small share of the mean is dead, and becomes a latent of the batch (Jukebox, arXiv 2005.00341): which
one follows from (seed, step) and its place in the global batch, for any cut the same.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.data.source import sample_rng
from smalti.quantize import Codebook
from smalti.training.config import CodebookTraining
from smalti.training.distributed import World

_CHOICE = 2
"""Stream of random numbers that chooses latents: other choices of a step have 0 and 1."""


class CodebookState:
    """Counts and sums of a table's training. As a `Stateful` it holds what a resumed run needs of them."""

    def __init__(
        self, config: CodebookTraining, codebook: Codebook, *, seed: int, batch_size: int, fresh: bool
    ) -> None:
        """`fresh` is whether the table is random: the rows of another are in use until counts say other."""
        self.config, self.codebook, self.seed, self.batch_size, self.fresh = config, codebook, seed, batch_size, fresh
        table = codebook.codebook.detach()
        self.usage = torch.zeros(len(table), dtype=table.dtype, device=table.device)
        """N_k, the averaged count of each row."""
        self.sums = torch.zeros_like(table) if config.rows == "averages" else None
        """m_k, the averaged sum of its latents."""
        self.latents = torch.zeros((), dtype=table.dtype, device=table.device)
        """Latents of the last batch; 0 before the first."""
        self._batch: _Batch | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return counts and sums."""
        return {
            "usage": self.usage,
            "latents": self.latents,
            **({} if self.sums is None else {"sums": self.sums}),
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor], /) -> None:
        """Put them back."""
        device = self.usage.device
        self.usage, self.latents = tensors["usage"].to(device), tensors["latents"].to(device)
        if self.sums is not None:
            self.sums = tensors["sums"].to(device)

    @property
    def dead(self) -> Int[Tensor, " m"]:
        """Rows that begin anew at this step."""
        if not self.config.restart or not (self.fresh or self.latents):
            return torch.empty(0, dtype=torch.int64, device=self.usage.device)
        return (self.usage <= self.config.restart * self.latents / len(self.usage)).nonzero()[:, 0]

    @torch.no_grad()
    def collect(
        self, z: Float[Tensor, "b d t h w"], ids: Int[Tensor, "b t h w"], places: Sequence[int], step: int
    ) -> None:
        """Count a micro-batch's latents and keep those that are chosen; `places` are those of its clips in the global
        batch, none where they are of another rank."""
        rows = z.detach().movedim(1, -1).reshape(-1, z.shape[1]).to(self.usage.dtype)
        each = ids[0].numel()
        if self._batch is None:
            self._batch = _Batch(self, each, step)
        if places:
            self._batch.add(self.codebook.on_scale(rows), ids.reshape(-1), places, each)

    def forget(self) -> None:
        """Leave a batch out: its step was skipped."""
        self._batch = None

    @torch.no_grad()
    def update(self, world: World, optimizer: Optimizer) -> Int[Tensor, " m"]:
        """Move the counts, rows that are averages, and dead rows, which are returned. Comes after the optimizer's
        step."""
        batch, self._batch = self._batch, None
        assert batch is not None
        counts, table = world.sum(batch.counts), self.codebook.codebook
        total, keep = counts.sum(), self.config.decay
        if not self.fresh and not self.latents:
            self.usage.fill_(float(total) / len(table))
            if self.sums is not None:
                self.sums = self.usage[:, None] * self.codebook.table()
        self.usage.lerp_(counts, 1 - keep)
        if self.sums is not None:
            assert batch.sums is not None
            self.sums.lerp_(world.sum(batch.sums), 1 - keep)
            in_use = counts > 0  # m_k / N_k of the others stays as it is
            table[in_use] = self.sums[in_use] / self.usage[in_use, None]
        self.latents = total
        there = world.sum(batch.there) > 0
        rows, latents = batch.dead[there], world.sum(batch.chosen)[there]
        if len(rows):
            self._restart(rows, latents, optimizer)
        return rows

    @torch.no_grad()
    def copy_rows(self, averaged: nn.Module, rows: Int[Tensor, " m"]) -> None:
        """Set rows that began anew in the EMA weights of the table: no average of the former row means anything."""
        averaged.get_parameter("codebook")[rows] = self.codebook.codebook[rows]

    def _restart(self, rows: Tensor, latents: Tensor, optimizer: Optimizer) -> None:
        """Set rows to latents, with the count of a row in even use and without the optimizer's memory of others."""
        self.codebook.codebook[rows] = latents
        self.usage[rows] = self.latents / len(self.usage)
        if self.sums is not None:
            self.sums[rows] = self.usage[rows, None] * latents
        for name, moment in optimizer.state.get(self.codebook.codebook, {}).items():
            if name != "step":
                moment[rows] = 0


class _Batch:
    """Counts, sums and chosen latents of the micro-batches of one step on one rank."""

    def __init__(self, state: CodebookState, each: int, step: int) -> None:
        self.dead = state.dead
        choice = torch.randperm(state.batch_size * each, generator=sample_rng(state.seed, step, _CHOICE))
        self.choice = choice[: len(self.dead)].to(self.dead.device)
        """Number of the latent that each dead row becomes, counted through the clips of the global batch."""
        self.dead = self.dead[: len(self.choice)]
        self.counts = torch.zeros_like(state.usage)
        self.sums = None if state.sums is None else torch.zeros_like(state.sums)
        self.chosen = state.usage.new_zeros(len(self.dead), state.codebook.dim)
        self.there = state.usage.new_zeros(len(self.dead))
        """1 where the clip of a chosen latent is here: it may be on another rank, or not be readable."""

    def add(self, latents: Tensor, ids: Tensor, places: Sequence[int], each: int) -> None:
        self.counts.index_add_(0, ids, self.counts.new_ones(len(ids)))
        if self.sums is not None:
            self.sums.index_add_(0, ids, latents)
        for row, place in enumerate(places):
            mine = (self.choice // each == place).nonzero()[:, 0]
            self.chosen[mine] = latents[row * each + self.choice[mine] % each]
            self.there[mine] = 1
