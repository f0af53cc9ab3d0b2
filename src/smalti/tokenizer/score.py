"""Score a tokenizer on a source of clips under a named protocol."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from smalti.data.loader import OnBad, evaluation
from smalti.data.source import Source
from smalti.errors import BadFile
from smalti.metrics import Perceptual, Protocol, Report, Row, evaluate
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import size_of

Watch = Callable[[Tensor, Tensor], None]
"""Sees each clip and its reconstruction, both `1 3 t h w`."""


def score(
    tokenizer: Tokenizer,
    source: Source,
    protocol: Protocol,
    *,
    limit: int | None = None,
    lpips: Perceptual | None = None,
    on_bad: OnBad | None = None,
    progress: Callable[[Row], None] | None = None,
    watch: Watch | None = None,
) -> Report:
    """The report on the first `limit` clips of `source` that can be read, in its order, on the tokenizer's device.

    A clip is encoded to ids and decoded from them, one at a time, so that no figure depends on a batch size. Files
    that cannot be read go to `on_bad` as they are met; the report counts them under `absent["clips"]` and names the
    first. For another kind of model call `smalti.metrics.evaluate`, which takes any callable. Raises as it does, and
    InputError where every file is bad.
    """
    bad: list[BadFile] = []

    def note(fault: BadFile) -> None:
        bad.append(fault)
        if on_bad is not None:
            on_bad(fault)

    def clips() -> Iterator[tuple[str, Tensor]]:
        for batch in islice(evaluation(source, on_bad=note), limit):
            yield batch.keys[0], batch.video

    def reconstruct(video: Tensor) -> tuple[Tensor, Tensor]:
        made, ids = round_trip(tokenizer, video)
        if watch is not None:
            watch(video, made)
        return made, ids

    report = evaluate(reconstruct, clips(), protocol, lpips=lpips, levels=tokenizer.levels, progress=progress)
    if bad:
        reason = f"{len(bad)} of {report.clips + len(bad)} left out, which cannot be read; the first: {bad[0]}"
        report = report.model_copy(update={"absent": {**report.absent, "clips": reason}})
    return report


@torch.no_grad()
def round_trip(tokenizer: Tokenizer, video: Tensor) -> tuple[Tensor, Tensor]:
    """(reconstruction `b 3 t h w`, ids) of a video, by way of its ids alone; on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    ids = tokenizer.encode(video.to(device))
    return tokenizer.decode(ids, size=size_of(video)), ids
