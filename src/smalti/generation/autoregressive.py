"""The autoregressive baseline: token by token in raster order, part by part within a token (Open-MAGVIT2's form).

It shares blocks, positions, vocabulary, conditions, guidance and draws with the masked transformer; it differs in the
mask of attention, and in that the feature of a token is read where the token before it stands.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.generation.blocks import SIZES, Condition, NetworkConfig, SizeName, Trunk, initialize
from smalti.generation.guidance import Guided, Heads
from smalti.generation.logits import DrawConfig, draw, numbered, uniforms
from smalti.generation.positions import places
from smalti.generation.prompt import Prompt
from smalti.generation.vocabulary import Vocabulary
from smalti.nn.stream import Stream


class AutoregressiveConfig(NetworkConfig):
    """An autoregressive transformer with next sub-token prediction."""

    kind: Literal["autoregressive"] = "autoregressive"
    part_layers: int = Field(2, ge=0)
    """Blocks that predict the parts of a token one after the other; 0 predicts all at once, as if independent."""

    def sized(self, size: SizeName) -> "AutoregressiveConfig":
        """A copy with the width, depth and heads of S, B, L or H."""
        return self.replace(SIZES[size]._asdict())

    def build(self) -> "AutoregressiveTransformer":
        """The model, with weights from torch's global rng."""
        return AutoregressiveTransformer(self)


class AutoregressiveTransformer(nn.Module):
    """p(ids) = prod_i prod_g p(part g of token i | parts before it, tokens before it, class)."""

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config, masked=False)
        self.factorization = self.vocabulary.factorization
        self.trunk = Trunk(config, causal=True)
        initialize(self, config)

    def forward(
        self, parts: Int[Tensor, "b t h w g"], condition: Condition, rng: torch.Generator | None = None
    ) -> list[Float[Tensor, "r _"]]:
        """Logits of every part of every token, r = b t h w, given the true ones before it; all that training needs."""
        grid = (parts.shape[1], parts.shape[2], parts.shape[3])
        features = self.features(parts.flatten(1, 3)[:, :-1], grid, condition, rng=rng)
        return self.vocabulary.logits(features.flatten(0, 1), parts.flatten(0, 3))

    def features(
        self,
        parts: Int[Tensor, "b m g"],
        grid: tuple[int, int, int],
        condition: Condition,
        *,
        first: int = 0,
        stream: Stream | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b k d"]:
        """What the heads read to predict the token after each of tokens `first` to `first + m` in raster order.

        At the start of a sequence that for token 0 comes before them (k = m + 1, and m later). A stream holds the keys
        and values of all that has passed; a fresh one, or none, is a start.
        """
        self.trunk.check_grid(grid)
        at = places(grid, parts.device)[first : first + parts.shape[1]]
        x = self.trunk.placed(self.vocabulary.embed(parts), at)
        prefix = 0
        if stream is None or not stream.started:
            x = torch.cat([self.trunk.begin(condition, len(parts)), x], 1)
            prefix = self.trunk.prefix
        x = self.trunk(x, self.trunk.turns(at, prefix), stream, rng)
        return x[:, max(0, prefix - 1) :]


@torch.inference_mode()
def sample_autoregressive(
    model: AutoregressiveTransformer,
    prompt: Prompt,
    config: DrawConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Int[Tensor, "b t h w"]:
    """The prompt with every cell filled. What is known must stand before all else in raster order, in every sample.

    Noise is keyed by (seed, sample, number of the token). Raises ConfigError for another prompt.
    """
    config.guidance.check(model.config.classes, prompt.condition)
    home = prompt.ids.device
    prompt = prompt.checked(model.config, hints=False).to(model.vocabulary.dense.weight.device)
    names, known = numbered(samples, len(prompt.ids)), _known_first(prompt)
    grid = (prompt.ids.shape[1], prompt.ids.shape[2], prompt.ids.shape[3])
    parts = model.factorization.split(prompt.ids.masked_fill(~prompt.known, 0)).flatten(1, 3)
    stream, done = Stream(), 0
    # Guided throughout or not at all, whatever the schedule: a half that joined later would have no past.
    guided = Guided.of([config.guidance.scale] * len(names), parts.device)
    condition = guided.conditions(prompt.condition, model.config.classes)
    here = torch.ones(len(names), 1, dtype=torch.bool, device=parts.device)
    for i in range(known, parts.shape[1]):
        features = model.features(guided.twice(parts[:, done:i]), grid, condition, first=done, stream=stream)
        scale = config.guidance.at((i - known) / (parts.shape[1] - known))
        heads = Heads(model.vocabulary, features[:, -1:], here, guided.scaled(scale))
        uniform = uniforms(seed, names, i, (parts.shape[2],), parts.device)
        for g in range(parts.shape[2]):
            parts[:, i, g] = draw(heads(g, parts[:, i]), uniform[:, g], config)
        done = i
    return model.factorization.join(parts).view(prompt.ids.shape).to(home)


def _known_first(prompt: Prompt) -> int:
    """How many tokens are known. Raises ConfigError unless they are the first ones, as many in every sample."""
    known = prompt.known.flatten(1)
    count = int(known[0].sum()) if len(known) else 0
    if len(known) and not bool((known == (torch.arange(known.shape[1], device=known.device) < count)).all()):
        raise ConfigError(
            "prompt: an autoregressive model continues what stands first in raster order, as much in every sample; "
            "use a masked model to fill anything else"
        )
    return count
