"""Score generated sets against a real set: there are no pairs."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.metrics.evaluate import check_clips
from smalti.metrics.features import Features, ScoreName
from smalti.metrics.frechet import Moments, frechet_interval
from smalti.metrics.inception import inception_score
from smalti.metrics.pixel import to_uint8_pixels
from smalti.metrics.precision_recall import Neighbourhoods, density_coverage, precision_recall
from smalti.metrics.protocols import GenerationProtocol
from smalti.metrics.report import GeneratedSet, GenerationReport, ScoreStats
from smalti.metrics.statistics import GivenMoments, feature_vectors, frechet_of

NamedClips = Iterable[tuple[str, Tensor]]
"""Pairs (key, video `1 3 t h w` in [-1, 1]); keys are unique, an image has t = 1."""

_GENERATED: Mapping[ScoreName, ScoreName] = {"rfid": "gfid", "rfvd": "gfvd"}
"""Names of distances of reconstructions -> names of the same distances of generated sets."""

_ALONE = "needs the real set itself, of which there are statistics alone"


def score_generated(
    sets: Mapping[str, NamedClips],
    real: NamedClips | GivenMoments,
    protocol: GenerationProtocol,
    features: Features,
    *,
    bootstrap: int = 0,
    progress: Callable[[int], None] | None = None,
) -> GenerationReport:
    """Score generated sets, each under its name (a seed, a folder), against one real set or published moments of one.

    `bootstrap` is the number of resamples of the interval of each distance, which needs a real set; 0 takes none.
    The clips of all sets have one size, and clips of video one number of frames; `progress` is called with the number
    of clips that are done. Raises InputError for fewer than two clips or fewer than the protocol asks for, a repeated
    key, a wrong shape or values that are not finite, and ConfigError if the features are not those of the protocol.
    """
    if not sets:
        raise ConfigError("there is no generated set to score")
    reader = _FeatureReader(protocol, features, progress)
    originals = None if isinstance(real, GivenMoments) else reader.read("real", real, is_generated=False)
    if originals is None and bootstrap:
        raise ConfigError("an interval needs the real set itself: give its media in place of a file of statistics")
    reference = (
        _Reference.of(originals, protocol) if originals is not None else _Reference(_as_moments(real), None, None)
    )
    rows = []
    for name, clips in sets.items():
        vectors = reader.read(name, clips, is_generated=True)
        row = _score_set(name, vectors, reference, reader.protocol, features)
        if originals is not None and bootstrap:
            low, high, resamples = frechet_interval(originals, vectors, bootstrap)
            row = row.replace({"frechet": row.frechet.replace({"interval": (low, high), "resamples": resamples})})
        rows.append(row)
    count = 0 if originals is None else len(originals)
    return GenerationReport(protocol=reader.protocol, real=count, sets=tuple(rows), spread=_stats_of(rows))


def _as_moments(real: object) -> GivenMoments:
    assert isinstance(real, GivenMoments)
    return real


class _FeatureReader:
    """Computes the features of clips and checks that all have one size."""

    def __init__(
        self, protocol: GenerationProtocol, features: Features, progress: Callable[[int], None] | None = None
    ) -> None:
        features.check(protocol.name, protocol.features, protocol.features_digest)
        self.protocol = protocol.replace({"features_digest": features.digest})
        """With the digest of the weights, and the size of the clips once it is known."""
        self._features = features
        self._progress = progress
        self._done = 0

    def read(self, name: str, clips: NamedClips, *, is_generated: bool) -> Float[Tensor, "n d"]:
        """Return one vector for each clip of a set, in their order.

        Generated clips are clipped to [-1, 1]; only the first `samples` of the protocol are used.
        """
        samples = self.protocol.samples if is_generated else None
        parts: list[Tensor] = []
        keys: set[str] = set()
        for key, video in clips:
            if len(keys) == samples:
                break
            if key in keys:
                raise InputError(f"{name}: {key}: two clips have this key; keys must be unique")
            keys.add(key)
            where = f"{name}: {key}"
            check_clips(where, video.clamp(-1, 1) if is_generated else video, video)
            self._check_size(where, video)
            parts += feature_vectors(self._features, where, to_uint8_pixels(video, self.protocol.rounding))
            self._done += 1
            if self._progress is not None:
                self._progress(self._done)
        fewest = max(2, samples or 0)
        if len(keys) < fewest:
            raise InputError(f"{name}: holds {len(keys):,} clips, protocol {self.protocol.name} needs {fewest:,}")
        return torch.cat(parts)

    def _check_size(self, where: str, video: Tensor) -> None:
        """Compare a clip with the protocol, which takes its size from the first clip if it has none."""
        frames, *size = video.shape[2:]
        is_video = self.protocol.media == "videos"
        if not is_video and frames != 1:
            raise InputError(f"{where}: has {frames} frames, protocol {self.protocol.name} is for images")
        for field, value in {"size": tuple(size), **({"frames": frames} if is_video else {})}.items():
            expected = getattr(self.protocol, field)
            if expected is None:
                self.protocol = self.protocol.replace({field: value})
            elif expected != value:
                raise InputError(f"{where}: {field} {value} among clips of {expected}; all of both sets must be alike")


class _Reference(NamedTuple):
    """Results for the real vectors, computed once for all generated sets."""

    moments: Moments
    precision_recall: Neighbourhoods | None
    density_coverage: Neighbourhoods | None

    @classmethod
    def of(cls, real: Float[Tensor, "n d"], protocol: GenerationProtocol) -> "_Reference":
        """Measure the real set; neighbourhoods are None without a k in the protocol, or for no more vectors than k."""
        ks = (protocol.precision_recall, protocol.density_coverage)
        hoods = (Neighbourhoods.of(real, k) if k is not None and k < len(real) else None for k in ks)
        return cls(_moments(real), *hoods)


def _score_set(
    name: str, generated: Float[Tensor, "n d"], reference: _Reference, protocol: GenerationProtocol, features: Features
) -> GeneratedSet:
    """Score the vectors of one generated set."""
    absent: dict[str, str] = {}
    scores: dict[str, float] = {}
    is_given = isinstance(reference.moments, GivenMoments)
    hoods = reference.precision_recall
    if hoods is not None and hoods.k < len(generated):
        scores |= precision_recall(hoods, generated)._asdict()
    elif (k := protocol.precision_recall) is not None:
        reason = _ALONE if is_given else f"needs more than {k} clips in both sets"
        absent |= dict.fromkeys(("precision", "recall"), reason)
    if reference.density_coverage is not None:
        scores |= density_coverage(reference.density_coverage, generated)._asdict()
    elif (k := protocol.density_coverage) is not None:
        absent |= dict.fromkeys(("density", "coverage"), _ALONE if is_given else f"needs more than {k} real clips")
    if (splits := protocol.inception_splits) is None:
        absent["inception_score"] = f"not in protocol {protocol.name}"
    elif splits > len(generated):
        absent["inception_score"] = f"needs {splits} images or more"
    else:
        mean, std = inception_score(features.logits(generated), splits)
        scores |= {"inception_score": mean, "inception_score_std": std}
    score = features.network.score
    distance = frechet_of(reference.moments, _moments(generated), _GENERATED.get(score, score))
    return GeneratedSet.parse(
        {"name": name, "clips": len(generated), "frechet": distance.plain(), "absent": absent, **scores}
    )


def _stats_of(sets: Iterable[GeneratedSet]) -> dict[str, ScoreStats]:
    """Compute the statistics of the scores that every set has."""
    tables = [generated.scores() for generated in sets]
    stats = {}
    for name in tables[0]:
        if any(name not in table for table in tables):
            continue
        values = [table[name] for table in tables]
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        std = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
        stats[name] = ScoreStats(mean=mean, std=std, least=min(values), most=max(values))
    return stats


def _moments(features: Tensor) -> Moments:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments
