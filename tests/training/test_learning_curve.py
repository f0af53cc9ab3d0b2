"""A seeded run learns as the committed one did: the figures of `docs/learning.md` can be had again."""

import json
from pathlib import Path

import pytest
import torch

from smalti.comparison import Contender, Entry, Judge, Media, Ours, Terms, contender, gather, race, shipped

CURVE = json.loads((Path(__file__).parents[1] / "goldens" / "learning_curve.json").read_text())
DECIBELS, PERPLEXITY = 0.5, 0.3
"""How far another processor may lead a run of the same seed from the mean of the committed seeds."""


def named(name: str) -> Contender:
    return contender(name, shipped("images", CURVE["steps"]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({row["contender"] for row in CURVE["rows"]}))
def test_a_seeded_run_follows_the_reference_curve(tmp_path, name):
    terms = Terms.parse({**CURVE["terms"], "seeds": 1}, where="curve")
    material = gather(Media.parse(CURVE["media"], where="curve"))
    config = named(name).training("images", CURVE["steps"])
    cpu = torch.device("cpu")
    entry = Entry(name, lambda seed: Ours(config.replace({"seed": seed}), cpu))
    (run,) = race([entry], material, terms, Judge(material.heldout), tmp_path, device=cpu)
    rows = [row for row in CURVE["rows"] if row["contender"] == name]
    assert [point.steps for point in run.points] == [row["steps"] for row in rows]
    for point, row in zip(run.points, rows, strict=True):
        spread = max(row["psnr_of_seeds"]) - min(row["psnr_of_seeds"])
        assert abs(point.psnr - row["psnr"]) < DECIBELS + spread, (point.steps, point.psnr, row["psnr"])
    last = rows[-1]
    spread = (max(last["perplexity_of_seeds"]) - min(last["perplexity_of_seeds"])) / last["perplexity"]
    assert abs(run.points[-1].perplexity / last["perplexity"] - 1) < PERPLEXITY + spread
    assert run.points[-1].psnr > run.points[0].psnr + 1
