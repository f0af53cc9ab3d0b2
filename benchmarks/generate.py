"""Factorized heads against one flat head over 2^K codes: the same masked transformer with two groups of digits, or one.

Both are ours: `groups` is all that differs, so trunk, sampling and loss are the same code. A sample is 4 cosine steps
over 16 x 16 tokens, heads on unknown positions alone; a training step is the loss of a batch, forward and backward.
Memory is the peak of a fresh process above its imports, weights and gradients and all.

    python -m benchmarks generate
    python -m benchmarks.generate sample 18 2      # one measurement of peak memory, as JSON
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.measure import child, fastest, peak_mb
from smalti.generation import (
    LossConfig,
    MaskedConfig,
    MaskedTransformer,
    SamplingConfig,
    balanced,
    empty_prompt,
    masked_loss,
    sample,
)

BITS = (10, 14, 18)
GRID = (1, 16, 16)


def model_of(bits: int, parts: int) -> MaskedTransformer:
    """6 blocks of width 256: the trunk is small, as it would be on a CPU."""
    torch.manual_seed(0)
    levels = (2,) * bits
    shape = {"width": 256, "depth": 6, "heads": 4, "dropout": 0.0}
    return MaskedConfig(levels=levels, groups=balanced(levels, parts), grid=GRID).replace(shape).build()


def sampling(bits: int, parts: int) -> Callable[[], object]:
    """One sample."""
    model = model_of(bits, parts)
    return lambda: sample(model, empty_prompt(1, GRID), SamplingConfig(steps=4))


def training(bits: int, parts: int) -> Callable[[], object]:
    """The loss of two samples, and its gradient."""
    model, rng = model_of(bits, parts), torch.Generator().manual_seed(0)
    ids = torch.randint(2**bits, (2, *GRID), generator=rng)

    def step() -> None:
        model.zero_grad()
        rng.manual_seed(1)
        masked_loss(model, ids, empty_prompt(2, GRID), LossConfig(), rng).mean.backward()

    return step


WORK: Mapping[str, Callable[[int, int], Callable[[], object]]] = {"sample": sampling, "training step": training}


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row for each kind of work and vocabulary."""
    rows = []
    for what, made in WORK.items():
        for bits in BITS:
            contenders = {"factorized": made(bits, 2), "flat": made(bits, 1)}
            best = fastest(contenders, rounds=3 if bits < 18 else 1)
            memory = {parts: child("benchmarks.generate", what, bits, parts)["mb"] for parts in (2, 1)}
            rows.append(
                {
                    "what": what,
                    "K": bits,
                    "factorized_s": best["factorized"],
                    "flat_s": best["flat"],
                    "ratio": best["flat"] / best["factorized"],
                    "factorized_mb": memory[2],
                    "flat_mb": memory[1],
                }
            )
    return "256 tokens, 6 blocks of width 256: two heads of 2^(K/2) against one of 2^K; 4 steps, or a batch of 2", rows


def main(what: str, bits: int, parts: int) -> None:
    """Print the memory of the work above what the process held before it."""
    torch.set_num_threads(1)
    before = peak_mb()
    WORK[what](bits, parts)()
    print(json.dumps({"mb": peak_mb() - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
