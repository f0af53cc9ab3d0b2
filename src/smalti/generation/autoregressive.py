"""The autoregressive transformer: token by token in raster order, one sub-token after the other (as Open-MAGVIT2).

It shares blocks, positions, vocabulary, conditions, guidance and sampling with the masked transformer; it differs in
the attention mask, and in that the feature of a token is read at the token before it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Blocks
from smalti.errors import ConfigError
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
    sample_logits,
    sample_numbers,
    uniform_noise,
)
from smalti.nn.causal import Stream


class AutoregressiveConfig(NetworkConfig):
    """An autoregressive transformer with next sub-token prediction."""

    kind: Literal["autoregressive"] = "autoregressive"
    part_layers: Blocks = Field(2, ge=0)
    """Blocks that predict the sub-tokens of a token one after the other; 0 predicts all at once, as if independent."""

    def build(self) -> "AutoregressiveTransformer":
        """Build the model, with weights from torch's global rng."""
        return AutoregressiveTransformer(self)


class AutoregressiveTransformer(nn.Module):
    """A causal transformer: p(ids) = prod_i prod_g p(sub-token g of token i | all before it, class)."""

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config, masked=False)
        self.factorization = self.vocabulary.factorization
        self.trunk = Trunk(config, causal=True)
        initialize(self, config)

    def forward(
        self, subtokens: Int[Tensor, "b t h w g"], condition: Condition, rng: torch.Generator | None = None
    ) -> list[Float[Tensor, "r _"]]:
        """Compute the logits of every sub-token of every token, r = b t h w, given the true ones before it."""
        grid = (subtokens.shape[1], subtokens.shape[2], subtokens.shape[3])
        features = self.features(subtokens.flatten(1, 3)[:, :-1], grid, condition, rng=rng)
        return self.vocabulary.logits(features.flatten(0, 1), subtokens.flatten(0, 3))

    def features(
        self,
        subtokens: Int[Tensor, "b m g"],
        grid: tuple[int, int, int],
        condition: Condition,
        *,
        first: int = 0,
        stream: Stream | None = None,
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "b k d"]:
        """Compute the features that predict the token after each of tokens `first` to `first + m` in raster order.

        At the start of a sequence, the feature for token 0 comes first (k = m + 1, and m later). A stream holds the
        keys and values of all earlier tokens; a fresh stream, or none, is a start.
        """
        self.trunk.check_grid(grid)
        positions = grid_positions(grid, subtokens.device)[first : first + subtokens.shape[1]]
        x = self.trunk.add_positions(self.vocabulary.embed(subtokens), positions)
        prefix = 0
        if stream is None or not stream.started:
            x = torch.cat([self.trunk.begin(condition, len(subtokens)), x], 1)
            prefix = self.trunk.prefix
        x = self.trunk(x, self.trunk.rope(positions, prefix), stream, rng)
        return x[:, max(0, prefix - 1) :]


@torch.inference_mode()
def sample_autoregressive(
    model: AutoregressiveTransformer,
    prompt: Prompt,
    config: TokenSamplingConfig,
    *,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Int[Tensor, "b t h w"]:
    """Fill every cell of a prompt, whose known cells must be the first in raster order, as many in every sample.

    Noise is keyed by (seed, sample, number of the token). Known tokens are read once for all samples that begin with
    the same ones, in the same class. Raises ConfigError for another prompt.
    """
    config.guidance.check(model.config.classes, prompt.condition)
    home = prompt.ids.device
    prompt = prompt.checked(model.config, hints=False).to(model.vocabulary.dense.weight.device)
    numbers, known = sample_numbers(samples, len(prompt.ids)), _known_first(prompt)
    grid = (prompt.ids.shape[1], prompt.ids.shape[2], prompt.ids.shape[3])
    subtokens = model.factorization.split(prompt.ids.masked_fill(~prompt.known, 0)).flatten(1, 3)
    # Guided throughout or not at all, whatever the schedule: a half that joined later would have no past.
    guided = GuidedBatch.of([config.guidance.scale] * len(numbers), subtokens.device)
    condition = guided.conditions(prompt.condition, model.config.classes)
    here = torch.ones(len(numbers), 1, dtype=torch.bool, device=subtokens.device)
    for i in range(known, subtokens.shape[1]):
        if i == known:
            features, stream = _begin(model, guided.twice(subtokens[:, :known]), grid, condition)
        else:
            last = guided.twice(subtokens[:, i - 1 : i])
            features = model.features(last, grid, condition, first=i - 1, stream=stream)
        scale = config.guidance.at((i - known) / (subtokens.shape[1] - known))
        heads = GuidedHeads(model.vocabulary, features[:, -1:], here, guided.scaled(scale))
        uniform = uniform_noise(seed, numbers, i, (subtokens.shape[2],), subtokens.device)
        for g in range(subtokens.shape[2]):
            subtokens[:, i, g] = sample_logits(heads(g, subtokens[:, i]), uniform[:, g], config)
    return model.factorization.join(subtokens).view(prompt.ids.shape).to(home)


def _begin(
    model: AutoregressiveTransformer,
    subtokens: Int[Tensor, "b m g"],
    grid: tuple[int, int, int],
    condition: Condition,
) -> tuple[Float[Tensor, "b k d"], Stream]:
    """Read the first tokens of all rows, equal ones once; return their features and the stream that goes on."""
    about = [x[:, None] for x in condition if x is not None]
    rows = torch.cat([subtokens.new_zeros(len(subtokens), 1), subtokens.flatten(1), *about], 1)  # never empty
    distinct, number = torch.unique(rows, dim=0, return_inverse=True)
    some = (number == torch.arange(len(distinct), device=number.device)[:, None]).int().argmax(1)  # a row of each
    stream = Stream()
    features = model.features(subtokens[some], grid, condition.take(some), stream=stream)
    keys_values = {layer: carry[:, number] for layer, carry in stream.carries.items()}
    return features[number], Stream.continued(keys_values)


def _known_first(prompt: Prompt) -> int:
    """Count the known tokens. Raises ConfigError unless they are the first ones, as many in every sample."""
    known = prompt.known.flatten(1)
    count = int(known[0].sum()) if len(known) else 0
    if len(known) and not bool((known == (torch.arange(known.shape[1], device=known.device) < count)).all()):
        raise ConfigError(
            "prompt: an autoregressive model continues the first tokens in raster order, as many in every sample; "
            "use a masked model to fill anything else"
        )
    return count
