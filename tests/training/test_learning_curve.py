"""A seeded run learns as the committed one did: the figures of `docs/learning.md` can be had again."""

import json
from pathlib import Path

import pytest
import torch

from smalti.comparison import (
    Budget,
    ComparisonData,
    Evaluator,
    LearnerSource,
    TokenizerLearner,
    Variant,
    compare_variants,
    find_variants,
    load_parts,
    variant_groups,
)

CURVE = json.loads((Path(__file__).parents[1] / "goldens" / "learning_curve.json").read_text())
DECIBELS, PERPLEXITY = 0.5, 0.3
"""How far another processor may lead a run of the same seed from the mean of the committed seeds."""


def named(name: str) -> Variant:
    return find_variants(name, variant_groups("images", CURVE["steps"]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({row["contender"] for row in CURVE["rows"]}))
def test_a_seeded_run_follows_the_reference_curve(tmp_path, name):
    terms = Budget.parse({**CURVE["terms"], "seeds": 1}, where="curve")
    material = load_parts(ComparisonData.parse(CURVE["media"], where="curve"))
    config = named(name).training("images", CURVE["steps"])
    cpu = torch.device("cpu")
    entry = LearnerSource(name, lambda seed: TokenizerLearner(config.replace({"seed": seed}), cpu))
    (run,) = compare_variants([entry], material, terms, Evaluator(material.heldout), tmp_path, device=cpu)
    rows = [row for row in CURVE["rows"] if row["contender"] == name]
    assert [point.steps for point in run.points] == [row["steps"] for row in rows]
    for point, row in zip(run.points, rows, strict=True):
        spread = max(row["psnr_of_seeds"]) - min(row["psnr_of_seeds"])
        assert abs(point.psnr - row["psnr"]) < DECIBELS + spread, (point.steps, point.psnr, row["psnr"])
    last = rows[-1]
    spread = (max(last["perplexity_of_seeds"]) - min(last["perplexity_of_seeds"])) / last["perplexity"]
    assert abs(run.points[-1].perplexity / last["perplexity"] - 1) < PERPLEXITY + spread
    assert run.points[-1].psnr > run.points[0].psnr + 1
