"""Which small image tokenizer learns most in equal time: stems, norms, the codes' entropy, the adaptive norm.

Each contender trains for the same CPU time on one core, on the photographs that smalti ships, and is scored on the
held-out ones at 128 pixels. One seed: differences under 0.2 dB say nothing.
"""

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.training_step import ALONE
from smalti.data import batches
from smalti.metrics import SMALTI
from smalti.recipes import find
from smalti.tokenizer.score import score
from smalti.train import state as states
from smalti.train.config import OptimizerConfig, TokenizerTraining
from smalti.train.step import step

SECONDS = 100.0
"""CPU time of each contender."""

CONTENDERS: Mapping[str, Mapping[str, Any]] = {
    "tiny: patch 8, one resolution": {},
    "patch 4, two resolutions": {"patch": 4, "width": 48, "multipliers": (1, 2), "strides": ((1, 2),), "middle": 1},
    "patch 2, three resolutions": {"patch": 2, "width": 16, "multipliers": (1, 2, 4), "strides": ((1, 2), (1, 2))},
    "deeper decoder": {"decoder_depth": 3},
    "norm per frame": {"norm": "frame"},
    "no adaptive norm": {"adaptive": "none"},
    "no batch entropy": {"quantizer": {"kind": "fsq", "levels": (8, 8, 8, 5, 5, 5)}},
}


def measure() -> tuple[str, list[dict[str, object]]]:
    """One row a contender."""
    rows = [{"contender": name, **_train(changes)} for name, changes in CONTENDERS.items()]
    return (
        f"{SECONDS:.0f} s of CPU time each on one core; held-out photographs at 128 px, protocol smalti; one seed",
        rows,
    )


def _train(changes: Mapping[str, Any]) -> dict[str, object]:
    config = _config(changes)
    state, source = states.start(config, ALONE), config.data.build()
    began, spent = time.process_time(), 0.0
    for batch in batches(source, batch_size=config.batch_size, seed=config.seed):
        # The schedules run along the time spent, so that every contender's learning rate ends at its lowest.
        made = state.step
        state.step = int(spent / SECONDS * config.steps)
        step(state, batch.video)
        state.step = made + 1
        spent = time.process_time() - began
        if spent >= SECONDS:
            break
    assert config.validation is not None
    report = score(state.average, config.validation.build(), SMALTI)
    assert report.codebook is not None
    return {
        "parameters": sum(p.numel() for p in state.tokenizer.parameters()),
        "steps": state.step,
        "psnr": report.psnr,
        "ssim": report.ssim,
        "distinct": report.codebook.distinct,
        "tokens": report.codebook.tokens,
    }


def _config(changes: Mapping[str, Any]) -> TokenizerTraining:
    base = find("tiny")
    plain = base.plain() | {"steps": 10_000, "optimizer": OptimizerConfig(lr=4e-3, warmup=300).plain()}
    plain["tokenizer"] = plain["tokenizer"] | dict(changes)
    plain["entropy_boost_steps"] = 10_000
    if not plain["tokenizer"]["quantizer"].get("losses"):
        plain["weights"] = {"l2": 1.0}
    return TokenizerTraining.parse(plain, where="stems")
