"""The benchmark beside codecs counts the bits of ids, and shows what `reconstruct` shows."""

import math

import pytest
import torch

from benchmarks.rate_distortion import by_ids
from smalti import Tokenizer, TokenizerConfig
from smalti.video import to_uint8, to_video


@pytest.mark.parametrize(("frames", "side"), [(1, 16), (1, 36), (9, 24)])
def test_bits_are_those_of_the_ids_and_frames_those_of_the_tokenizer(frames, side):
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        TokenizerConfig(width=8, patch=4, multipliers=(1, 2), strides=((4, 2),), time_kernel=4)
    ).eval()
    shown = torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8)
    size, made = by_ids(tokenizer)(shown)
    tokens = (1 + math.ceil((frames - 1) / 4)) * math.ceil(side / 8) ** 2
    assert size == round(tokens * math.log2(tokenizer.codebook_size) / 8)
    with torch.no_grad():
        whole = tokenizer.decode(tokenizer.encode(to_video(shown)), size=(frames, side, side))
    assert torch.equal(made, to_uint8(whole)[0])
