"""The masked transformer of MAGVIT-v2 (arXiv 2310.05737, section 3), pre-norm and with QK-norm, and its sampling.

Parallel decoding, step k of K: the model gets what is known and filled; every masked entry is sampled from its (guided,
tempered) distribution; the schedule says how many are filled, `order` says which. Nothing that is known ever changes,
and the number that each step fills is exact (`step_counts`). Noise is keyed by (seed, sample, step), so a sample does
not depend on its batch, but for rounding where a batch changes the order of sums.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from smalti.devices import send
from smalti.generation.blocks import (
    Condition,
    NetworkConfig,
    Trunk,
    Vocabulary,
    grid_positions,
    initialize,
)
from smalti.generation.prompt import Prompt
from smalti.generation.sampling import (
    GuidedBatch,
    GuidedHeads,
    TokenSamplingConfig,
    gumbel,
    sample_logits,
    sample_numbers,
    uniform_noise,
)

_NUMBER = r"[-+]?\d*\.?\d+(e[-+]?\d+)?"
Schedule = (
    Literal["cosine", "arccos", "linear", "square", "exponential", "log"]
    | Annotated[str, Field(pattern=rf"^poly:{_NUMBER}(,{_NUMBER})*$")]
)
"""Name of a schedule of the masked share, or `poly:` with the coefficients of a polynomial in the progress, the highest
power first (MAGVIT): `poly:-1,0,1` is `square`."""
Unit = Literal["token", "part"]
"""Unit of masking and filling: all sub-tokens of a token together, or each sub-token on its own (MaskBit)."""

_ROUNDING = 1e-9
"""Rounding error of float64 products that should be whole."""
_ORDER_STEP = -1
"""Step that keys the noise of a random order; sampling steps count from 0."""
_HALTON_BLOCK = 4096
"""Points of the Halton sequence that are computed at once."""


class MaskedConfig(NetworkConfig):
    """A masked transformer. By default L: 305.7 M parameters with 2^18 codes, 16 x 16 cells and 1,000 classes."""

    kind: Literal["masked"] = "masked"
    unit: Unit = Field("token")
    """Unit of masking in training and sampling: a whole token, or each sub-token on its own (`part`, MaskBit)."""
    hints: bool = False
    """Whether masked cells may show the token of a condition in place of the mask (COMMIT, MAGVIT)."""

    @property
    def entries(self) -> int:
        """Number of entries that can be masked: the tokens of the grid, or all of their sub-tokens."""
        return math.prod(self.grid) * (len(self.factorization().sizes) if self.unit == "part" else 1)

    def build(self) -> "MaskedTransformer":
        """Build the model, with weights from torch's global rng."""
        return MaskedTransformer(self)


class MaskedInput(NamedTuple):
    """Input of the masked transformer."""

    subtokens: Int[Tensor, "b t h w g"]
    """Sub-tokens; `sizes[g]` where sub-token g is masked."""
    condition: Condition = Condition()
    hinted: Bool[Tensor, "b t h w"] | None = None
    """Cells that show a condition's token, which may be wrong."""


class MaskedTransformer(nn.Module):
    """A transformer without a causal mask: masked sub-tokens are predicted from all that are not masked."""

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
        inputs: MaskedInput,
        subtokens: Int[Tensor, "b t h w g"],
        rows: Bool[Tensor, "b n"],
        rng: torch.Generator | None = None,
    ) -> list[Float[Tensor, "r _"]]:
        """Compute the logits of each sub-token at the cells in `rows`, where `subtokens` are the true ones.

        With a generator, on the device of the weights, dropout is on. `rows` may be in the CPU's memory: how many they
        are is then known without waiting for a device.
        """
        at = places(rows, subtokens.device)
        return self.vocabulary.logits(self.features(inputs, rng)[at], subtokens.flatten(1, 3)[at])

    def features(self, inputs: MaskedInput, rng: torch.Generator | None = None) -> Float[Tensor, "b n d"]:
        """Compute the feature of every cell in raster order, from which the vocabulary predicts its token."""
        count, *grid, _ = inputs.subtokens.shape
        self.trunk.check_grid((grid[0], grid[1], grid[2]))
        positions = grid_positions((grid[0], grid[1], grid[2]), inputs.subtokens.device)
        x = self.trunk.add_positions(self.vocabulary.embed(inputs.subtokens).flatten(1, 3), positions)
        if self.hint is not None and inputs.hinted is not None:
            x = x + self.hint * inputs.hinted.flatten(1)[..., None]
        prefix = self.trunk.begin(inputs.condition, count)
        x = self.trunk(torch.cat([prefix, x], 1), self.trunk.rope(positions, prefix.shape[1]), rng=rng)
        return x[:, prefix.shape[1] :]

    @property
    def replayable(self) -> tuple[Callable[..., Tensor], ...]:
        """The call that `smalti.nn.replay` can record: the features, at each step of sampling."""
        return (self.features,)

    def blank(self, grid: tuple[int, int, int], count: int) -> Int[Tensor, "b t h w g"]:
        """Return the sub-tokens of `count` samples with everything masked."""
        device = self.vocabulary.dense.weight.device  # a tensor of the sizes would come from the host, which waits
        return torch.stack([torch.full((count, *grid), size, device=device) for size in self.vocabulary.sizes], -1)


def places(rows: Bool[Tensor, "b n"], device: torch.device) -> tuple[Int[Tensor, "r"], Int[Tensor, "r"]]:
    """Return the indices of what is true, in order, on a device: `x[places(rows, x.device)]` is `x[rows]`."""
    sample, cell = (send(index, device) for index in rows.nonzero(as_tuple=True))
    return sample, cell


def masked_share(schedule: Schedule, progress: float, entries: int) -> float:
    """Return the share of `entries` that is masked at a progress r in [0, 1]; it falls from 1 to 0.

    cosine cos(pi r / 2); arccos 2 arccos(r) / pi; linear 1 - r; square 1 - r^2; exponential 1 - entries^(r - 1), which
    begins at 1 - 1/entries (MaskGIT, arXiv 2202.04200); log -log(r) / log(entries), which is 1 up to r = 1/entries, and
    poly:a,b,c a r^2 + b r + c, both cut to [0, 1] (MAGVIT).
    """
    if schedule == "log":
        return 1.0 if progress * entries <= 1 else -math.log(progress) / math.log(entries)
    if schedule.startswith("poly:"):
        return min(1.0, max(0.0, _polynomial(schedule, progress)))
    if schedule == "cosine":
        return max(0.0, math.cos(math.pi * progress / 2))
    if schedule == "arccos":
        return 2 / math.pi * math.acos(progress)
    if schedule == "linear":
        return 1 - progress
    if schedule == "square":
        return 1 - progress**2
    return float(1 - entries ** (progress - 1))


def _polynomial(schedule: str, progress: float) -> float:
    value = 0.0
    for coefficient in schedule.removeprefix("poly:").split(","):
        value = value * progress + float(coefficient)
    return value


def masked_shares(progress: Float[Tensor, "b"], schedule: Schedule, entries: int) -> Float[Tensor, "b"]:
    """Return the masked share of each sample at its progress, in float64."""
    shares = [masked_share(schedule, r, entries) for r in progress.tolist()]
    return torch.tensor(shares, dtype=torch.float64, device=progress.device)


def step_counts(entries: int, steps: int, schedule: Schedule) -> list[int]:
    """Return the number of entries that each sampling step fills: all at least 1, with the sum `entries`.

    After step k of K, floor(entries * share(k / K)) are still masked, but never more than leaves one for every step
    and never fewer than leaves one for each step to come. More steps than entries are as many steps as entries; no
    entries are no steps.
    """
    steps = min(steps, entries)
    masked, counts = entries, []
    for step in range(1, steps + 1):
        remaining = math.floor(entries * masked_share(schedule, step / steps, entries) + _ROUNDING)
        remaining = min(max(remaining, steps - step), masked - 1) if step < steps else 0
        counts.append(masked - remaining)
        masked = remaining
    return counts


def random_mask(
    maskable: Bool[Tensor, "b e"], shares: Float[Tensor, "b"], scores: Float[Tensor, "b e"]
) -> Bool[Tensor, "b e"]:
    """Mask, of the n entries of a sample that may be masked, the ceil(share * n) with the lowest scores, at least 1.

    Rounding up trains on the grid without any known token too, where sampling begins. Exact: equal scores go by index.
    """
    available = maskable.sum(1)
    count = (shares.to(maskable.device, torch.float64) * available - _ROUNDING).ceil().long()
    return first_ranked(scores.masked_fill(~maskable, math.inf), count.clamp_min(1).minimum(available))


def first_ranked(scores: Float[Tensor, "b e"], count: Tensor) -> Bool[Tensor, "b e"]:
    """Return True at the `count[b]` lowest scores of each row; of equal scores, at the first ones."""
    order = scores.sort(dim=1, stable=True).indices
    is_low = torch.arange(scores.shape[1], device=scores.device) < count[:, None]
    return torch.zeros_like(is_low).scatter(1, order, is_low)


def entries(x: Tensor, unit: Unit, join: Callable[[Tensor, int], Tensor] = Tensor.amax) -> Tensor:
    """Return `b n g` as entries that are masked and filled at once: sub-tokens, or tokens as `join` reduces them."""
    return join(x, 2) if unit == "token" else x.flatten(1)


def input_subtokens(model: MaskedTransformer, prompt: Prompt, *, check: bool = True) -> Int[Tensor, "b t h w g"]:
    """Return what the model gets before anything is filled: known and hinted tokens, and masks."""
    grid = prompt.ids.shape[1:]
    subtokens = model.factorization.split(prompt.ids.masked_fill(~prompt.visible, 0), check=check)
    return torch.where(prompt.visible[..., None], subtokens, model.blank((grid[0], grid[1], grid[2]), len(subtokens)))


def masked_input(
    subtokens: Int[Tensor, "b t h w g"], masked: Bool[Tensor, "b n g"], prompt: Prompt, rows: list[int] | None = None
) -> MaskedInput:
    """Make the input for some samples of a prompt, or all; a cell is hinted as long as a sub-token of it is masked."""
    hinted, condition = prompt.hinted, prompt.condition
    if rows is not None:
        hinted = None if hinted is None else hinted[rows]
        condition = condition.take(torch.tensor(rows, device=subtokens.device))
    if hinted is not None:
        hinted = hinted & masked.any(2).view(subtokens.shape[:-1])
    return MaskedInput(subtokens, condition, hinted)


class SamplingConfig(TokenSamplingConfig):
    """Parallel decoding. MAGVIT-v2: 12 to 64 steps, noise 15 to 32, guidance power_cosine up to 25."""

    steps: int = Field(12, ge=1)
    """Passes of the model; at most one per masked entry."""
    schedule: Schedule = "cosine"
    """Share of entries that stay masked, by progress."""
    order: Literal["confidence", "halton", "random"] = "confidence"
    """Order of filling: most confident first, cells far apart (`halton`), or random."""
    roll: bool = False
    """Whether each sample begins the order `halton` at a random place of it and goes round (Halton-MaskGIT)."""
    final_temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Temperature of the last step; its inverse goes there linearly from that of `temperature` (Halton-MaskGIT). Null
    keeps `temperature`, and so does a `temperature` of 0."""
    hot_steps: int = Field(0, ge=0)
    """Number of first steps at twice their temperature (Halton-MaskGIT's warm-up)."""
    noise: float = Field(4.5, ge=0, le=1e6)
    """Scale of the Gumbel noise on the log probability (the sum over sub-tokens) in the order `confidence`, which falls
    to 0 over the steps; the papers' choice temperature."""

    def sharpness(self, step: int, steps: int) -> float:
        """Return `temperature` over the temperature of a step in [0, steps): a factor of the logits."""
        factor = 1.0
        if self.final_temperature is not None and self.temperature > 0 and steps > 1:
            factor += (self.temperature / self.final_temperature - 1) * step / (steps - 1)
        return factor / 2 if step < self.hot_steps else factor


class SamplingStep(NamedTuple):
    """Tokens of all samples after a step."""

    subtokens: Int[Tensor, "b t h w g"]
    """Masks and hints where nothing is filled yet."""
    filled: Bool[Tensor, "b t h w g"]
    """Whether a sub-token is known or sampled."""


def sample(
    model: MaskedTransformer,
    prompt: Prompt,
    config: SamplingConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Int[Tensor, "b t h w"]:
    """Fill every cell of a prompt. `samples` are the numbers that key the noise of each row (0, 1, ... if None).

    Raises ConfigError for a prompt or a condition that does not fit the model.
    """
    subtokens = None
    for step in sample_steps(model, prompt, config, seed=seed, samples=samples):
        subtokens = step.subtokens
    if subtokens is None:
        return prompt.ids.clone()
    return model.factorization.join(subtokens).to(prompt.ids.device)


@torch.inference_mode()
def sample_steps(
    model: MaskedTransformer,
    prompt: Prompt,
    config: SamplingConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Iterator[SamplingStep]:
    """Yield the tokens after each step, as `sample` fills them; nothing if all is known."""
    config.guidance.check(model.config.classes, prompt.condition)
    prompt = prompt.checked(model.config, model.config.hints).to(model.vocabulary.dense.weight.device)
    numbers, unit = sample_numbers(samples, len(prompt.ids)), model.config.unit
    tokens = input_subtokens(model, prompt)
    masked = (~prompt.known.flatten(1))[..., None].repeat(1, 1, tokens.shape[-1])
    plan = [step_counts(n, config.steps, config.schedule) for n in entries(masked, unit).sum(1).tolist()]
    ranks = _ranks(config, seed, numbers, prompt)
    for step in range(max(map(len, plan), default=0)):
        rows = [b for b in range(len(numbers)) if step < len(plan[b])]
        inputs = masked_input(tokens[rows], masked[rows], prompt, rows)
        guided = GuidedBatch.of([config.guidance.at(step / len(plan[b])) for b in rows], tokens.device)
        noise = uniform_noise(seed, [numbers[b] for b in rows], step, (2, *masked.shape[1:]), tokens.device)
        sharpness = torch.tensor([config.sharpness(step, len(plan[b])) for b in rows], device=tokens.device)
        values, confidence = _sample_masked(model, inputs, masked[rows], guided, noise[:, 0], sharpness, config)
        if ranks is None:
            cooling = torch.tensor([1 - (step + 1) / len(plan[b]) for b in rows], device=tokens.device)
            jitter = config.noise * cooling[:, None] * gumbel(entries(noise[:, 1], unit))
            score = -(entries(confidence, unit, Tensor.sum) + jitter)
        else:
            score = entries(ranks[rows, :, None].expand_as(confidence), unit).to(confidence)
        score = score.masked_fill(~entries(masked[rows], unit), torch.inf)
        filled = first_ranked(score, torch.tensor([plan[b][step] for b in rows], device=tokens.device))
        filled = filled[..., None] if unit == "token" else filled.unflatten(1, values.shape[1:])
        tokens[rows] = torch.where(filled, values, tokens[rows].flatten(1, 3)).view_as(inputs.subtokens)
        masked[rows] = masked[rows] & ~filled
        yield SamplingStep(tokens.clone(), ~masked.view_as(tokens))


def _sample_masked(
    model: MaskedTransformer,
    inputs: MaskedInput,
    masked: Bool[Tensor, "b n g"],
    guided: GuidedBatch,
    uniform: Float[Tensor, "b n g"],
    sharpness: Float[Tensor, "b"],
    config: SamplingConfig,
) -> tuple[Int[Tensor, "b n g"], Float[Tensor, "b n g"]]:
    """Sample every masked sub-token, leave the others, and return all with the log probability of each.

    The heads compute cells with a masked entry only; the unconditional half has the guided samples only.
    """
    cells = masked.any(2)
    hinted = None if inputs.hinted is None else guided.twice(inputs.hinted)
    condition = guided.conditions(inputs.condition, model.config.classes)
    features = model.features(MaskedInput(guided.twice(inputs.subtokens), condition, hinted))
    heads = GuidedHeads(model.vocabulary, features, cells, guided)
    subtokens = inputs.subtokens.flatten(1, 3).clone()
    rows, is_masked, uniform = subtokens[cells], masked[cells], uniform[cells]
    factors = sharpness[cells.nonzero()[:, 0], None] if bool((sharpness != 1).any()) else None
    columns = []
    for g in range(rows.shape[1]):
        logits = heads(g, rows)
        sharp = logits if factors is None else logits * factors.to(logits)
        rows[:, g] = torch.where(is_masked[:, g], sample_logits(sharp, uniform[:, g], config), rows[:, g])
        columns.append(logits.log_softmax(1).gather(1, rows[:, g, None]))
    confidence = torch.cat(columns, 1)
    everywhere = confidence.new_zeros(subtokens.shape)
    everywhere[cells], subtokens[cells] = confidence, rows
    return subtokens, everywhere


def _ranks(config: SamplingConfig, seed: int, numbers: list[int], prompt: Prompt) -> Int[Tensor, "b n"] | None:
    """Return the rank of each cell in a fixed order of filling; None where confidence decides."""
    if config.order == "confidence":
        return None
    _, t, h, w = prompt.ids.shape
    if config.order == "halton":
        order = halton_order((t, h, w)).expand(len(numbers), -1)
        if config.roll:
            places = uniform_noise(seed, numbers, _ORDER_STEP, (1,), torch.device("cpu")).mul(t * h * w).long()
            order = torch.stack([row.roll(int(place)) for row, place in zip(order, places, strict=True)])
    else:
        order = uniform_noise(seed, numbers, _ORDER_STEP, (t * h * w,), torch.device("cpu")).argsort(1)
    return order.argsort(1).to(prompt.ids.device)


def halton_order(grid: tuple[int, int, int]) -> Int[Tensor, "n"]:
    """Return the cells (raster index) in the order in which the points of the Halton sequence first fall into them.

    Point i = 1, 2, ... lies at row h * phi_2(i), column w * phi_3(i), frame t * phi_5(i), where phi_b mirrors the
    digits of i in base b at the point. Neighbours are filled at very different times, so that tokens sampled at once
    depend little on each other (Besnier et al. 2025, Halton scheduler, arXiv 2503.17076; there in two dimensions).
    """
    t, h, w = grid
    cells: dict[int, None] = {}
    start = 1
    while len(cells) < t * h * w:
        i = torch.arange(start, start + _HALTON_BLOCK)
        frame, row, column = _mirrored(i, 5, t), _mirrored(i, 2, h), _mirrored(i, 3, w)
        cells.update(dict.fromkeys(((frame * h + row) * w + column).tolist()))
        start += _HALTON_BLOCK
    return torch.tensor(list(cells))


def _mirrored(i: Tensor, base: int, size: int) -> Tensor:
    """Compute floor(size * phi_b(i)) in whole numbers: a fraction that should be whole is never a little less."""
    above, below = torch.zeros_like(i), 1
    while bool((i > 0).any()):
        above, below, i = above * base + i % base, below * base, i // base
    return above * size // below
