"""Parallel decoding: all that is masked is drawn at once, the best of it is kept, and so on in a few steps.

Step k of K: the model sees what is known and filled; every masked entry is drawn from its (guided, tempered)
distribution; the schedule says how many stay, `order` says which. Nothing that is known ever changes, and the number
that each step fills is exact (`counts`). Noise is keyed by (seed, sample, step), so a sample does not depend on the
batch that it is drawn in, but for rounding where a batch changes the order of sums.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from smalti.generation.guidance import Guided, Heads
from smalti.generation.logits import DrawConfig, draw, gumbel, numbered, uniforms
from smalti.generation.masking import Schedule, Unit, counts, first_ranked
from smalti.generation.positions import halton_order
from smalti.generation.prompt import Prompt
from smalti.generation.transformer import MaskedTransformer, Seen

_BEFORE = -1
"""The step whose noise decides a random order; those of sampling count from 0."""


class SamplingConfig(DrawConfig):
    """Parallel decoding. MAGVIT-v2: 12 to 64 steps, noise 15 to 32, guidance power_cosine up to 25."""

    steps: int = Field(12, ge=1)
    """Passes of the model; at most one per masked entry."""
    schedule: Schedule = "cosine"
    """Share of entries that stay masked, by progress."""
    order: Literal["confidence", "halton", "random"] = "confidence"
    """Order of filling: most confident first, cells far apart (`halton`), or random."""
    noise: float = Field(4.5, ge=0, le=1e6)
    """Scale of the Gumbel noise on the log probability (the sum over parts) in the order `confidence`, which falls to 0
    over the steps; the papers' choice temperature."""


class Progress(NamedTuple):
    """The state after a step."""

    parts: Int[Tensor, "b t h w g"]
    """Masks and hints where nothing is filled yet."""
    filled: Bool[Tensor, "b t h w g"]
    """Known or drawn."""


def sample(
    model: MaskedTransformer,
    prompt: Prompt,
    config: SamplingConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Int[Tensor, "b t h w"]:
    """The prompt with every cell filled. `samples` are the numbers that key the noise of each row (0, 1, ... if None).

    Raises ConfigError for a prompt or a condition that does not fit the model.
    """
    parts = None
    for progress in sample_steps(model, prompt, config, seed=seed, samples=samples):
        parts = progress.parts
    if parts is None:
        return prompt.ids.clone()
    return model.factorization.join(parts).to(prompt.ids.device)


@torch.inference_mode()
def sample_steps(
    model: MaskedTransformer,
    prompt: Prompt,
    config: SamplingConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Iterator[Progress]:
    """The state after each step; none if all is known."""
    config.guidance.check(model.config.classes, prompt.condition)
    prompt = prompt.checked(model.config, model.config.hints).to(model.vocabulary.dense.weight.device)
    names, unit = numbered(samples, len(prompt.ids)), model.config.unit
    shown = shown_parts(model, prompt)
    masked = (~prompt.known.flatten(1))[..., None].repeat(1, 1, shown.shape[-1])
    plan = [counts(n, config.steps, config.schedule) for n in entries(masked, unit).sum(1).tolist()]
    ranks = _ranks(config, seed, names, prompt)
    for step in range(max(map(len, plan), default=0)):
        rows = [b for b in range(len(names)) if step < len(plan[b])]
        state = _State(
            seen_of(shown[rows], masked[rows], prompt, rows), masked[rows], [step / len(plan[b]) for b in rows]
        )
        noise = uniforms(seed, [names[b] for b in rows], step, (2, *masked.shape[1:]), shown.device)
        drawn, certainty = _draw(model, state, noise[:, 0], config)
        if ranks is None:
            cooling = torch.tensor([1 - (step + 1) / len(plan[b]) for b in rows], device=shown.device)
            shaken = config.noise * cooling[:, None] * gumbel(entries(noise[:, 1], unit))
            score = -(entries(certainty, unit, Tensor.sum) + shaken)
        else:
            score = entries(ranks[rows, :, None].expand_as(certainty), unit).to(certainty)
        score = score.masked_fill(~entries(masked[rows], unit), torch.inf)
        chosen = first_ranked(score, torch.tensor([plan[b][step] for b in rows], device=shown.device))
        chosen = chosen[..., None] if unit == "token" else chosen.unflatten(1, drawn.shape[1:])
        shown[rows] = torch.where(chosen, drawn, shown[rows].flatten(1, 3)).view_as(state.seen.parts)
        masked[rows] = masked[rows] & ~chosen
        yield Progress(shown.clone(), ~masked.view_as(shown))


class _State(NamedTuple):
    seen: Seen
    masked: Bool[Tensor, "b n g"]
    progress: list[float]


def entries(x: Tensor, unit: Unit, whole: Callable[[Tensor, int], Tensor] = Tensor.amax) -> Tensor:
    """`b n g` as what is filled at once: the parts, or tokens as `whole` joins their parts."""
    return whole(x, 2) if unit == "token" else x.flatten(1)


def shown_parts(model: MaskedTransformer, prompt: Prompt) -> Int[Tensor, "b t h w g"]:
    """What the model sees before anything is filled: known and hinted tokens, and masks."""
    grid = prompt.ids.shape[1:]
    parts = model.factorization.split(prompt.ids.masked_fill(~prompt.given, 0))
    return torch.where(prompt.given[..., None], parts, model.blank((grid[0], grid[1], grid[2]), len(parts)))


def seen_of(parts: Int[Tensor, "b t h w g"], masked: Bool[Tensor, "b n g"], prompt: Prompt, rows: list[int]) -> Seen:
    """What the model sees of some samples of a prompt; a cell is hinted as long as a part of it is masked."""
    hinted = None
    if prompt.hinted is not None:
        hinted = prompt.hinted[rows] & masked.any(2).view(parts.shape[:-1])
    return Seen(parts, prompt.condition.take(torch.tensor(rows, device=parts.device)), hinted)


def _draw(
    model: MaskedTransformer, state: _State, uniform: Float[Tensor, "b n g"], config: SamplingConfig
) -> tuple[Int[Tensor, "b n g"], Float[Tensor, "b n g"]]:
    """Parts drawn at every masked entry (the others as they are), and the log probability of each.

    The heads see the cells with a masked entry alone; the unconditional half has the guided samples alone.
    """
    cells = state.masked.any(2)
    seen = state.seen
    guided = Guided.of([config.guidance.at(r) for r in state.progress], cells.device)
    hinted = None if seen.hinted is None else guided.twice(seen.hinted)
    both = Seen(guided.twice(seen.parts), guided.conditions(seen.condition, model.config.classes), hinted)
    heads = Heads(model.vocabulary, model.features(both), cells, guided)
    parts = seen.parts.flatten(1, 3).clone()
    rows, masked, uniform = parts[cells], state.masked[cells], uniform[cells]
    columns = []
    for g in range(rows.shape[1]):
        logits = heads(g, rows)
        rows[:, g] = torch.where(masked[:, g], draw(logits, uniform[:, g], config), rows[:, g])
        columns.append(logits.log_softmax(1).gather(1, rows[:, g, None]))
    certainty = torch.cat(columns, 1)
    everywhere = certainty.new_zeros(parts.shape)
    everywhere[cells], parts[cells] = certainty, rows
    return parts, everywhere


def _ranks(config: SamplingConfig, seed: int, names: list[int], prompt: Prompt) -> Int[Tensor, "b n"] | None:
    """The rank of each cell in a fixed order of filling; None where confidence decides."""
    if config.order == "confidence":
        return None
    _, t, h, w = prompt.ids.shape
    if config.order == "halton":
        order = halton_order((t, h, w)).expand(len(names), -1)
    else:
        order = uniforms(seed, names, _BEFORE, (t * h * w,), torch.device("cpu")).argsort(1)
    return order.argsort(1).to(prompt.ids.device)
