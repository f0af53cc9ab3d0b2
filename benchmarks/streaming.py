"""Peak memory of encoding and decoding a video that is streamed, by its length: it must not grow.

python -m benchmarks streaming
python -m benchmarks.streaming 300      # one length, as JSON
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.measure import child, peak_mb
from smalti.tokenizer import Tokenizer, TokenizerConfig

LENGTHS = (300, 1000, 3000)
RUNS = 3
"""Of each length; the least peak counts, since the allocator's scatter of 5 MB only ever adds."""
SIDE, CHUNK = 128, 8
CONFIG = TokenizerConfig(
    width=32,
    multipliers=(1, 2, 2),
    strides=((1, 2), (2, 2)),
    patch=4,
    time_kernel=3,
    depth=1,
    decoder_depth=1,
    middle=1,
)


def moving(frames: int) -> Iterator[Tensor]:
    """A plaid that moves by one pixel a frame, made chunk by chunk: 1 3 t 128 128."""
    across = torch.arange(SIDE, dtype=torch.float32)
    phases = torch.tensor([0.0, 2.1, 4.2])[:, None, None, None]
    for first in range(0, frames, CHUNK):
        time = torch.arange(first, min(first + CHUNK, frames), dtype=torch.float32)[:, None, None]
        yield (torch.sin((across + time) / 7 + phases) * torch.cos((across[:, None] - time) / 11))[None]


def main(frames: int) -> None:
    """Encode and decode `frames` frames, and print the peak memory and the CPU time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = Tokenizer(CONFIG).eval()
    count, total = 0, 0.0
    with torch.no_grad():
        for video in tokenizer.decode_stream(tokenizer.encode_stream(moving(frames)), size=(frames, SIDE, SIDE)):
            count += video.shape[2]
            total += video.sum().item()
    assert count == frames, (count, frames)
    print(json.dumps({"frames": frames, "peak_mb": peak_mb(), "mean": total / (frames * 3 * SIDE * SIDE)}))


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row a length, and the growth since the shortest."""
    rows: list[dict[str, object]] = []
    first: dict[str, float] = {}
    for frames in LENGTHS:
        runs = [child("benchmarks.streaming", frames) for _ in range(RUNS)]
        found = min(runs, key=lambda run: run["peak_mb"])
        first = first or found
        more = found["frames"] - first["frames"]
        slope = (found["peak_mb"] - first["peak_mb"]) / more * 1000 if more else None
        rows.append({"frames": frames, "peak_mb": found["peak_mb"], "mb_per_1000_frames": slope})
    return f"encode + decode of {SIDE} x {SIDE} pixels in chunks of {CHUNK} frames, peak memory of the process", rows


if __name__ == "__main__":
    main(int(sys.argv[1]))
