"""Encoding and decoding with the shipped tokenizers, each beside the limit of the processor in the same run.

The limit is what a 3x3 convolution of the layer that has most of the work takes (its channels and positions, channels
last, float32): `share` is the network's GFLOP/s over that convolution's. `bfloat16` is how many times as fast the same
is with `compute_in(torch.bfloat16)`: below 1 where the processor has no units for it. A stream is 33 frames in chunks.

    python -m benchmarks speed
"""

import os
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import smalti
from benchmarks.measure import CPU, fastest
from smalti.devices import measure_precisions
from smalti.nn.stream import Stream
from smalti.tokenizer import Tokenizer

TINY = "SMALTI_BENCHMARK_TINY"
"""Variable of the environment: the smallest sizes alone, only to see that the program runs."""
IMAGES = ((128, 128), (256, 256), (512, 512), (1080, 1920))
CHUNKS = (4, 16)
ROUNDS = 3


def video(*shape: int) -> Tensor:
    """Smooth pixels `1 3 t h w`, equal in every run."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 1, max(2, shape[1] // 16), max(2, shape[2] // 16), generator=rng) * 2 - 1
    return F.interpolate(coarse, size=(1, *shape[1:]), mode="trilinear").expand(1, 3, *shape).contiguous()


def workloads() -> Mapping[str, tuple[str, Tensor, int | None]]:
    """The tokenizer, the pixels, and the frames of a chunk (None: at once) by name."""
    tiny = bool(os.environ.get(TINY))
    rows: dict[str, tuple[str, Tensor, int | None]] = {}
    for height, width in IMAGES[:1] if tiny else IMAGES:
        rows[f"image {height} x {width}"] = ("smalti/tiny-image", video(1, height, width), None)
    if not tiny:
        rows["video 17 x 128 x 128"] = ("smalti/tiny-video", video(17, 128, 128), None)
    for chunk in CHUNKS[:1] if tiny else CHUNKS:
        size = (9, 32, 32) if tiny else (33, 144, 256)
        rows[f"stream {size[1]} x {size[2]}, {chunk} frames"] = ("smalti/tiny-video", video(*size), chunk)
    return rows


def passes(tokenizer: Tokenizer, pixels: Tensor, chunk: int | None) -> dict[str, Callable[[], object]]:
    """Encoding and decoding of the pixels."""
    if chunk is None:
        ids = tokenizer.encode(pixels)
        return {"encode": lambda: tokenizer.encode(pixels), "decode": lambda: tokenizer.decode(ids)}
    parts = [pixels[:, :, :1], *pixels[:, :, 1:].split(chunk, 2)]

    def encode() -> list[Tensor]:
        stream = Stream()
        return [tokenizer.encode(part, stream) for part in parts]

    pieces = encode()

    def decode() -> list[Tensor]:
        stream = Stream()
        return [tokenizer.decode(piece, stream) for piece in pieces]

    return {"encode": encode, "decode": decode}


def limit(tokenizer: Tokenizer, positions: int, device: torch.device) -> tuple[Callable[[], object], float]:
    """A 3x3 convolution of the widest level at about so many positions, and its GFLOP."""
    channels = tokenizer.encoder.layers[-1].conv2.now.out_channels  # type: ignore[union-attr]
    side = max(16, min(128, round(positions**0.5)))
    x = torch.randn(1, side, side, channels, device=device).permute(0, 3, 1, 2)
    weight = torch.randn(channels, channels, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1), 2 * 9 * channels**2 * side**2 / 1e9


def gflop(call: Callable[[], object]) -> float:
    """The operations of matrix products and convolutions, multiplications and additions apart, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def measure(device: torch.device = CPU) -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row a workload and direction."""
    models = {name: smalti.load(name, device) for name in ("smalti/tiny-image", "smalti/tiny-video")}
    halved = {name: smalti.load(name, device).compute_in(torch.bfloat16) for name in models}
    is_fast = fast_bfloat16(device)
    rows: list[dict[str, object]] = []
    for name, (model, video_on_cpu, chunk) in workloads().items():
        pixels = video_on_cpu.to(device)
        ceiling, operations = limit(models[model], pixels[0, 0, 0].numel() // 16, device)
        float32, bfloat16 = passes(models[model], pixels, chunk), passes(halved[model], pixels, chunk)
        is_large = pixels.numel() > 3 * 300 * 300
        for direction, call in float32.items():
            calls = {"float32": call, "limit": ceiling}
            calls |= {} if is_large and not is_fast else {"bfloat16": bfloat16[direction]}
            best = fastest(calls, rounds=2 if is_large else ROUNDS, device=device)
            work = gflop(call)
            speed, most = work / best["float32"], operations / best["limit"]
            faster = best["float32"] / best["bfloat16"] if "bfloat16" in best else None
            rows.append(
                {
                    "what": f"{name}: {direction}",
                    "gflop": work,
                    "ms": best["float32"] * 1e3,
                    "gflop_s": speed,
                    "limit_gflop_s": most,
                    "share": speed / most,
                    "bfloat16": faster,
                }
            )
    return "shipped tokenizers, float32, beside a 3x3 convolution of the same run; bfloat16: times as fast", rows


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the faster format here; where it is ten times as slow, large sizes are left out."""
    speeds = measure_precisions(device)
    return speeds["bfloat16"] > speeds["float32"]
