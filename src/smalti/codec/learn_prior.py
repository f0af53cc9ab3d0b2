"""Training of a prior over ids on the ids of any images and videos: minutes on one core."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.codec.contexts import Integers
from smalti.codec.entropy import alphabets, split
from smalti.codec.prior import NEIGHBOURS, ONE, Canvas, Prior, quantized
from smalti.errors import InputError
from smalti.text import Progress
from smalti.tokenizer.frames import HELD_ID
from smalti.tokenizer_info import TokenizerInfo

WIDTH, HEAD = 160, 64
"""Outputs of the first two layers, and of the third for each symbol."""
BATCH = 2048
"""Tokens of a step."""
RATE = 3e-3
"""Learning rate, a cosine to 0 after 50 steps of warm-up."""


class Learned(NamedTuple):
    """A prior, and what it was trained on."""

    prior: Prior
    tokens: int
    """Tokens that were trained on."""
    steps: int
    loss: float
    """Mean bits of a token over the last tenth of the steps, on training tokens."""


def learn_prior(
    blocks: Iterable[Integers],
    info: TokenizerInfo,
    *,
    steps: int = 3000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Learned:
    """Train a prior on blocks of ids `t h w` of one tokenizer: Adam, `steps` times 2,048 tokens.

    A step takes tokens of any block, each as often. Where ids are `HELD_ID` nothing is known, and nothing learnt.
    Raises InputError where there are none, ValueError for an id out of range.
    """
    tokens, sizes = _Tokens(blocks, info.levels), alphabets(info.levels)
    rng = torch.Generator().manual_seed(seed)
    network = _Network(sizes, rng)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, (0.9, 0.99), weight_decay=0.01)
    loss, count = 0.0, max(1, steps // 10)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        inputs, symbols = tokens.batch(torch.randint(len(tokens), (BATCH,), generator=rng).numpy())
        bits = network(inputs, symbols).sum(1).mean() / math.log(2)
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
        loss += float(bits.detach()) / count if step >= steps - count else 0.0
        if progress is not None:
            progress(step + 1, steps, f"{float(bits.detach()):.2f} bits a token")
    return Learned(network.quantized(info.fingerprint), len(tokens), steps, loss)


class _Tokens:
    """All tokens, each with the tokens around it as a prior is given them."""

    def __init__(self, blocks: Iterable[Integers], levels: Sequence[int]) -> None:
        cells, at, offsets, owners, symbols, end = [], [], [], [], [], 0
        for number, ids in enumerate(blocks):
            coded = np.flatnonzero(ids != HELD_ID)
            planes = split(np.where(ids == HELD_ID, 0, ids), levels).reshape(-1, ids.size)[:, coded]
            canvas = Canvas(ids.shape, alphabets(levels))
            canvas.write(coded, planes)
            cells.append(canvas.cells)
            at.append(canvas.at[coded] + end)
            offsets.append(canvas.offsets)
            owners.append(np.full(coded.size, number, np.int32))
            symbols.append(planes.T.astype(np.int16))
            end += len(canvas.cells)
        if not sum(map(len, at)):
            raise InputError("there are no ids to train a prior on")
        self._cells, self._at, self._offsets = np.concatenate(cells), np.concatenate(at), np.stack(offsets)
        self._owners, self._symbols = np.concatenate(owners), np.concatenate(symbols)

    def __len__(self) -> int:
        return len(self._at)

    def batch(self, places: Integers) -> tuple[Float[Tensor, "n inputs"], Int[Tensor, "n k"]]:
        """Return inputs and symbols of the tokens of these numbers."""
        around = self._at[places, None] + self._offsets[self._owners[places]]
        inputs = torch.from_numpy(self._cells[around].reshape(len(places), -1)).float() / ONE
        return inputs, torch.from_numpy(self._symbols[places].astype(np.int64))


class _Network(nn.Module):
    """The network of `Prior` in floating point; it gives the loss of every symbol in nats."""

    def __init__(self, sizes: Sequence[int], rng: torch.Generator) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        inputs, heads, values = len(NEIGHBOURS) * (len(sizes) + 1), HEAD * len(sizes), sum(sizes)
        self.context, self.middle = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.heads, self.out = nn.Linear(WIDTH, heads), nn.Linear(HEAD, values)
        self.known = nn.Parameter(torch.zeros(values, heads))
        for layer in (self.context, self.middle, self.heads, self.out):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=rng)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Float[Tensor, "n inputs"], symbols: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        state = self.heads(F.relu(self.middle(F.relu(self.context(inputs)))))
        shown = torch.cat([F.one_hot(symbols[:, k], size) for k, size in enumerate(self.sizes)], 1).to(state.dtype)
        start, losses = 0, []
        for k, size in enumerate(self.sizes):
            mine, values = slice(HEAD * k, HEAD * (k + 1)), slice(start, start + size)
            active = F.relu(state[:, mine] + shown[:, :start] @ self.known[:start, mine])
            logits = F.linear(active, self.out.weight[values], self.out.bias[values])
            losses.append(F.cross_entropy(logits, symbols[:, k], reduction="none"))
            start += size
        return torch.stack(losses, 1)

    def quantized(self, tokenizer: str) -> Prior:
        """Return the prior in whole numbers; logits become logarithms to base 2."""
        layers = {
            f"{name}.{kind}": (value.T if kind == "weight" else value) * (math.log2(math.e) if name == "out" else 1)
            for name in ("context", "middle", "heads", "out")
            for kind, value in getattr(self, name).named_parameters()
        }
        layers["known.weight"] = self.known
        return quantized(tokenizer, self.sizes, {name: value.detach().numpy() for name, value in layers.items()})
