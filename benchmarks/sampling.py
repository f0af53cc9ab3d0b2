"""A sample of 16 x 16 tokens out of 16,384 codes in 12 steps: our masked transformer beside Halton-MaskGIT's.

Both have the width, depth and heads of B (768, 12, 12), 1,000 classes, the same schedule of steps, cells in Halton's
order, and guidance of scale 2 at every step; weights are random, for time does not ask what is drawn. What differs is
theirs and ours: one head of 16,385 outputs at every cell, against two of 128 at the cells that are still unknown;
gated and modulated blocks, against plain ones.

    SMALTI_HALTON=folder python -m benchmarks sampling
    python -m benchmarks.sampling ours      # one measurement of peak memory, as JSON
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.measure import child, peak_mb, turns
from benchmarks.peers import halton as peer
from smalti.generation import Condition, MaskedConfig, SamplingConfig, empty_prompt, sample
from smalti.generation.masked import masked_share
from smalti.generation.sampling import GuidanceConfig

GRID = (1, 16, 16)
BITS, CLASSES, STEPS, SCALE, BATCH = 14, 1000, 12, 2.0, 1
ROUNDS = 2
LABELS = torch.arange(BATCH) + 7


def config() -> MaskedConfig:
    """Our model."""
    return MaskedConfig(levels=(2,) * BITS, grid=GRID, classes=CLASSES, dropout=0.0).sized("B")


def our() -> Callable[[], object]:
    """Samples by our model."""
    torch.manual_seed(0)
    model, prompt = config().build(), empty_prompt(BATCH, GRID)._replace(condition=Condition(LABELS))
    guidance = GuidanceConfig(scale=SCALE)
    sampling = SamplingConfig(steps=STEPS, schedule="arccos", order="halton", guidance=guidance)
    return lambda: sample(model, prompt, sampling)


def their() -> Callable[[], object]:
    """Samples by their model."""
    folder = peer.find()
    if folder is None:
        raise SystemExit(f"sampling: no checkout; {peer.HOW}")
    torch.manual_seed(0)
    shape = config()
    model = peer.Halton(folder, width=shape.width, depth=shape.depth, heads=shape.heads, codes=2**BITS)
    sampler = model.sampler(STEPS, SCALE)
    return lambda: model.sample(sampler, LABELS)


def multiplications() -> dict[str, float]:
    """Products in matrices for one sample, in 1e9.

    In a block 12 width^2 for a token in both (a gated layer of 2/3 the size has the products of a plain one), and
    2 tokens x width in its attention; one token stands before the grid, or after it. Twice, for guidance.
    """
    shape, cells = config(), GRID[1] * GRID[2]
    width, tokens = shape.width, cells + 1
    trunk = STEPS * shape.depth * (12 * width**2 + 2 * tokens * width) * tokens
    unknown = sum(cells * masked_share("arccos", step / STEPS, cells) for step in range(STEPS))
    heads = sum(width**2 + size * width for size in shape.factorization().sizes)
    theirs = STEPS * (shape.depth * 6 * width**2 + cells * (2**BITS + 1) * width)
    return {"ours": 2 * (trunk + unknown * heads) / 1e9, "theirs": 2 * (trunk + theirs) / 1e9}


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row."""
    best = turns({"ours": our(), "theirs": their()}, rounds=ROUNDS)
    counted = multiplications()
    row = {
        "ours_gmac": counted["ours"],
        "theirs_gmac": counted["theirs"],
        "counted_ratio": counted["theirs"] / counted["ours"],
        "ours_s": best["ours"] / BATCH,
        "theirs_s": best["theirs"] / BATCH,
        "ratio": best["theirs"] / best["ours"],
        "ours_mb": child("benchmarks.sampling", "ours")["mb"],
        "theirs_mb": child("benchmarks.sampling", "theirs")["mb"],
    }
    return f"{STEPS} steps, 256 tokens of 2^{BITS} codes, size B, guidance of scale {SCALE:g}, batch {BATCH}", [row]


def main(who: str) -> None:
    """Print the memory of one call above what the process held before it: weights and all."""
    torch.set_num_threads(1)
    before = peak_mb()
    {"ours": our, "theirs": their}[who]()()
    print(json.dumps({"mb": peak_mb() - before}))


if __name__ == "__main__":
    main(sys.argv[1])
