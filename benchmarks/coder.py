"""How fast ids become bytes and bytes ids: tokens a second of each model, on ids of held-out media of the package.

`encode` of the model prior is all that `smalti compress` does by default: it codes under the adaptive and the uniform
model, too, and keeps the least. Visits and fronts of few tokens are slow: numpy starts some fifty operations for each.

    python -m benchmarks coder
"""

import os
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from torch import Tensor

import smalti
from benchmarks.measure import TINY, fastest
from benchmarks.tf32 import media
from smalti.codec.entropy import Model, decode_ids, encode_ids
from smalti.codec.prior import shipped_prior

ROUNDS = 5


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row a medium and model."""
    rows: list[dict[str, object]] = []
    for name in ("smalti/tiny-image", "smalti/tiny-video")[: 1 if os.environ.get(TINY) else 2]:
        tokenizer = smalti.load(name)
        video: Tensor = media(name)[0]
        ids = tokenizer.encode(video)[0].numpy().astype(np.int64)
        levels, prior = tokenizer.levels, shipped_prior(tokenizer.fingerprint)
        shape = (ids.shape[0], ids.shape[1], ids.shape[2])
        for model in get_args(Model):
            coded = encode_ids(ids, levels, model, prior)
            calls = {
                "encode": lambda m=model: encode_ids(ids, levels, m, prior),  # noqa: B023
                "decode": lambda data=coded.data: decode_ids(data, shape, levels, prior),  # noqa: B023
            }
            best = fastest(calls, rounds=1 if os.environ.get(TINY) else ROUNDS)
            rows.append(
                {
                    "what": f"{name}, {' x '.join(map(str, shape))} ids",
                    "model": coded.model,
                    "bits a token": coded.bits / ids.size,
                    "encode, tokens/s": ids.size / best["encode"],
                    "decode, tokens/s": ids.size / best["decode"],
                }
            )
    return "tokens a second of the range coder; encode of `prior` codes under `adaptive` and `uniform`, too", rows
