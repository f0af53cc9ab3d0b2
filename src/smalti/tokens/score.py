"""Score a token set against the media that it was made from, without encoding them again."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.data.images import decode_image
from smalti.data.video_reader import VideoReader
from smalti.errors import BadFile
from smalti.metrics import Report, Scores
from smalti.metrics import Row as Score
from smalti.tokenizer import Tokenizer
from smalti.tokens.plan import load_plan
from smalti.tokens.reader import TokenSet, decode_row
from smalti.tokens.shard import TokenRow
from smalti.tokens.tokenize import Item, apply_view, items_of, media_digest, open_medium
from smalti.video import to_video


class Asked(NamedTuple):
    """What is scored of a token set."""

    rows: int | None = None
    """The first so many rows that can be compared."""
    frames: int = 17
    """Of a video, the first so many frames of each row."""


def score_set(
    tokenizer: Tokenizer,
    tokens: TokenSet,
    root: Path,
    scores: Scores,
    *,
    asked: Asked = Asked(),  # noqa: B008 - an immutable record
    on_bad: Callable[[BadFile], None] | None = None,
    progress: Callable[[Score], None] | None = None,
) -> Report:
    """The report of `scores` on decoded rows against their originals below `root`, shown as the set shows them.

    An original that is not there, or has other bytes than those that were encoded, goes to `on_bad`. Raises
    IntegrityError for another tokenizer than the set's, InputError where no row can be compared.
    """
    tokens.check(tokenizer)
    time = tokens.tokenizer_info.strides[0]
    for row, original in islice(_pairs(tokens, root, asked.frames, on_bad or (lambda bad: None)), asked.rows):
        count = len(original)
        made = torch.stack(list(islice(decode_row(tokenizer, row), count)))
        ids = row.tensor()[None, : 1 + -(-(count - 1) // time)]
        score = scores.add(row.key, to_video(original), to_video(made), ids)
        if progress is not None:
            progress(score)
    return scores.report()


def _pairs(
    tokens: TokenSet, root: Path, most: int, on_bad: Callable[[BadFile], None]
) -> Iterator[tuple[TokenRow, Tensor]]:
    """(row, the first frames of its original, uint8 `t h w 3`): the items of the plan and the rows side by side."""
    plan, index = load_plan(tokens.path), 0
    for shard in range(plan.shards):
        for item in items_of(plan, shard, root):
            first = index
            while index < len(tokens) and tokens.row(index).source == item.key:
                index += 1
            for number in range(first, index):
                row = tokens.row(number)
                try:
                    yield row, _original(tokens, item, row, most)
                except BadFile as bad:
                    on_bad(bad)


def _original(tokens: TokenSet, item: Item, row: TokenRow, most: int) -> Tensor:
    if item.fault is not None or item.store is None:
        raise item.fault or BadFile(item.key, "missing", "is not there")
    options, media, name = tokens.options, item.store.media(item.place), item.store.where(item.place)
    with open_medium(media) as file:
        if media_digest(file) != row.source_sha256:
            raise BadFile(item.key, "changed", "has other bytes than those that were encoded; bring them back")
        if row.fps is None:
            return apply_view(options.view, decode_image(file, name, options.max_pixels), item.key)[None]
    with VideoReader(media, options.max_pixels, name) as reader:
        chosen = options.frames_of(reader.times)[row.start : row.start + min(most, row.size[0])]
        return torch.stack([apply_view(options.view, frame, item.key) for frame in reader.at(chosen)])
