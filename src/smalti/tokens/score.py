"""Pairs of a token set's decoded rows and the media they were encoded from, which are not encoded again."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from smalti.data.images import decode_image
from smalti.data.video_reader import VideoReader
from smalti.data.views import viewed
from smalti.errors import BadFile
from smalti.metrics import Pair
from smalti.tokenizer import Tokenizer
from smalti.tokens.plan import load_plan
from smalti.tokens.reader import TokenSet, decode_row
from smalti.tokens.shard import TokenRow
from smalti.tokens.tokenize import Item, apply_view, items_of, media_digest, open_medium, view_of
from smalti.video import latent_frames, to_video


def pairs_of_token_set(
    tokenizer: Tokenizer,
    tokens: TokenSet,
    root: Path,
    *,
    rows: int | None = None,
    frames: int = 17,
    on_bad: Callable[[BadFile], None] | None = None,
) -> Iterator[Pair]:
    """Yield the first `rows` decoded rows beside their originals below `root`, of videos the first `frames` frames.

    Originals are resized and cropped as the set was. One that is missing or has other bytes than those that were
    encoded is passed to `on_bad`. Raises IntegrityError for another tokenizer than the set's.
    """
    tokens.check(tokenizer)
    info = tokens.tokenizer_info
    originals = _originals(tokens, root, frames, on_bad or (lambda bad: None))
    for number, (row, original) in enumerate(islice(originals, rows)):
        count = len(original)
        decoded = torch.stack(list(islice(decode_row(tokenizer, row), count)))
        ids = row.tensor()[None, : latent_frames(count, info.strides[0], info.first_frames)]
        yield Pair(row.key, to_video(original), to_video(decoded), ids, number)


def _originals(
    tokens: TokenSet, root: Path, frames: int, on_bad: Callable[[BadFile], None]
) -> Iterator[tuple[TokenRow, Tensor]]:
    """Yield (row, first frames of its original, uint8 `t h w 3`) by going through plan and rows side by side."""
    plan, index = load_plan(tokens.path), 0
    for shard in range(plan.shards):
        for item in items_of(plan, shard, root):
            first = index
            while index < len(tokens) and tokens.row(index).source == item.key:
                index += 1
            for number in range(first, index):
                row = tokens.row(number)
                try:
                    yield row, _original(tokens, item, row, frames)
                except BadFile as bad:
                    on_bad(bad)


def _original(tokens: TokenSet, item: Item, row: TokenRow, frames: int) -> Tensor:
    if item.fault is not None or item.store is None:
        raise item.fault or BadFile(item.key, "missing", "is not there")
    options, media, name = tokens.options, item.store.media(item.place), item.store.where(item.place)
    with open_medium(media) as file:
        if media_digest(file) != row.source_sha256:
            raise BadFile(item.key, "changed", "has other bytes than those that were encoded; bring them back")
        if row.fps is None:
            return apply_view(options.view, decode_image(file, name, options.max_pixels), item.key)[None]
    with VideoReader(media, options.max_pixels, name) as reader:
        numbers = options.frames_of(reader.times)[row.start : row.start + min(frames, row.size[0])]
        return torch.stack(list(viewed(reader, numbers, view_of(options.view, reader.size, item.key))))
