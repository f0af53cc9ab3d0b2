"""Losses of token models: the cross-entropy of sub-tokens, and its validation under fixed masks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.devices import send
from smalti.generation.autoregressive import AutoregressiveTransformer
from smalti.generation.blocks import Condition
from smalti.generation.masked import (
    MaskedTransformer,
    Schedule,
    entries,
    input_subtokens,
    masked_input,
    masked_shares,
    places,
    random_mask,
)
from smalti.generation.prompt import Prompt
from smalti.generation.sampling import sample_generator, uniform_noise

VALIDATION_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Masked shares at which a model is validated."""


class LossConfig(Config):
    """Loss of a generator. MAGVIT-v2 has the defaults; MaskBit has schedule arccos and visible 1."""

    schedule: Schedule = "cosine"
    """Masked share as a function of a progress that is uniform in [0, 1), sampled for each row."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Label smoothing s: (1 - s) * -log p(true) + s * mean over all values of -log p."""
    class_drop: float = Field(0.1, ge=0, le=1)
    """Probability that a row is shown without its class, for guidance."""
    visible: float = Field(0.0, ge=0)
    """Weight of entries that are not masked, relative to those that are."""


class MaskNoise(NamedTuple):
    """Uniform numbers in [0, 1) that decide the masks and the dropped classes of a batch, row by row."""

    progress: Float[Tensor, "b"]
    classes: Float[Tensor, "b"]
    scores: Float[Tensor, "b e"]
    """One for each entry that may be masked (`MaskedConfig.entries`)."""

    @classmethod
    def of(cls, rng: torch.Generator, count: int, entries: int) -> "MaskNoise":
        """Take the numbers from a random generator, on its device."""
        shapes = ((count,), (count,), (count, entries))
        return cls(*(torch.rand(shape, generator=rng, device=rng.device) for shape in shapes))

    @classmethod
    def of_rows(cls, seed: int, rows: Sequence[int], step: int, entries: int, device: torch.device) -> "MaskNoise":
        """Key the numbers by the numbers of rows: the same in any batch, on any rank and device."""
        noise = uniform_noise(seed, rows, step, (2 + entries,), device)
        return cls(noise[:, 0], noise[:, 1], noise[:, 2:])


class TokenLoss(NamedTuple):
    """Sums over the entries of a batch, so that batches, micro-batches and ranks add up before the division."""

    total: Float[Tensor, ""]
    """Sum of the smoothed and weighted losses, with gradient."""
    entries: Int[Tensor, "g"]
    """Number of masked (or predicted) entries of each sub-token."""
    nats: Float[Tensor, "g"]
    """Sums of -log p(true) over these entries."""
    right: Int[Tensor, "g"]
    """Number of these entries whose largest logit is at the true value."""

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Loss per token, as if all of its sub-tokens were masked; the objective to minimise."""
        return self.total * len(self.entries) / self.entries.sum()

    @property
    def nats_per_token(self) -> Float[Tensor, ""]:
        """Sum over sub-tokens of their mean -log p(true)."""
        return (self.nats / self.entries).sum()


def masked_loss(
    model: MaskedTransformer,
    ids: Int[Tensor, "b t h w"],
    prompt: Prompt,
    config: LossConfig,
    rng: torch.Generator,
    noise: MaskNoise | None = None,
    *,
    check: bool = True,
) -> TokenLoss:
    """Compute the loss of true ids under random masks, dropped classes and dropout.

    The prompt says what is known (and is never masked), which cells show a hint when masked, and the condition. `noise`
    decides masks and classes, and comes from `rng` if it is None; dropout is of `rng`, which must be on the device of
    the model.

    Without `check` no value is looked at: ids and condition must be in range, and no known cell hinted. If `noise` and
    the prompt's `known` and `hinted` then lie in the CPU's memory, the masks are made there, whatever the device of the
    model, and the program does not wait for it.
    """
    prompt = prompt.checked(model.config, model.config.hints) if check else prompt
    maskable = _maskable(model, prompt)
    noise = noise or MaskNoise.of(rng, len(ids), maskable.shape[1])
    shares = masked_shares(noise.progress, config.schedule, maskable.shape[1])
    masked = random_mask(maskable, shares, noise.scores)
    prompt = prompt._replace(condition=_classes_dropped(model, prompt.condition, config, noise))
    return _masked(model, ids, prompt, _by_subtoken(model, masked), config, rng, check)


def autoregressive_loss(
    model: AutoregressiveTransformer,
    ids: Int[Tensor, "b t h w"],
    condition: Condition,
    config: LossConfig,
    rng: torch.Generator | None,
    noise: MaskNoise | None = None,
    *,
    check: bool = True,
) -> TokenLoss:
    """Compute the loss of every token given those before it; without a generator, with nothing dropped.

    `noise` decides which classes are dropped, and comes from `rng` if it is None. Without `check` no value is looked
    at, and the program does not wait for a device: ids and condition must be in range.
    """
    if check:
        condition.check(model.config, len(ids))
    if rng is not None:
        condition = _classes_dropped(model, condition, config, noise or MaskNoise.of(rng, len(ids), 0))
    subtokens = model.factorization.split(ids, check=check)
    logits = model(subtokens, condition, rng)
    flat = subtokens.flatten(0, 3)
    return _token_loss(logits, flat, torch.ones(flat.shape, dtype=torch.bool), config)


@torch.no_grad()
def validate(
    model: MaskedTransformer,
    ids: Int[Tensor, "b t h w"],
    prompt: Prompt,
    samples: Sequence[int],
    shares: Sequence[float] = VALIDATION_SHARES,
) -> dict[float, TokenLoss]:
    """Compute the loss at fixed masked shares, without dropout and smoothing.

    The mask of a sample follows from its number and the share only: it is the same at every step of a training, in
    any batch. A larger share masks what a smaller one does, and more.
    """
    prompt = prompt.checked(model.config, model.config.hints)
    maskable = _maskable(model, prompt)
    rows = [torch.rand(maskable.shape[1], generator=sample_generator(0, number, 0)) for number in samples]
    scores = torch.stack(rows).to(maskable.device)
    unsmoothed = LossConfig(smoothing=0.0)
    losses = {}
    for share in shares:
        masked = random_mask(maskable, torch.full((len(ids),), share), scores)
        losses[share] = _masked(model, ids, prompt, _by_subtoken(model, masked), unsmoothed, None)
    return losses


def _maskable(model: MaskedTransformer, prompt: Prompt) -> Bool[Tensor, "b e"]:
    free = (~prompt.known.flatten(1))[..., None].repeat(1, 1, len(model.factorization.sizes))
    return entries(free, model.config.unit)


def _by_subtoken(model: MaskedTransformer, masked: Bool[Tensor, "b e"]) -> Bool[Tensor, "b n g"]:
    count = len(model.factorization.sizes)
    if model.config.unit == "token":
        return masked[..., None].repeat(1, 1, count)
    return masked.unflatten(1, (-1, count))


def _classes_dropped(
    model: MaskedTransformer | AutoregressiveTransformer,
    condition: Condition,
    config: LossConfig,
    noise: MaskNoise,
) -> Condition:
    if condition.labels is None or config.class_drop == 0:
        return condition
    dropped = send(noise.classes < config.class_drop, condition.labels.device)
    return condition._replace(labels=condition.labels.masked_fill(dropped, model.config.classes))


def _masked(
    model: MaskedTransformer,
    ids: Tensor,
    prompt: Prompt,
    masked: Bool[Tensor, "b n g"],
    config: LossConfig,
    rng: torch.Generator | None,
    check: bool = True,
) -> TokenLoss:
    counted = masked if config.visible == 0 else (~prompt.known.flatten(1))[..., None] | masked
    rows = counted.any(2)
    hidden, prompt = send(masked, ids.device), prompt.to(ids.device)
    subtokens = model.factorization.split(ids, check=check)
    blanks = input_subtokens(model, prompt, check=check)  # masks and hints: no known cell is masked
    tokens = torch.where(hidden.view_as(subtokens), blanks, subtokens)
    logits = model(masked_input(tokens, hidden, prompt), subtokens, rows, rng)
    return _token_loss(logits, subtokens.flatten(1, 3)[places(rows, ids.device)], masked[rows], config)


def _token_loss(
    logits: list[Float[Tensor, "r _"]], subtokens: Int[Tensor, "r g"], masked: Bool[Tensor, "r g"], config: LossConfig
) -> TokenLoss:
    """Sum the losses; half precision ends at the logits: all sums are float32 at least. `masked` may be in the CPU's
    memory: which entries are summed is then known without waiting for a device."""
    totals, nats, right = [], [], []
    weights = send(masked, subtokens.device)
    for g, scores in enumerate(logits):
        own = send(masked[:, g].nonzero()[:, 0], subtokens.device)
        log_p = (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(1)
        plain = F.nll_loss(log_p, subtokens[:, g], reduction="none")
        smooth = (1 - config.smoothing) * plain - config.smoothing * log_p.mean(1)
        counted = weights[:, g].to(smooth)
        totals.append(((counted + config.visible * (1 - counted)) * smooth).sum())
        nats.append(plain.detach()[own].sum())
        right.append((log_p.argmax(1) == subtokens[:, g])[own].sum())
    counts = send(masked.sum(0), subtokens.device)
    return TokenLoss(torch.stack(totals).sum(), counts, torch.stack(nats), torch.stack(right))
