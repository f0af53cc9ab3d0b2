"""What bfloat16 changes: ids of the shipped tokenizers, and how near their reconstructions are to the source.

Prints a line of JSON for each; takes two minutes, most of it where a processor has no bfloat16.

    python -m benchmarks.bfloat16
"""

import json

import torch
from torch import Tensor

import smalti
from benchmarks.tf32 import media
from smalti.metrics.pixel import psnr
from smalti.tokenizer import Tokenizer


def score(tokenizer: Tokenizer, ids: Tensor, video: Tensor) -> float:
    """PSNR of decoded ids in dB, of 8-bit pixels."""
    decoded = tokenizer.decode(ids, size=video.shape[2:]).float()
    levels = [((pixels.clamp(-1, 1) + 1) * 127.5).round() for pixels in (decoded, video)]
    return psnr((levels[0] - levels[1]).square().mean(), 255).item()


@torch.inference_mode()
def main() -> None:
    """Print what was measured."""
    for name in ("smalti/tiny-image", "smalti/tiny-video"):
        whole, half = smalti.load(name), smalti.load(name)
        half.compute_in(torch.bfloat16)
        tokens, others, changes = 0, 0, []
        for video in media(name):
            ids, half_ids = whole.encode(video), half.encode(video)
            tokens, others = tokens + ids.numel(), others + int((ids != half_ids).sum())
            changes.append(score(half, half_ids, video) - score(whole, ids, video))
        row = {"tokenizer": name, "tokens": tokens, "other ids": others, "share": others / tokens}
        row |= {"dB, mean": sum(changes) / len(changes), "dB, least": min(changes), "dB, most": max(changes)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
