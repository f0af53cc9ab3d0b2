"""A sample of 16 x 16 tokens out of 16,384 codes in 12 steps: our masked transformer beside Halton-MaskGIT's.

Both have the width, depth and heads of B (768, 12, 12), 1,000 classes, the same schedule of steps, and guidance of
scale 2 at every step; weights are random, for time does not ask what is drawn. What differs is theirs and ours: one
head of 16,385 outputs at every cell, against two of 128 at the cells that are still unknown; gated and modulated
blocks, against plain ones. The row `annealed` gives ours its own schedule of guidance (power_cosine), whose first
steps are not guided; theirs has one that begins at 0, and computes both halves anyway.

    SMALTI_HALTON=folder python -m benchmarks sampling
    python -m benchmarks.sampling ours constant 1      # one measurement of peak memory, as JSON
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from benchmarks.measure import child, peak_mb, turns
from benchmarks.peers import halton as peer
from smalti.generate import Condition, MaskedConfig, SamplingConfig, nothing, sample
from smalti.generate.guidance import GuidanceConfig
from smalti.generate.masking import masked_share

GRID = (1, 16, 16)
BITS, CLASSES, STEPS, SCALE = 14, 1000, 12, 2.0
ROUNDS = 2
Kind = Literal["constant", "annealed"]


class Case(NamedTuple):
    """How cells are chosen and guided."""

    kind: Kind
    batch: int

    @property
    def sampling(self) -> SamplingConfig:
        """Ours."""
        order = "halton" if self.kind == "constant" else "confidence"
        schedule = "constant" if self.kind == "constant" else "power_cosine"
        guidance = GuidanceConfig(scale=SCALE, schedule=schedule)
        return SamplingConfig(steps=STEPS, schedule="arccos", order=order, guidance=guidance)

    @property
    def labels(self) -> torch.Tensor:
        """One class for each sample."""
        return torch.arange(self.batch) + 7


def config() -> MaskedConfig:
    """Our model."""
    return MaskedConfig(levels=(2,) * BITS, grid=GRID, classes=CLASSES, dropout=0.0).sized("B")


def our(case: Case) -> Callable[[], object]:
    """Samples by our model."""
    torch.manual_seed(0)
    model, prompt = config().build(), nothing(case.batch, GRID)._replace(condition=Condition(case.labels))
    return lambda: sample(model, prompt, case.sampling)


def their(case: Case) -> Callable[[], object]:
    """Samples by their model."""
    folder = peer.find()
    if folder is None:
        raise SystemExit(f"sampling: no checkout; {peer.HOW}")
    torch.manual_seed(0)
    shape = config()
    model = peer.Halton(folder, width=shape.width, depth=shape.depth, heads=shape.heads, codes=2**BITS)
    sampler = (model.by_halton if case.kind == "constant" else model.by_confidence)(STEPS, SCALE)
    return lambda: model.sample(sampler, case.labels)


def multiplications(case: Case) -> tuple[float, float]:
    """(ours, theirs): products in matrices for one sample, in 1e9.

    In a block 12 width^2 for a token in both (a gated layer of 2/3 the size has the products of a plain one), and
    2 tokens x width in its attention; one token stands before the grid, or after it.
    """
    shape, cells = config(), GRID[1] * GRID[2]
    width, tokens = shape.width, cells + 1
    trunk = shape.depth * (12 * width**2 + 2 * tokens * width) * tokens
    halves = [1 + (case.sampling.guidance.at(step / STEPS) > 0) for step in range(STEPS)]
    unknown = [cells * masked_share("arccos", step / STEPS, cells) for step in range(STEPS)]
    heads = len(shape.factorization().sizes)
    head = heads * width**2 + sum(shape.factorization().sizes) * width  # each has the layer before it once more
    ours = sum(n * (trunk + left * head) for n, left in zip(halves, unknown, strict=True))
    theirs = 2 * STEPS * (trunk + shape.depth * 6 * width**2 + cells * (2**BITS + 1) * width)
    return ours / 1e9, theirs / 1e9


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row for each way of guidance and batch."""
    rows = []
    for case in (Case("constant", 1), Case("constant", 2), Case("annealed", 1)):
        best = turns({"ours": our(case), "theirs": their(case)}, rounds=ROUNDS)
        counted = multiplications(case)
        rows.append(
            {
                "guidance": case.kind,
                "batch": case.batch,
                "ours_gmac": counted[0],
                "theirs_gmac": counted[1],
                "counted_ratio": counted[1] / counted[0],
                "ours_s": best["ours"] / case.batch,
                "theirs_s": best["theirs"] / case.batch,
                "ratio": best["theirs"] / best["ours"],
                "ours_mb": child("benchmarks.sampling", "ours", case.kind, case.batch)["mb"],
                "theirs_mb": child("benchmarks.sampling", "theirs", case.kind, case.batch)["mb"],
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return f"{STEPS} steps, 256 tokens of 2^{BITS} codes, size B, scale {SCALE:g}; seconds and GMAC of a sample", rows


def main(who: str, kind: Kind, batch: int) -> None:
    """Print the memory of one call above what the process held before it: weights and all."""
    torch.set_num_threads(1)
    before = peak_mb()
    {"ours": our, "theirs": their}[who](Case(kind, batch))()
    print(json.dumps({"mb": peak_mb() - before}))


if __name__ == "__main__":
    main(sys.argv[1], "annealed" if sys.argv[2] == "annealed" else "constant", int(sys.argv[3]))
