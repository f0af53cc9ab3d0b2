"""Score what was generated against what is real, set against set: there are no pairs."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.metrics.distance import distance_of, vectors
from smalti.metrics.evaluate import check_clips, levels_of
from smalti.metrics.features import Features, ScoreName
from smalti.metrics.frechet import Moments
from smalti.metrics.generation_report import GeneratedSet, GenerationProtocol, GenerationReport, Spread
from smalti.metrics.inception_score import inception_score
from smalti.metrics.precision_recall import Balls, density_coverage, precision_recall

Clips = Iterable[tuple[str, Tensor]]
"""Pairs (key, video `1 3 t h w` in [-1, 1]); keys are unique, a picture has t = 1."""

_GENERATED: Mapping[ScoreName, ScoreName] = {"rfid": "gfid", "rfvd": "gfvd"}
"""What the distances of reconstructions are called of generated sets."""


def score_generated(
    sets: Mapping[str, Clips],
    real: Clips,
    protocol: GenerationProtocol,
    features: Features,
    progress: Callable[[int], None] | None = None,
) -> GenerationReport:
    """The report on generated sets, each by its name (a seed, a folder), against one real set.

    The clips of all sets have one size, and a clip of video one number of frames; `progress` sees how many are done.
    Raises InputError for fewer than two clips or fewer than the protocol asks for, a key that stands twice, a wrong
    shape or values that are not finite, and ConfigError where the features are not those that the protocol names.
    """
    if not sets:
        raise ConfigError("there is no generated set to score")
    gathering = Gathering(protocol, features, progress)
    originals = gathering.take("real", real, made=False)
    reference = Reference.of(originals, protocol)
    found = []
    for name, clips in sets.items():
        found.append(scored(name, gathering.take(name, clips, made=True), reference, gathering.protocol, features))
    return GenerationReport(
        protocol=gathering.protocol, real=len(originals), sets=tuple(found), spread=spread_of(found)
    )


class Gathering:
    """Takes the features of clips, all of one size."""

    def __init__(
        self, protocol: GenerationProtocol, features: Features, progress: Callable[[int], None] | None = None
    ) -> None:
        features.check(protocol.name, protocol.features, protocol.features_digest)
        self.protocol = protocol.replace({"features_digest": features.digest})
        """With the weights that are used, and the size of the clips as soon as it is known."""
        self._features = features
        self._progress = progress
        self._done = 0

    def take(self, name: str, clips: Clips, *, made: bool) -> Float[Tensor, "n d"]:
        """One vector for each clip of a set, in their order; what is made is clipped to [-1, 1].

        Of generated sets the first `samples` of the protocol are taken.
        """
        asked = self.protocol.samples if made else None
        parts: list[Tensor] = []
        keys: set[str] = set()
        for key, video in clips:
            if len(keys) == asked:
                break
            if key in keys:
                raise InputError(f"{name}: {key}: two clips have this key; keys must be unique")
            keys.add(key)
            where = f"{name}: {key}"
            check_clips(where, video.clamp(-1, 1) if made else video, video)
            self._settle(where, video)
            parts += vectors(self._features, where, levels_of(video, self.protocol.rounding))
            self._done += 1
            if self._progress is not None:
                self._progress(self._done)
        least = max(2, asked or 0)
        if len(keys) < least:
            raise InputError(f"{name}: holds {len(keys):,} clips, protocol {self.protocol.name} needs {least:,}")
        return torch.cat(parts)

    def _settle(self, where: str, video: Tensor) -> None:
        """All clips are as the first one, or as the protocol says."""
        frames, *size = video.shape[2:]
        is_video = self.protocol.media == "videos"
        if not is_video and frames != 1:
            raise InputError(f"{where}: has {frames} frames, protocol {self.protocol.name} is for pictures")
        have = {"size": tuple(size), **({"frames": frames} if is_video else {})}
        for field, value in have.items():
            wanted = getattr(self.protocol, field)
            if wanted is None:
                self.protocol = self.protocol.replace({field: value})
            elif wanted != value:
                raise InputError(f"{where}: {field} {value} among clips of {wanted}; all of both sets must be alike")


class Reference(NamedTuple):
    """What is computed of the real vectors once, for all generated sets."""

    moments: Moments
    precision_recall: Balls | None
    density_coverage: Balls | None

    @classmethod
    def of(cls, real: Float[Tensor, "n d"], protocol: GenerationProtocol) -> "Reference":
        """Balls are None where the protocol has none, or there are no more vectors than its k."""
        ks = (protocol.precision_recall, protocol.density_coverage)
        return cls(_moments(real), *(Balls.of(real, k) if k is not None and k < len(real) else None for k in ks))


def scored(
    name: str, made: Float[Tensor, "n d"], reference: Reference, protocol: GenerationProtocol, features: Features
) -> GeneratedSet:
    """The scores of the vectors of one generated set."""
    absent: dict[str, str] = {}
    scores: dict[str, float] = {}
    balls = reference.precision_recall
    if balls is not None and balls.k < len(made):
        scores |= precision_recall(balls, made)._asdict()
    elif (k := protocol.precision_recall) is not None:
        absent |= dict.fromkeys(("precision", "recall"), f"needs more than {k} clips in both sets")
    if reference.density_coverage is not None:
        scores |= density_coverage(reference.density_coverage, made)._asdict()
    elif (k := protocol.density_coverage) is not None:
        absent |= dict.fromkeys(("density", "coverage"), f"needs more than {k} real clips")
    if (splits := protocol.inception_splits) is None:
        absent["inception_score"] = f"not in protocol {protocol.name}"
    elif splits > len(made):
        absent["inception_score"] = f"needs {splits} pictures or more"
    else:
        found = inception_score(features.logits(made), splits)
        scores |= {"inception_score": found.mean, "inception_score_std": found.std}
    score = features.network.score
    distance = distance_of(reference.moments, _moments(made), _GENERATED.get(score, score))
    return GeneratedSet.parse(
        {"name": name, "clips": len(made), "frechet": distance.plain(), "absent": absent, **scores}
    )


def spread_of(sets: Iterable[GeneratedSet]) -> dict[str, Spread]:
    """Mean and deviation of the scores that every set has."""
    tables = [one.scores() for one in sets]
    found = {}
    for name in tables[0]:
        if any(name not in table for table in tables):
            continue
        values = [table[name] for table in tables]
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        std = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
        found[name] = Spread(mean=mean, std=std, least=min(values), most=max(values))
    return found


def _moments(features: Tensor) -> Moments:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments
