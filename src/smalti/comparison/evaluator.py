"""The one evaluator of all variants: held-out clips under one protocol, with the same networks."""

from collections.abc import Sequence

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
    Report,
    Scores,
    find_features,
    find_lpips,
    pairs_of,
)

PROTOCOL = SMALTI_FRECHET.replace({"name": "smalti-learn", "lpips": "alex"})
"""LPIPS with AlexNet: not the network that variants may train with, and a tenth of its time."""


class Point(Config):
    """A variant at one place of its run: a line of points.jsonl, whose names are those of version 0.1.0."""

    contender: str
    """Name of the variant."""
    seed: int
    share: float
    """Share of the budget that is spent."""
    steps: int
    seconds: float
    """CPU time of the steps alone, of all threads; on an accelerator, the clock."""
    flops: float
    psnr: float
    ssim: float | None
    lpips: float | None
    frechet: float | None
    """Fréchet distance of EfficientNet-lite0 features over the held-out frames: compares variants, and is no FID."""
    tokens: int
    distinct: int
    expected_distinct: float
    """Distinct ids of a uniform sample of the same size."""
    codebook_size: int
    perplexity: float
    bits_per_pixel: float
    entropy_bits_per_pixel: float
    """Bits per pixel of an ideal coder that knows the frequencies of the held-out ids."""
    learnt_loss: float
    """Mean loss of the training batches since the last point; so are the other fields of this name."""
    learnt_psnr: float
    learnt_tokens: int
    learnt_distinct: int
    learnt_expected_distinct: float
    learnt_perplexity: float


class Evaluator:
    """Scores learners on the same clips."""

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
    def with_weights(
        cls, heldout: Sequence[tuple[str, Tensor]], device: torch.device
    ) -> tuple["Evaluator", dict[str, str]]:
        """Return an evaluator with the networks whose weights are on this machine, and why others are absent."""
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
        """The whole protocol, with the digests of the weights."""
        return self._scores(None).protocol

    def score(self, learner: Learner) -> Report | None:
        """Return the scores of a learner; None if a reconstruction is not finite."""
        scores = self._scores(learner.levels)
        for pair in pairs_of(learner.round_trip, self.heldout):
            if pair.reconstruction is None or not bool(pair.reconstruction.isfinite().all()):
                return None
            scores.add_pair(pair)
        return scores.report()

    def _scores(self, levels: Sequence[int] | None) -> Scores:
        return Scores(PROTOCOL, lpips=self.lpips, features=self.features, reference=self.reference, levels=levels)
