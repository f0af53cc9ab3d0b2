"""Our causal convolution against F.pad and nn.Conv3d with the same function.

Full kernels (3 x 3 x 3) in both, so the work is the same. `taps` is the same layer as a sum of 2-D convolutions, the
form that it takes for a few small frames. `point` has 1x1 kernels for past frames, the default of a tokenizer: another
function, 11/27 of the operations. `memory` is the order in which the input lies; ours comes out with channels last.

    python -m benchmarks convolution
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import fastest
from smalti.nn.causal import CausalConv, Window

SIZES = ((32, 9, 64), (64, 9, 32), (128, 5, 32))
"""(channels, frames, side)"""


class PaddedConv3d(nn.Module):
    """The usual form: repeat the first frame twice in front, pad rows and columns with zeros, one Conv3d."""

    def __init__(self, ours: CausalConv) -> None:
        super().__init__()
        channels = ours.now.in_channels
        self.conv = nn.Conv3d(channels, ours.now.out_channels, 3, padding=(0, 1, 1))
        with torch.no_grad():
            self.conv.weight.copy_(torch.stack([tap.weight for tap in (*ours.past, ours.now)], 2))
            self.conv.bias.copy_(ours.now.bias)  # type: ignore[union-attr,arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`b c t h w` to the same."""
        y: Tensor = self.conv(F.pad(x, (0, 0, 0, 0, 2, 0), mode="replicate"))
        return y


class Taps(nn.Module):
    """Our layer as a sum of 2-D convolutions."""

    def __init__(self, layer: CausalConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """`t b c h w` to the same."""
        return self.layer._tap_by_tap(self.layer._with_past(x, None), len(x))


def step(layer: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> Callable[[], object]:
    """One pass, or one pass there and back."""
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return layer(x)

        return forward
    x = x.detach().requires_grad_()
    return lambda: layer(x).sum().backward()


def layers(channels: int) -> tuple[CausalConv, PaddedConv3d]:
    """The two, with equal random weights."""
    rng = torch.Generator().manual_seed(channels)
    ours = CausalConv(channels, channels, Window(3, "full"))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / (27 * channels) ** 0.5)
    return ours, PaddedConv3d(ours)


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row a size, memory order and direction."""
    rows: list[dict[str, object]] = []
    for channels, frames, side in SIZES:
        for memory, order in (("NCDHW", torch.contiguous_format), ("NDHWC", torch.channels_last_3d)):
            ours, usual = layers(channels)
            point = CausalConv(channels, channels, Window(3, "point"))
            rng = torch.Generator().manual_seed(frames)
            video = torch.randn(1, channels, frames, side, side, generator=rng)
            usual.to(memory_format=order)  # type: ignore[call-overload]
            x = video.to(memory_format=order)
            flat = video.permute(2, 0, 1, 3, 4).flatten(0, 1)
            if memory == "NDHWC":
                ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                point.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                flat = flat.contiguous(memory_format=torch.channels_last)
            time_first = flat.contiguous() if memory == "NCDHW" else flat
            time_first = time_first.unflatten(0, (frames, 1))
            with torch.no_grad():
                difference = (ours(time_first).permute(1, 2, 0, 3, 4) - usual(x)).abs().max().item()
            for backward in (False, True):
                contenders = {"ours": ours, "taps": Taps(ours), "point": point}
                calls = {name: step(layer, time_first, backward) for name, layer in contenders.items()}
                best = fastest(calls | {"conv3d": step(usual, x, backward)}, rounds=7)
                rows.append(
                    {
                        "channels": channels,
                        "frames": frames,
                        "side": side,
                        "memory": memory,
                        "pass": "forward + backward" if backward else "forward",
                        "ours_ms": best["ours"] * 1e3,
                        "conv3d_ms": best["conv3d"] * 1e3,
                        "taps_ms": best["taps"] * 1e3,
                        "point_ms": best["point"] * 1e3,
                        "ratio": best["conv3d"] / best["ours"],
                        "taps_ratio": best["conv3d"] / best["taps"],
                        "point_ratio": best["conv3d"] / best["point"],
                        "difference": difference,
                    }
                )
    return "CausalConv (3 frames, full kernels, batch 1) against F.pad + Conv3d of equal function", rows
