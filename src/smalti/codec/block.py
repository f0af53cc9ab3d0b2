"""Ids of a block as bytes: entropy-coded, in a file with held tokens after a flag for each of them."""

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from smalti.codec.contexts import Integers
from smalti.codec.entropy import Model, decode_ids, encode_ids
from smalti.codec.format import Head
from smalti.codec.prior import Prior
from smalti.tokenizer.frames import HELD_ID

_FLAG = (2,)
"""Levels of the ids that flags are coded as, by counts in contexts."""
_LENGTH = struct.Struct("<I")


def block_to_bytes(
    ids: Integers, levels: Sequence[int], model: Model, prior: Prior | None, *, holds: bool
) -> tuple[bytes, float, int]:
    """Return the data of a block, its bits as an ideal coder would have them, and how many tokens are held; none is in
    a file whose head does not say `holds`. Token frames that are held whole are nothing to the others."""
    held = ids == HELD_ID
    if not (holds and held.any()):
        coded = encode_ids(ids, levels, model, prior)
        return (_LENGTH.pack(0) if holds else b"") + coded.data, coded.bits, 0
    flags, some = encode_ids(held.astype(np.int64), _FLAG, "adaptive"), ~held.all((1, 2))
    coded = encode_ids(ids[some], levels, model, prior, held[some])
    return _LENGTH.pack(len(flags.data)) + flags.data + coded.data, flags.bits + coded.bits, int(held.sum())


def bytes_to_block(
    data: bytes, shape: tuple[int, int, int], head: Head, prior: Prior | None, *, starts: bool
) -> Tensor:
    """Return the ids of a block; one that `starts` a video has no held token in its first token frame. Raises
    ValueError for bytes that `block_to_bytes` cannot have written."""
    if not head.holds:
        return torch.from_numpy(decode_ids(data, shape, head.levels, prior))
    if len(data) < _LENGTH.size:
        raise ValueError("it is not a block with held tokens")
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    if end == _LENGTH.size:
        return torch.from_numpy(decode_ids(data[end:], shape, head.levels, prior))
    held = decode_ids(data[_LENGTH.size : end], shape, _FLAG).astype(bool)
    if starts and held[0].any():
        raise ValueError("it holds tokens of a first frame")
    ids, some = np.full(shape, HELD_ID, np.int64), ~held.all((1, 2))
    read = decode_ids(data[end:], (int(some.sum()), *shape[1:]), head.levels, prior, held[some])
    ids[~held] = read[~held[some]]
    return torch.from_numpy(ids)
