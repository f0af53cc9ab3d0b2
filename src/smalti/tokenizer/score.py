"""Score a tokenizer on a source of clips under a named protocol, whole or in shares that merge."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from smalti.data.loader import OnBad, evaluation
from smalti.data.source import Source, Subset
from smalti.errors import BadFile
from smalti.metrics import Features, Pair, Perceptual, Protocol, Report, Scores
from smalti.metrics.evaluate import OnScores
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import size_of


def score_tokenizer(
    tokenizer: Tokenizer,
    source: Source,
    protocol: Protocol,
    *,
    limit: int | None = None,
    lpips: Perceptual | None = None,
    features: Features | None = None,
    on_bad: OnBad | None = None,
    progress: OnScores | None = None,
) -> Report:
    """Score the first `limit` clips of `source`, in its order, on the tokenizer's device, and return the report.

    Files that cannot be read are passed to `on_bad`; the report counts them under `absent["clips"]` and names the
    first. Raises as `smalti.metrics.evaluate_pairs` does, and InputError if every file is bad.
    """
    scores = Scores(protocol, lpips=lpips, features=features, levels=tokenizer.levels)

    def note(number: int, bad: BadFile) -> None:
        scores.bad[number] = bad
        if on_bad is not None:
            on_bad(bad)

    first = Subset(source, range(len(source))[:limit])
    pairs = pairs_of_tokenizer(tokenizer, first, samples=protocol.samples, on_bad=note)
    for pair in pairs:
        row = scores.add_pair(pair)
        if row is not None and progress is not None:
            progress(row)
    return scores.report()


def pairs_of_tokenizer(
    tokenizer: Tokenizer,
    source: Source,
    *,
    share: tuple[int, int] = (0, 1),
    samples: int | None = None,
    on_bad: Callable[[int, BadFile], None] | None = None,
) -> Iterator[Pair]:
    """Yield clips r, r + W, ... of `source` for the share (r, W), the first `samples` of the source reconstructed.

    Clips are encoded to ids and decoded from them one at a time, so that no figure depends on a batch size. Every clip
    is in exactly one share for any W. Files that cannot be read are passed to `on_bad` with their place in the source.
    """
    rank, world = share
    count = 0

    def note(bad: BadFile) -> None:
        nonlocal count
        if on_bad is not None:
            on_bad(rank + count * world, bad)
        count += 1

    for batch in evaluation(source, part=share, on_bad=note):
        count += 1
        number, key = rank + batch.step * world, batch.keys[0]
        if samples is not None and number >= samples:
            yield Pair(key, batch.video, number=number)
        else:
            yield Pair(key, batch.video, *round_trip(tokenizer, batch.video), number)


@torch.no_grad()
def round_trip(tokenizer: Tokenizer, video: Tensor) -> tuple[Tensor, Tensor]:
    """Encode a video and decode its ids; return (reconstruction `b 3 t h w`, ids) on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    ids = tokenizer.encode(video.to(device))
    return tokenizer.decode(ids, size=size_of(video)), ids


def megapixels_per_second(tokenizer: Tokenizer, video: Tensor, runs: int = 3) -> float:
    """Measure the pixels of a video `b 3 t h w` by the median time in which it is encoded and decoded, once warm."""
    times = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        pixels, _ = round_trip(tokenizer, video)
        float(pixels.flatten()[0])  # waits for the device
        times.append(time.perf_counter() - start)
    count = video.shape[0] * video.shape[2] * video.shape[3] * video.shape[4]
    return count / 1e6 / statistics.median(times[1:])
