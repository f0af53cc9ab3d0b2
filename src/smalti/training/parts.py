"""The micro-batches of a step over all ranks: their rows, their shares of the global batch, what must know all of it.

Losses are means over rows, so the gradients of parts, weighted by their shares, add up to those of the batch. Three
things are no such means: the batch entropy (of the mean code), the adaptive weight (a ratio of norms) and LeCAM (its
anchors move by the mean logits). `Whole` has their values for the whole batch. Layers of a discriminator that compare
the samples of a call see those of one part: minibatch deviation is exact if parts are made of whole groups, and `cut`
makes them so where it can; a batch norm is always that of a part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smalti import losses as loss
from smalti.data.source import sample_rng
from smalti.training.tokenizer_state import TrainState


class Part(NamedTuple):
    """Rows of the global batch that go through the networks together."""

    video: Tensor
    """Float `b 3 t h w` in [-1, 1], on the device."""
    places: tuple[int, ...]
    """Place of each row in the global batch."""
    frames: Tensor
    """One frame number per row, for what is trained on one frame of a clip."""
    share: float
    """Rows / rows of the global batch * ranks: the mean over ranks of the weighted sums is then that over all rows.
    0 for a rank without rows of its own, which goes along with a row of another."""
    batch: int
    """Rows of the global batch, over all ranks."""


class Whole(NamedTuple):
    """Facts about the whole batch that a part needs; None where no loss needs it or one part finds it out."""

    mean_code: Tensor | None = None
    """Mean soft code, the argument of the batch entropy."""
    gan_weight: Tensor | None = None
    """Weight of the adversarial loss."""
    logits: tuple[Tensor, Tensor] | None = None
    """Mean logits of real and of reconstructed samples, by which LeCAM's anchors move."""


def cut(state: TrainState, video: Tensor, places: Sequence[int] | None) -> list[Part]:
    """Cut this rank's rows into `accumulate` micro-batches, equally many on each rank; none if no rank has a row.

    Without `places` rank r of W has the rows r, r + W, ... of the global batch.
    """
    world = state.world
    table = world.table([*video.shape])
    rows = [shape[0] for shape in table]
    if not any(rows):
        return []
    mine = rows[world.rank]
    if places is None:
        places = range(world.rank, world.rank + mine * world.size, world.size)
    if not all(rows):
        source = next(rank for rank, count in enumerate(rows) if count)
        spare = world.broadcast(video[:1] if mine else video.new_empty(1, *table[source][1:]), source)
        video, places = (video, places) if mine else (spare, (0,))
    count = min(state.config.accumulate, max(rows))
    frames = _frame_index(state, places, video.shape[2])
    parts = []
    for part in rows_of_parts(mine, count, state.config.compared_samples or 1):
        chosen = part or [0]
        share = len(part) * world.size / sum(rows)
        taken = tuple(places[i] for i in chosen)
        parts.append(Part(video[chosen].to(world.device), taken, frames[chosen], share, sum(rows)))
    return parts


def rows_of_parts(rows: int, count: int, group: int) -> list[list[int]]:
    """Return the rows of each of `count` parts, each made of whole groups if there are enough.

    Of n rows i, i + n / group, i + 2 n / group, ... are a group (`minibatch_deviation`). Without whole groups for each
    part, the rows are cut in order; with fewer rows than parts, the last ones are empty.
    """
    whole = rows % group == 0 and rows // group >= count
    strides = group if whole else 1
    firsts = torch.arange(rows // strides).tensor_split(count)
    return [[int(i) + k * (rows // strides) for k in range(strides) for i in first] for first in firsts]


def _frame_index(state: TrainState, places: Sequence[int], frames: int) -> Tensor:
    """Return a frame number for each place of the global batch."""
    rng = sample_rng(state.config.seed, state.step, 0)
    numbers = loss.random_frames(max(state.config.batch_size, max(places) + 1), frames, rng)
    return numbers[list(places)]
