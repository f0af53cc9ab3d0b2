"""What generators are trained on: the cross-entropy of parts, and its validation under fixed masks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.generation.autoregressive import AutoregressiveTransformer
from smalti.generation.blocks import Condition
from smalti.generation.logits import keyed, uniforms
from smalti.generation.masking import Schedule, masked_shares, random_mask
from smalti.generation.prompt import Prompt
from smalti.generation.sample import entries, seen_of, shown_parts
from smalti.generation.transformer import MaskedTransformer

VALIDATION_SHARES = (0.25, 0.5, 0.75, 1.0)


class LossConfig(Config):
    """The loss of a generator. MAGVIT-v2 has the defaults; MaskBit has schedule arccos and visible 1."""

    schedule: Schedule = "cosine"
    """Masked share as a function of a progress that is uniform in [0, 1), sampled for each row."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Label smoothing s: (1 - s) * -log p(true) + s * mean over all values of -log p."""
    class_drop: float = Field(0.1, ge=0, le=1)
    """Probability that a row is shown without its class, for guidance."""
    visible: float = Field(0.0, ge=0)
    """Weight of entries that are not masked, relative to those that are."""


class Chances(NamedTuple):
    """What decides the masks and the dropped classes of a batch: uniform numbers in [0, 1), those of a row its own."""

    progress: Float[Tensor, "b"]
    classes: Float[Tensor, "b"]
    scores: Float[Tensor, "b e"]
    """Of what may be masked (`MaskedConfig.entries`)."""

    @classmethod
    def of(cls, rng: torch.Generator, count: int, entries: int) -> "Chances":
        """From a generator, on its device."""
        made = [torch.rand(shape, generator=rng, device=rng.device) for shape in ((count,), (count,), (count, entries))]
        return cls(*made)

    @classmethod
    def keyed(cls, seed: int, rows: Sequence[int], step: int, entries: int, device: torch.device) -> "Chances":
        """Of rows by number: the same in any batch, on any rank and device."""
        made = uniforms(seed, rows, step, (2 + entries,), device)
        return cls(made[:, 0], made[:, 1], made[:, 2:])


class TokenLoss(NamedTuple):
    """Sums over the entries of a batch, so that batches, parts of them and ranks add up before the division."""

    total: Float[Tensor, ""]
    """Smoothed and weighted, with gradient."""
    entries: Int[Tensor, "g"]
    """Masked (or predicted) entries of each part."""
    nats: Float[Tensor, "g"]
    """Sums of -log p(true) over those."""
    right: Int[Tensor, "g"]
    """How many of those have the largest logit at the true value."""

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Per token: what a token would cost if all of its parts were masked. Minimise this."""
        return self.total * len(self.entries) / self.entries.sum()

    @property
    def nats_per_token(self) -> Float[Tensor, ""]:
        """The sum over parts of their mean -log p(true)."""
        return (self.nats / self.entries).sum()


def masked_loss(
    model: MaskedTransformer,
    ids: Int[Tensor, "b t h w"],
    prompt: Prompt,
    config: LossConfig,
    rng: torch.Generator,
    chances: Chances | None = None,
) -> TokenLoss:
    """The loss of true ids under random masks, dropped classes and dropout.

    The prompt says what is known (and is never masked), which cells show a hint when masked, and the condition. Masks
    and classes go by `chances`, made by `rng` where there are none; dropout is of `rng`, which must be on the device of
    the model.
    """
    prompt = prompt.checked(model.config, model.config.hints)
    maskable = _maskable(model, prompt)
    chances = chances or Chances.of(rng, len(ids), maskable.shape[1])
    shares = masked_shares(chances.progress, config.schedule, maskable.shape[1])
    masked = random_mask(maskable, shares, chances.scores)
    prompt = prompt._replace(condition=_classes_dropped(model, prompt.condition, config, chances))
    return _masked(model, ids, prompt, _as_parts(model, masked), config, rng)


def autoregressive_loss(
    model: AutoregressiveTransformer,
    ids: Int[Tensor, "b t h w"],
    condition: Condition,
    config: LossConfig,
    rng: torch.Generator | None,
    chances: Chances | None = None,
) -> TokenLoss:
    """The loss of every token given those before it; without a generator, with nothing dropped.

    Classes are dropped by `chances`, made by `rng` where there are none.
    """
    condition.check(model.config, len(ids))
    if rng is not None:
        condition = _classes_dropped(model, condition, config, chances or Chances.of(rng, len(ids), 0))
    parts = model.factorization.split(ids)
    logits = model(parts, condition, rng)
    flat = parts.flatten(0, 3)
    return _token_loss(logits, flat, torch.ones_like(flat, dtype=torch.bool), config)


@torch.no_grad()
def validate(
    model: MaskedTransformer,
    ids: Int[Tensor, "b t h w"],
    prompt: Prompt,
    samples: Sequence[int],
    shares: Sequence[float] = VALIDATION_SHARES,
) -> dict[float, TokenLoss]:
    """The loss at fixed masked shares, without dropout and smoothing.

    The mask of a sample follows from its number and the share alone: it is the same at every step of a training, in
    any batch. The larger share masks what the smaller does, and more.
    """
    prompt = prompt.checked(model.config, model.config.hints)
    maskable = _maskable(model, prompt)
    rows = [torch.rand(maskable.shape[1], generator=keyed(0, number, 0)) for number in samples]
    scores = torch.stack(rows).to(maskable.device)
    plain = LossConfig(smoothing=0.0)
    found = {}
    for share in shares:
        masked = random_mask(maskable, torch.full((len(ids),), share), scores)
        found[share] = _masked(model, ids, prompt, _as_parts(model, masked), plain, None)
    return found


def _maskable(model: MaskedTransformer, prompt: Prompt) -> Bool[Tensor, "b e"]:
    free = (~prompt.known.flatten(1))[..., None].repeat(1, 1, len(model.factorization.sizes))
    return entries(free, model.config.unit)


def _as_parts(model: MaskedTransformer, masked: Bool[Tensor, "b e"]) -> Bool[Tensor, "b n g"]:
    count = len(model.factorization.sizes)
    if model.config.unit == "token":
        return masked[..., None].repeat(1, 1, count)
    return masked.unflatten(1, (-1, count))


def _classes_dropped(
    model: MaskedTransformer | AutoregressiveTransformer,
    condition: Condition,
    config: LossConfig,
    chances: Chances,
) -> Condition:
    if condition.labels is None or config.class_drop == 0:
        return condition
    dropped = chances.classes < config.class_drop
    return condition._replace(labels=condition.labels.masked_fill(dropped, model.config.classes))


def _masked(
    model: MaskedTransformer,
    ids: Tensor,
    prompt: Prompt,
    masked: Bool[Tensor, "b n g"],
    config: LossConfig,
    rng: torch.Generator | None,
) -> TokenLoss:
    parts = model.factorization.split(ids)
    shown = torch.where(masked.view_as(parts), shown_parts(model, prompt._replace(known=prompt.known & False)), parts)
    seen = seen_of(shown, masked, prompt, list(range(len(ids))))
    counted = masked if config.visible == 0 else (~prompt.known.flatten(1))[..., None] | masked
    rows = counted.any(2)
    logits = model(seen, parts, rows, rng)
    return _token_loss(logits, parts.flatten(1, 3)[rows], masked[rows], config)


def _token_loss(
    logits: list[Float[Tensor, "r _"]], parts: Int[Tensor, "r g"], masked: Bool[Tensor, "r g"], config: LossConfig
) -> TokenLoss:
    """Half precision ends at the logits: all sums are float32 at least."""
    totals, nats, right = [], [], []
    for g, scores in enumerate(logits):
        log_p = (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(1)
        plain = F.nll_loss(log_p, parts[:, g], reduction="none")
        smooth = (1 - config.smoothing) * plain - config.smoothing * log_p.mean(1)
        counted = masked[:, g].to(smooth)
        totals.append(((counted + config.visible * (1 - counted)) * smooth).sum())
        nats.append(plain.detach()[masked[:, g]].sum())
        right.append((log_p.argmax(1) == parts[:, g])[masked[:, g]].sum())
    return TokenLoss(torch.stack(totals).sum(), masked.sum(0), torch.stack(nats), torch.stack(right))
