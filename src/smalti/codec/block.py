"""Ids of a block as bytes: entropy-coded, in a file with held token frames after a bit for each of them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smalti.codec.entropy import Model, decode_ids, encode_ids
from smalti.codec.format import Head
from smalti.codec.prior import Prior
from smalti.tokenizer.frames import HELD_ID


def block_to_bytes(
    ids: NDArray[np.int64], levels: Sequence[int], model: Model, prior: Prior | None, *, holds: bool
) -> tuple[bytes, float, int]:
    """Return the data of a block, its bits as an ideal coder would have them, and how many token frames are held; none
    is in a file whose head does not say `holds`."""
    if not holds:
        coded = encode_ids(ids, levels, model, prior)
        return coded.data, coded.bits, 0
    held = ids[:, 0, 0] == HELD_ID
    flags = np.packbits(held, bitorder="little").tobytes()
    if held.all():
        return flags, float(len(held)), len(held)
    coded = encode_ids(ids[~held], levels, model, prior)
    return flags + coded.data, len(held) + coded.bits, int(held.sum())


def bytes_to_block(
    data: bytes, shape: tuple[int, int, int], head: Head, prior: Prior | None, *, starts: bool
) -> Tensor:
    """Return the ids of a block; one that `starts` a video cannot begin with a token frame that is held. Raises
    ValueError for bytes that `block_to_bytes` cannot have written."""
    if not head.holds:
        return torch.from_numpy(decode_ids(data, shape, head.levels, prior))
    length = -(-shape[0] // 8)
    bits = np.unpackbits(np.frombuffer(data[:length], np.uint8), bitorder="little")
    held = bits[: shape[0]].astype(bool)
    if len(held) < shape[0] or bits[shape[0] :].any() or (starts and held[0]):
        raise ValueError("it is not a block with held token frames")
    ids = np.full(shape, HELD_ID, np.int64)
    if not held.all():
        ids[~held] = decode_ids(data[length:], (int((~held).sum()), *shape[1:]), head.levels, prior)
    elif len(data) > length:
        raise ValueError("it has more bytes than ids")
    return torch.from_numpy(ids)
