"""Score a tokenizer on a source of clips under a named protocol, whole or in parts that merge."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.data.loader import OnBad, evaluation
from smalti.data.source import Source, Subset
from smalti.errors import BadFile, InputError
from smalti.metrics import Features, Perceptual, Protocol, Report, Row, Scores
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import size_of

Watch = Callable[[int, Tensor, Tensor], None]
"""Sees the number of each clip in its source, the clip and its reconstruction, both `1 3 t h w`."""


class Left(NamedTuple):
    """A file that was left out, with its number in the source."""

    number: int
    fault: BadFile


def score(
    tokenizer: Tokenizer,
    source: Source,
    protocol: Protocol,
    *,
    limit: int | None = None,
    lpips: Perceptual | None = None,
    features: Features | None = None,
    on_bad: OnBad | None = None,
    progress: Callable[[Row], None] | None = None,
) -> Report:
    """The report on the first `limit` clips of `source`, in its order, on the tokenizer's device.

    A clip is encoded to ids and decoded from them, one at a time, so that no figure depends on a batch size. Files
    that cannot be read go to `on_bad` as they are met; the report counts them under `absent["clips"]` and names the
    first. For another kind of model call `smalti.metrics.evaluate`, which takes any callable. Raises as it does, and
    InputError where every file is bad.
    """
    scores = Scores(protocol, lpips=lpips, features=features, levels=tokenizer.levels)
    first = Subset(source, range(len(source))[:limit])
    left = score_part(tokenizer, first, scores, on_bad=on_bad, progress=progress)
    return report_of(scores, left)


def score_part(
    tokenizer: Tokenizer,
    source: Source,
    scores: Scores,
    *,
    part: tuple[int, int] = (0, 1),
    on_bad: OnBad | None = None,
    progress: Callable[[Row], None] | None = None,
    watch: Watch | None = None,
) -> list[Left]:
    """Score clips r, r + W, ... of `source` for the part (r, W) into `scores`; gives the files that were left out.

    Of a protocol that asks for a number of clips, those past it in the source count as originals alone. Every clip
    falls to exactly one part, whatever W, so that parts merge to the whole with nothing counted twice.
    """
    rank, world = part
    asked = scores.protocol.samples or len(source)
    left: list[Left] = []
    met = 0

    def note(fault: BadFile) -> None:
        nonlocal met
        left.append(Left(rank + met * world, fault))
        met += 1
        if on_bad is not None:
            on_bad(fault)

    for batch in evaluation(source, part=part, on_bad=note):
        met += 1
        index = rank + batch.step * world
        if index >= asked:
            scores.add_original(batch.keys[0], batch.video)
            continue
        made, ids = round_trip(tokenizer, batch.video)
        row = scores.add(batch.keys[0], batch.video, made, ids)
        if watch is not None:
            watch(index, batch.video, made)
        if progress is not None:
            progress(row)
    return left


def report_of(scores: Scores, left: Iterable[Left]) -> Report:
    """The report, which counts the files that were left out and names the first. Raises InputError as `report` does."""
    bad = [fault for _, fault in sorted(left, key=lambda one: one.number)]
    if bad and not scores.rows:
        raise InputError(f"all {len(bad)} files are bad, the last: {bad[-1]}")
    if bad and scores.protocol.samples is not None and not scores.is_full:
        asked = f"protocol {scores.protocol.name} asks for {scores.protocol.samples:,} clips"
        raise InputError(f"{asked}, {len(scores.rows):,} can be read; the first that cannot: {bad[0]}")
    report = scores.report()
    if not bad:
        return report
    reason = f"{len(bad)} of {report.clips + len(bad)} left out, which cannot be read; the first: {bad[0]}"
    return report.model_copy(update={"absent": {**report.absent, "clips": reason}})


@torch.no_grad()
def round_trip(tokenizer: Tokenizer, video: Tensor) -> tuple[Tensor, Tensor]:
    """(reconstruction `b 3 t h w`, ids) of a video, by way of its ids alone; on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    ids = tokenizer.encode(video.to(device))
    return tokenizer.decode(ids, size=size_of(video)), ids
