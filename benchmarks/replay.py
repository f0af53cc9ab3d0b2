"""What CUDA graphs bring: calls of networks as Python starts them, and replayed (`smalti.nn.replay`).

    python -m benchmarks.replay [DEVICE]    # also a part of benchmarks/gpu.sh; a CPU has the first way alone

One way after the other in one process, by the GPU's own clock. Ids and pixels are compared, and the memory of the
recordings is what the allocator holds more while they are kept.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import smalti
from benchmarks.measure import CPU, TINY, fastest, seconds
from benchmarks.speed import video
from smalti.generation import MaskedConfig, SamplingConfig, empty_prompt, sample
from smalti.nn.replay import Replayable, replayed


class Case(NamedTuple):
    """Calls that are timed together, and the model whose networks they call."""

    name: str
    model: Replayable
    run: Callable[[], list[Tensor]]


def cases(device: torch.device) -> list[Case]:
    """Images alone and in a batch, a clip, streams by one group of frames, and sampling."""
    tiny = bool(os.environ.get(TINY))
    found = []
    image = smalti.load("smalti/tiny-image", device)
    for batch, side in ((1, 32),) if tiny else ((1, 128), (1, 512), (64, 256)):
        pixels = video(1, side, side).expand(batch, -1, -1, -1, -1).contiguous().to(device)
        ids = image.encode(pixels)
        about = f"tiny-image, {batch} x {side} x {side}"
        found += [Case(f"{about}: encode", image, lambda p=pixels: [image.encode(p)])]
        found += [Case(f"{about}: decode", image, lambda i=ids: [image.decode(i)])]
    for name in ("smalti/tiny-video",) if tiny else ("smalti/tiny-video", "smalti/tiny-video-2"):
        tokenizer = smalti.load(name, device)
        side, frames = (32, 5) if tiny else (128, 33)
        clip = video(frames, side, side).to(device)
        parts = clip.split([1, *[tokenizer.strides[0]] * (frames // tokenizer.strides[0])], 2)
        ids = list(tokenizer.encode_stream(parts))
        about = f"{name.removeprefix('smalti/')}, {frames} x {side} x {side}"
        found += [Case(f"{about}: encode", tokenizer, lambda t=tokenizer, c=clip: [t.encode(c)])]
        found += [Case(f"{about}: encode, streamed", tokenizer, lambda t=tokenizer, p=parts: [*t.encode_stream(p)])]
        found += [Case(f"{about}: decode, streamed", tokenizer, lambda t=tokenizer, i=ids: [*t.decode_stream(i)])]
    size = {"width": 32, "depth": 1, "heads": 2} if tiny else {"width": 768, "depth": 12, "heads": 12}
    grid = (1, 4, 4) if tiny else (1, 16, 16)
    torch.manual_seed(0)
    model = MaskedConfig(levels=(8, 8, 8, 8), grid=grid, **size).build().to(device).eval()
    prompt, config = empty_prompt(1, grid, device=device), SamplingConfig(steps=4 if tiny else 12)
    found += [
        Case(f"sample, {grid[1]} x {grid[2]}, width {size['width']}", model, lambda: [sample(model, prompt, config)])
    ]
    return found


def measure(device: torch.device = CPU) -> tuple[str, list[dict[str, object]]]:
    """A row for each case."""
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for case in cases(device):
            row: dict[str, object] = {"call": case.name}
            plain = case.run()
            if device.type == "cpu":
                row |= {"ms": 1e3 * seconds(case.run), "replayed, ms": None}
            else:
                row |= both(case, plain, device)
            rows.append(row)
    return "milliseconds of a call as it is and by replayed CUDA graphs, and what the graphs hold", rows


def both(case: Case, plain: list[Tensor], device: torch.device) -> dict[str, object]:
    """One way after the other: recordings end with their block."""
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(device)
    with replayed(case.model, kept=64) as replays:
        for _ in range(3):
            found = case.run()
        count, more = len(replays), (torch.cuda.memory_reserved(device) - held) / 1e6
        fast = fastest({"replayed": case.run}, rounds=5, device=device)["replayed"]
    slow = fastest({"plain": case.run}, rounds=5, device=device)["plain"]
    differ = sum(int((a != b).sum()) for a, b in zip(found, plain, strict=True))
    figures = {"ms": 1e3 * slow, "replayed, ms": 1e3 * fast, "times as fast": slow / fast}
    return figures | {"recordings": count, "held, MB": more, "values that differ": differ}


if __name__ == "__main__":
    print(json.dumps(measure(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda"))[1], indent=2))
