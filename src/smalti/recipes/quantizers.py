"""Quantizers by name, `fsq64000`, `dsq15360`, `lfq18`, `vq8192`, each with the losses and weights that fit it."""

import re
from collections.abc import Mapping
from typing import NamedTuple, get_args

from smalti.errors import ConfigError
from smalti.quantize import CodebookConfig, DSQConfig, FSQConfig, LFQConfig, QuantizerConfig
from smalti.quantize.codebook import CodebookLossName, Lookup
from smalti.quantize.quantizer import LossName
from smalti.training.config import TokenizerTraining

SCALAR_LEVELS: Mapping[int, tuple[int, ...]] = {
    240: (8, 6, 5),
    1_000: (8, 5, 5, 5),
    4_375: (7, 5, 5, 5, 5),
    15_360: (8, 8, 8, 6, 5),
    64_000: (8, 8, 8, 5, 5, 5),
}
"""Levels of FSQ and DSQ by the number of codes, those of the FSQ paper (arXiv 2309.15505, section 4.1)."""
QUANTIZER_LOSSES = frozenset((*get_args(LossName), *get_args(CodebookLossName)))
_COUNTS = ", ".join(map(str, SCALAR_LEVELS))
_FORMS = f"fsqN or dsqN with N of {_COUNTS}; lfqBITS, as lfq18; vqROWS or vqROWS-cosine, as vq8192"

_ENTROPIES = {"token_entropy": 0.001, "batch_entropy": -0.001, "commitment": 0.01}
"""Beside a pixel loss of weight 1: MAGVIT-v2's, a hundred times as large, cost 2.3 dB (docs/learning.md)."""
CODEBOOK_WEIGHTS: Mapping[str, float] = {"codebook": 1.0, "commitment": 0.25}
"""Weights of a codebook quantizer's losses beside a pixel loss of weight 1, those of VQ-VAE (arXiv 1711.00937)."""


class NamedQuantizer(NamedTuple):
    """A quantizer and what its training takes."""

    config: QuantizerConfig
    weights: Mapping[str, float]
    """Weights of its losses, beside a pixel loss of weight 1."""
    entropy_boost: float
    """Boost of the batch entropy at the first step."""


def named_quantizer(name: str) -> NamedQuantizer:
    """Return the quantizer of a name, as `lfq18`. Raises ConfigError that lists the forms of names."""
    match = re.fullmatch(r"(fsq|dsq|lfq|vq)([1-9][0-9]{0,7})(-cosine)?", name)
    kind, number, cosine = match.groups() if match else ("", "0", None)
    count = int(number)
    if kind in ("fsq", "dsq") and count in SCALAR_LEVELS and not cosine:
        scalar = FSQConfig(levels=SCALAR_LEVELS[count]) if kind == "fsq" else DSQConfig(levels=SCALAR_LEVELS[count])
        return NamedQuantizer(scalar, {}, 0.0)
    if kind == "lfq" and count <= 24 and not cosine:
        return NamedQuantizer(LFQConfig(bits=count, temperature=1.0), _ENTROPIES, 19.0)
    if kind == "vq" and 2 <= count <= 1 << 24:
        by: Lookup = "cosine" if cosine else "euclidean"
        return NamedQuantizer(CodebookConfig(size=count, dim=8, by=by), CODEBOOK_WEIGHTS, 0.0)
    raise ConfigError(f"quantizer {name}: no such quantizer; give {_FORMS}")


def with_quantizer(config: TokenizerTraining, name: str) -> TokenizerTraining:
    """Return a run's config with the quantizer of a name, its losses and their weights in place of the present ones."""
    quantizer, own, boost = named_quantizer(name)
    others = {loss: weight for loss, weight in config.weights.items() if loss not in QUANTIZER_LOSSES}
    return config.replace(
        {
            "tokenizer": config.tokenizer.replace({"quantizer": quantizer}),
            "weights": {**others, **own},
            "entropy_boost": boost,
        }
    )
