"""The one judge of all contenders: held-out clips under one protocol, with the same networks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.comparison.learner import Learner
from smalti.config import Config
from smalti.errors import MachineError
from smalti.metrics import (
    SMALTI_FRECHET,
    Features,
    Moments,
    Perceptual,
    Protocol,
    Scores,
    Usage,
    find_features,
    find_lpips,
    pairs_of,
)

PROTOCOL = SMALTI_FRECHET.replace({"name": "smalti-learn", "lpips": "alex"})
"""LPIPS with AlexNet: not the network that contenders may train with, and a tenth of its time."""


class Point(Config):
    """A contender at one place of its run. Codes of `learnt` are those of the batches since the last point."""

    contender: str
    seed: int
    share: float
    """Of the budget."""
    steps: int
    seconds: float
    """CPU time of the steps alone, of all threads; on an accelerator, the clock."""
    flops: float
    psnr: float
    ssim: float | None
    lpips: float | None
    frechet: float | None
    """Of features of EfficientNet-lite0, over the held-out frames: compares contenders, and is no FID."""
    tokens: int
    distinct: int
    expected_distinct: float
    """Different codes expected in a uniform sample of the same size."""
    codebook_size: int
    perplexity: float
    bits_per_pixel: float
    entropy_bits_per_pixel: float
    """What an ideal coder that knows the frequencies of the held-out ids would take."""
    learnt_loss: float
    learnt_psnr: float
    learnt_tokens: int
    learnt_distinct: int
    learnt_expected_distinct: float
    learnt_perplexity: float


class Scored(NamedTuple):
    """The figures of one look at the held-out clips."""

    psnr: float
    ssim: float | None
    lpips: float | None
    frechet: float | None
    usage: Usage
    pixels: int


class Judge:
    """Measures learners on the same clips."""

    def __init__(
        self, heldout: Sequence[tuple[str, Tensor]], lpips: Perceptual | None = None, features: Features | None = None
    ) -> None:
        self.heldout = heldout
        self.lpips = lpips
        self.features = features
        self.reference: Moments | None = None
        if features is not None:
            originals = self._scores(None)
            for key, video in heldout:
                originals.add_original(key, video)
            assert originals.moments is not None
            self.reference = originals.moments.originals

    @classmethod
    def found(cls, heldout: Sequence[tuple[str, Tensor]], device: torch.device) -> tuple["Judge", dict[str, str]]:
        """With the networks whose weights are found on this machine; and why others are not."""
        absent: dict[str, str] = {}
        lpips = features = None
        try:
            lpips = find_lpips("alex", device=device)
        except MachineError as fault:
            absent["lpips"] = str(fault)
        try:
            features = find_features("efficientnet-lite0").to(device)
        except MachineError as fault:
            absent["frechet"] = str(fault)
        return cls(heldout, lpips, features), absent

    @property
    def protocol(self) -> Protocol:
        """In full, with the digests of the weights."""
        return self._scores(None).protocol

    def score(self, learner: Learner) -> Scored | None:
        """The figures of a learner; None where a reconstruction is not finite."""
        scores = self._scores(learner.levels)
        for pair in pairs_of(learner.round_trip, self.heldout):
            if pair.reconstruction is None or not bool(pair.reconstruction.isfinite().all()):
                return None
            scores.update([pair])
        report = scores.report()
        assert scores.usage is not None
        frechet = None if report.frechet is None else report.frechet.distance
        return Scored(report.psnr, report.ssim, report.lpips, frechet, scores.usage, scores.pixels)

    def _scores(self, levels: Sequence[int] | None) -> Scores:
        return Scores(PROTOCOL, lpips=self.lpips, features=self.features, reference=self.reference, levels=levels)
