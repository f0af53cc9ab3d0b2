"""The video autoencoder of VidTok (Tang et al. 2024, arXiv 2412.13061): space by 2-D, time by 1-D convolutions.

A video begins with copies of its first frame that complete its first group, so groups are whole from the start. Version
1.0 has zeros before them and repeats frames where it doubles time; 1.1 has copies there and interpolates: the last
frames of a group then depend on the next latent (`lookahead`).

Its models that are not causal have windows around each frame, and zeros around the video; groups are whole without any
copies, so s*n frames become n.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Blocks, Tuple
from smalti.nn.blocks import FrameAttention, Norm, ResidualBlock
from smalti.nn.causal import (
    CausalConv,
    Start,
    Stream,
    Window,
    interleave,
    join_frames,
    repeat_frames,
    silu,
    some_frames,
)
from smalti.quantize import FSQConfig, QuantizerConfig
from smalti.tokenizer.cnn import AutoencoderConfig
from smalti.tokenizer.vqgan import Double, Halve


class VidTokConfig(AutoencoderConfig):
    """The autoencoder of VidTok. Norms see one position, attention in the middle one frame: causal, unless `start` is
    `around`, and not tile-exact."""

    kind: Literal["vidtok"] = "vidtok"
    quantizer: QuantizerConfig = FSQConfig(levels=(8, 8, 8, 8, 8))
    """Quantizer of the latents; its levels decide the codebook size."""
    width: int = Field(128, ge=1)
    """Channels of the first level."""
    multipliers: Tuple[int] = (1, 2, 4, 4)
    """Channels of each level as multiples of `width`, from the pixels inwards; each further level halves the sides."""
    depth: Blocks = Field(2, ge=1)
    """Pairs of a residual block in space and one in time per level of the encoder; the decoder has one more."""
    time_down: Tuple[int] = (1, 2)
    """Levels of the encoder, counted from the pixels, after which time is halved too."""
    time_up: Tuple[int] = (1, 2)
    """Levels of the decoder, counted from the pixels, after which time is doubled too."""
    start: Literal["zero", "repeat", "around"] = "zero"
    """Frames before the copies of the first one: zeros (1.0) or more copies (1.1). `around` is the network that is not
    causal: no copies, zeros before and after the video, and windows around each frame."""
    interpolation: Literal["nearest", "linear"] = "nearest"
    """Doubling of time: each frame twice (1.0), or between the frames (1.1), where one latent of the future is seen."""

    @model_validator(mode="after")
    def _fits_together(self) -> "VidTokConfig":
        last = len(self.multipliers) - 1
        if last < 0 or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be at least 1 (found {list(self.multipliers)})")
        for name, levels, first in (("time_down", self.time_down, 0), ("time_up", self.time_up, 1)):
            if len(set(levels)) != len(levels) or not all(first <= level < first + last for level in levels):
                there = f"from {first} to {first + last - 1}"
                raise ValueError(f"{name} names levels {there}, each once (found {list(levels)})")
        if len(self.time_down) != len(self.time_up):
            raise ValueError("time_down and time_up must have as many levels, so that time comes back as it was")
        if self.start == "around" and self.interpolation != "nearest":
            raise ValueError("start around goes with interpolation nearest: VidTok has no other such network")
        return self

    @property
    def time_kernel(self) -> int:
        """Frames that a convolution sees."""
        return 3

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of one token."""
        space = 2 ** (len(self.multipliers) - 1)
        return 2 ** len(self.time_down), space, space

    @property
    def is_causal(self) -> bool:
        """Whether ids and pixels up to a frame are independent of what comes after it, but for `lookahead`."""
        return self.start != "around"

    @property
    def first_frames(self) -> int:
        """Frames of the first latent: a whole group where nothing stands in for the frames before the first one."""
        return 1 if self.is_causal else self.total_strides[0]

    @property
    def copies(self) -> int:
        """Copies of the first frame that complete its group."""
        return self.total_strides[0] - self.first_frames

    @property
    def lookahead(self) -> int:
        """Latents after a frame's own on which its pixels depend; ids depend on none."""
        return int(self.interpolation == "linear" and bool(self.time_up))

    @property
    def window(self) -> Window:
        """Frames that the convolutions in time see, and how."""
        starts: dict[str, Start] = {"zero": "grey", "repeat": "copy", "around": "around"}
        return Window(3, start=starts[self.start])

    def networks(self, dim: int) -> "tuple[VidTokEncoder, VidTokDecoder]":
        """Build the encoder and the decoder around a quantizer of `dim` channels."""
        return VidTokEncoder(self, dim), VidTokDecoder(self, dim)


class VidTokEncoder(nn.Module):
    """Stem; for each level pairs of blocks, a halving in space and perhaps one in time; block, attention, block; norm,
    SiLU, convolution."""

    def __init__(self, config: VidTokConfig, dim: int) -> None:
        super().__init__()
        widths, window = [config.width * m for m in config.multipliers], config.window
        self.copies = config.copies
        self.stem = CausalConv(3, widths[0], window)
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += _level(widths[max(0, i - 1)], width, config.depth, window)
            layers += [Halve(width)] if i < len(widths) - 1 else []
            layers += [HalveTime(width, window)] if i in config.time_down else []
        self.layers = nn.ModuleList(layers + _middle(widths[-1], window))
        self.norm = Norm("position", widths[-1])
        self.to_latent = CausalConv(widths[-1], dim, window)
        self.reach: int | None = None
        """The whole frame, by attention."""

    def forward(self, video: Float[Tensor, "t b 3 h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b d h2 w2"]:
        """Encode a video (time first) of legal size, or the next chunk of one, to latents."""
        if self.copies and (stream is None or stream.get(self.stem) is None):
            video = join_frames((video[:1].expand(self.copies, *video.shape[1:]), video))
        x: Tensor = self.stem(video, stream)
        for layer in self.layers:
            x = layer(x, stream)
        z: Tensor = self.to_latent(silu(self.norm(x)), stream)
        return z


class VidTokDecoder(nn.Module):
    """Stem; block, attention, block; for each level pairs of blocks, a doubling in space and perhaps one in time; norm,
    SiLU, convolution. The frames that stand for the encoder's copies are dropped."""

    def __init__(self, config: VidTokConfig, dim: int) -> None:
        super().__init__()
        widths, window = [config.width * m for m in config.multipliers][::-1], config.window
        self.copies = config.copies
        self.stem = CausalConv(dim, widths[0], window)
        layers, alone = _middle(widths[0], window), 1
        for i, width in enumerate(widths):
            layers += _level(widths[max(0, i - 1)], width, config.depth + 1, window)
            layers += [Double(width)] if i < len(widths) - 1 else []
            if len(widths) - 1 - i in config.time_up:
                layers.append(DoubleTime(width, window, alone if config.interpolation == "linear" else None))
                alone *= 2
        self.layers = nn.ModuleList(layers)
        self.norm = Norm("position", widths[-1])
        self.to_pixels = CausalConv(widths[-1], 3, window)
        self.reach: int | None = None
        """The whole frame, by attention."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes (time first), or the next chunk of them, to the frames that no later latent changes."""
        is_start = stream is None or stream.get(self.stem) is None
        x: Tensor = self.stem(codes, stream)
        for layer in self.layers:
            x = layer(x, stream)
        video: Tensor = self.to_pixels(silu(self.norm(x)), stream)
        return video[self.copies :] if is_start else video


class HalveTime(nn.Module):
    """a * mean of three frames + (1 - a) * convolution over them, with stride 2 and a learned a = sigmoid(`mix`)."""

    def __init__(self, channels: int, window: Window) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, window, strides=(2, 1))
        self.mix = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b c h w"]:
        """Halve an even number of frames."""
        first, second = x.unflatten(0, (x.shape[0] // 2, 2)).unbind(1)
        if self.conv.start == "around":
            third = join_frames((first[1:], torch.zeros_like(x[:1])))
        else:
            carry = None if stream is None else stream.get(self)
            if carry is None:
                carry = x[:1] if self.conv.start == "copy" else torch.zeros_like(x[:1])
            third = join_frames((carry, second[:-1]))
        if stream is not None:
            stream.put(self, x[-1:])
        share = self.mix.sigmoid()
        return share * ((third + first + second) / 3) + (1 - share) * self.conv(x, stream)


class DoubleTime(nn.Module):
    """y = the frames at twice the rate; a * y + (1 - a) * convolution of y, with a learned a = sigmoid(`mix`).

    Each frame is there twice, or, with `alone`, y is interpolated linearly: y_2i = x_{i-1}/4 + 3 x_i/4 and y_{2i+1} =
    3 x_i/4 + x_{i+1}/4, clamped at the ends. The first `alone` frames, those of the first latent, are interpolated
    apart from the rest. In a stream y_{2i+1} waits for x_{i+1}, or for the end of the stream.
    """

    def __init__(self, channels: int, window: Window, alone: int | None) -> None:
        super().__init__()
        self.alone = alone
        self.conv = CausalConv(channels, channels, window)
        self.mix = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b c h w"]:
        """`t` frames in, `2 t` out; in a stream that goes on, the last one waits if frames are interpolated."""
        y = repeat_frames(x, 2) if self.alone is None else self._between(x, self.alone, stream)
        share = self.mix.sigmoid()
        return share * y + (1 - share) * self.conv(y, stream)

    def _between(self, x: Tensor, alone: int, stream: Stream | None) -> Tensor:
        carry = None if stream is None else stream.get(self)
        parts: list[Tensor] = []
        if carry is None:
            first, x = some_frames(x, slice(alone)), some_frames(x, slice(alone, None))
            parts, carry = [_interpolate(first)], x[:0]
        frames = join_frames((carry, x))
        # What the carried frame gave before it is out already.
        stop = None if stream is None or stream.is_ending else -1
        parts.append(some_frames(_interpolate(frames), slice(len(carry), stop)))
        if stream is not None:
            stream.put(self, frames[-1:])
        return join_frames(parts)


def _interpolate(x: Tensor) -> Tensor:
    first, others, earlier, last = (
        some_frames(x, which) for which in (slice(1), slice(1, None), slice(-1), slice(-1, None))
    )
    before, after = join_frames((first, earlier)), join_frames((others, last))
    return interleave(0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after)


def _level(channels: int, out: int, depth: int, window: Window) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for j in range(depth):
        layers.append(ResidualBlock(channels if j == 0 else out, out, Window(), norm="position"))
        layers.append(TimeBlock(out, window))
    return layers


class TimeBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the convolutions over time alone; fresh, it is x."""

    def __init__(self, channels: int, window: Window) -> None:
        super().__init__()
        self.norm1 = Norm("position", channels)
        self.conv1 = CausalConv(channels, channels, window, kernel=1)
        self.norm2 = Norm("position", channels)
        self.conv2 = CausalConv(channels, channels, window, kernel=1)
        nn.init.zeros_(self.conv2.now.weight)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c h w"]:
        """The shape of x."""
        y: Tensor = self.conv1(silu(self.norm1(x)), stream)
        return x + self.conv2(silu(self.norm2(y)), stream)


def _middle(width: int, window: Window) -> list[nn.Module]:
    blocks = [ResidualBlock(width, width, window, norm="position") for _ in range(2)]
    return [blocks[0], FrameAttention(width, norm="position"), blocks[1]]
