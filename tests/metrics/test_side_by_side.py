"""Tokenizers side by side: paired differences and their errors are those of the textbook."""

import math

import numpy as np
import pytest

from smalti.errors import ConfigError
from smalti.metrics import SMALTI, Contender, leaderboard
from smalti.metrics.report import ClipScores, report_of_clips


def contender(name, psnrs, ssims=None, keys=None):
    ssims = ssims or [None] * len(psnrs)
    rows = [
        ClipScores(
            key=key,
            frames=1,
            height=8,
            width=8,
            mse=1.0,
            psnr=psnr,
            identical_frames=0,
            ssim=ssim,
            absent={} if ssim is not None else {"ssim": "too small"},
        )
        for key, psnr, ssim in zip(keys or [f"{i:03}" for i in range(len(psnrs))], psnrs, ssims, strict=True)
    ]
    return Contender(name, report_of_clips(SMALTI, rows, None, None, {}), (1, 8, 8), 1_000, 2.0)


def test_differences_are_paired_and_their_error_is_that_of_the_mean():
    """Clips differ much more than tokenizers: unpaired errors would be 10 dB, the paired one is 0.03."""
    rng = np.random.default_rng(0)
    first = rng.normal(30, 30, size=10).tolist()
    gains = rng.normal(0.5, 0.1, size=10)
    board = leaderboard([contender("a", first), contender("b", [p + g for p, g in zip(first, gains, strict=True)])])
    assert board.standings[0].differences == {}
    found = board.standings[1].differences["psnr"]
    assert found.mean == pytest.approx(gains.mean(), abs=1e-12)
    assert found.error == pytest.approx(gains.std(ddof=1) / math.sqrt(10), abs=1e-12)
    assert found.clips == 10
    assert f"{gains.mean():+.2f} ± {found.error:.2f}" in board.to_text()


def test_a_score_that_a_clip_lacks_is_left_out_of_the_pairs():
    board = leaderboard([contender("a", [1, 2, 3], [0.1, None, 0.3]), contender("b", [1, 2, 4], [0.2, 0.5, 0.5])])
    ssim = board.standings[1].differences["ssim"]
    assert (ssim.clips, ssim.mean) == (2, pytest.approx(0.15))
    alone = leaderboard([contender("a", [1]), contender("b", [2])]).standings[1].differences
    assert alone["psnr"].error is None
    assert "ssim" not in alone


def test_other_clips_are_refused():
    with pytest.raises(ConfigError, match="a and b were not scored on the same clips"):
        leaderboard([contender("a", [1, 2]), contender("b", [1, 2], keys=["000", "002"])])
