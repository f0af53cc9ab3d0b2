"""Rows of a token set back to frames."""

from collections.abc import Iterator

import torch
from torch import Tensor

from smalti.tokenizer import Tokenizer, decode_tiles
from smalti.tokenizer.reconstruct import TILED_ABOVE, chunk_frames
from smalti.tokenizer.tiles import choose_tile
from smalti.tokens.shard import TokenRow
from smalti.video import crop_to, to_uint8


@torch.inference_mode()
def decode_frames(tokenizer: Tokenizer, row: TokenRow) -> Iterator[Tensor]:
    """The frames of a row, uint8 `h w 3`, in memory that does not grow where the tokenizer is causal.

    Raises ValueError for an id that the tokenizer does not have.
    """
    device, (count, height, width) = next(tokenizer.parameters()).device, row.size
    ids = row.tensor()[None].to(device)
    if count == 1 and height * width > TILED_ABOVE and tokenizer.is_tile_exact:
        yield to_uint8(crop_to(decode_tiles(tokenizer, ids, choose_tile(tokenizer)), row.size).cpu())[0, 0]
        return
    if not tokenizer.is_causal:
        yield from to_uint8(tokenizer.decode(ids, size=row.size).cpu())[0]
        return
    length = max(1, chunk_frames(height, width, tokenizer.strides[0]) // tokenizer.strides[0])
    chunks = (ids[:, at : at + length] for at in range(0, ids.shape[1], length))
    for video in tokenizer.decode_stream(chunks, size=row.size):
        yield from to_uint8(video.cpu())[0]
