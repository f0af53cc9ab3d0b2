"""The autoencoder of the Cosmos tokenizers (Agarwal et al. 2025, arXiv 2501.03575): DI for images, DV for video.

Pixels become the channels of a Haar wavelet transform. Convolutions of the video model are factorised in space and
time, and attention over a frame is followed by one over the past of each position. All is causal, and a video starts
with one frame of its own. In a stream the attention carries its keys and values: exact, but memory grows with length,
by two numbers per channel and position of the latents.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Blocks, Tuple, Two
from smalti.nn.blocks import FrameAttention, Norm, ResidualBlock
from smalti.nn.causal import (
    CausalConv,
    Stream,
    Window,
    channels_from_end,
    channels_to_end,
    join_frames,
    repeat_frames,
    silu,
    to_frames,
    to_images,
)
from smalti.quantize import FSQConfig, QuantizerConfig
from smalti.tokenizer.cnn import AutoencoderConfig
from smalti.tokenizer.vqgan import Double, Halve

_PAST = Window(3)
_Stride = Two[int]


class CosmosConfig(AutoencoderConfig):
    """The autoencoder of the Cosmos tokenizers. Norms see one frame, attention one frame and the past: causal, not
    tile-exact."""

    kind: Literal["cosmos"] = "cosmos"
    quantizer: QuantizerConfig = FSQConfig()
    """Quantizer of the latents; its levels decide the codebook size."""
    width: int = Field(128, ge=1)
    """Channels after the first convolution."""
    multipliers: Tuple[int] = (2, 4, 4)
    """Channels of each level as multiples of `width`, from the pixels inwards."""
    depth: Blocks = Field(2, ge=1)
    """Residual blocks per level of the encoder; the decoder has one more."""
    latent: int = Field(256, ge=1)
    """Channels between the networks and the projections to the quantizer (DI: 256, DV: 16)."""
    patch: Literal[1, 2, 4, 8] = 4
    """Side of the pixel cubes, squares in an image model, that the wavelets turn into channels."""
    time_kernel: Literal[1, 3] = 1
    """Frames that a convolution sees: 1 for images, 3 for video."""
    strides: Tuple[_Stride] = ((1, 2), (1, 1))
    """(time, space) stride between one level of the encoder and the next; one entry fewer than `multipliers`."""
    decoder_strides: Tuple[_Stride] = ((1, 2), (1, 1))
    """(time, space) stride between one level of the decoder and the next, from the latents outwards."""

    @model_validator(mode="after")
    def _fits_together(self) -> "CosmosConfig":
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be at least 1 (found {list(self.multipliers)})")
        for name, strides in (("strides", self.strides), ("decoder_strides", self.decoder_strides)):
            if len(strides) != len(self.multipliers) - 1:
                raise ValueError(f"{name} stand between levels: {len(self.multipliers) - 1} (found {len(strides)})")
            if not all(stride in (1, 2) for pair in strides for stride in pair):
                raise ValueError(f"{name} are 1 or 2 (found {list(strides)})")
            if self.time_kernel == 1 and any(t > 1 for t, _ in strides):
                raise ValueError(f"an image model (time_kernel 1) has no time strides (found {name} {list(strides)})")
        if _product(self.strides) != _product(self.decoder_strides):
            raise ValueError("strides and decoder_strides must multiply to the same, so that sizes come back")
        return self

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of one token."""
        time, space = _product(self.strides)
        return time * (self.patch if self.time_kernel > 1 else 1), self.patch * space, self.patch * space

    @property
    def channels(self) -> int:
        """Channels of the transformed pixels."""
        return 3 * self.patch ** (3 if self.time_kernel > 1 else 2)

    def networks(self, dim: int) -> "tuple[CosmosEncoder, CosmosDecoder]":
        """Build the encoder and the decoder around a quantizer of `dim` channels."""
        return CosmosEncoder(self, dim), CosmosDecoder(self, dim)


class CosmosEncoder(nn.Module):
    """Wavelets; stem; for each level blocks and perhaps a halving; block, attention, block; norm, SiLU, convolution;
    projection."""

    def __init__(self, config: CosmosConfig, dim: int) -> None:
        super().__init__()
        video, widths = config.time_kernel > 1, [config.width * m for m in config.multipliers]
        self.patch, self.time_patch = config.patch, config.patch if video else 1
        self.stem = _convolution(config.channels, config.width, video)
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += _level(widths[i - 1] if i else config.width, width, config.depth, video)
            if i < len(config.strides) and config.strides[i] != (1, 1):
                layers.append(HybridHalve(width, config.strides[i]) if video else Halve(width))
        self.layers = nn.ModuleList(layers + _middle(widths[-1], video))
        self.norm = _norm(widths[-1], video)
        self.head = _convolution(widths[-1], config.latent, video)
        self.to_latent = CausalConv(config.latent, dim, kernel=1)
        self.reach: int | None = None
        """The whole frame, by attention."""

    def forward(self, video: Float[Tensor, "t b 3 h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b d h2 w2"]:
        """Encode a video (time first) of legal size, or the next chunk of one, to latents."""
        if self.time_patch > 1 and _is_start(self, stream):
            video = join_frames((video[:1].expand(self.time_patch - 1, *video.shape[1:]), video))
        x: Tensor = self.stem(to_wavelets(video, self.patch, self.time_patch), stream)
        for layer in self.layers:
            x = layer(x, stream)
        z: Tensor = self.to_latent(self.head(silu(self.norm(x)), stream))
        return z


class CosmosDecoder(nn.Module):
    """Projection; stem; block, attention, block; for each level blocks and perhaps a doubling; norm, SiLU, convolution;
    the wavelets' inverse."""

    def __init__(self, config: CosmosConfig, dim: int) -> None:
        super().__init__()
        video, widths = config.time_kernel > 1, [config.width * m for m in config.multipliers][::-1]
        self.patch, self.time_patch = config.patch, config.patch if video else 1
        self.from_codes = CausalConv(dim, config.latent, kernel=1)
        self.stem = _convolution(config.latent, widths[0], video)
        layers = _middle(widths[0], video)
        for i, width in enumerate(widths):
            layers += _level(widths[max(0, i - 1)], width, config.depth + 1, video)
            if i < len(config.decoder_strides) and config.decoder_strides[i] != (1, 1):
                layers.append(HybridDouble(width, config.decoder_strides[i]) if video else Double(width))
        self.layers = nn.ModuleList(layers)
        self.norm = _norm(widths[-1], video)
        self.to_pixels = _convolution(widths[-1], config.channels, video)
        self.reach: int | None = None
        """The whole frame, by attention."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        last = self.to_pixels
        return (last.time if isinstance(last, FactorizedConv) else last).now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes (time first), or the next chunk of them, to video."""
        is_start = _is_start(self, stream)
        x: Tensor = self.stem(self.from_codes(codes), stream)
        for layer in self.layers:
            x = layer(x, stream)
        wavelets: Tensor = self.to_pixels(silu(self.norm(x)), stream)
        video = from_wavelets(wavelets, self.patch, self.time_patch)
        return video[self.time_patch - 1 :] if is_start else video


def to_wavelets(x: Float[Tensor, "t b c h w"], patch: int, time_patch: int) -> Float[Tensor, "t2 b c2 h2 w2"]:
    """Transform pixels by log2(`patch`) Haar wavelets, each over the height and width (and time if `time_patch` > 1) of
    all bands of the one before: mean and half difference of neighbours. Channels are ordered (bands, channel); `x` has
    whole patches."""
    for _ in range(int(math.log2(patch))):
        bands = [x]
        # In the order of Cosmos: width before height in images, time, height, width in video.
        for axis in (0, 3, 4) if time_patch > 1 else (4, 3):
            pairs = [band.unflatten(axis, (-1, 2)).unbind(axis + 1) for band in bands]
            bands = [half for first, second in pairs for half in ((first + second) / 2, (first - second) / 2)]
        x = channels_from_end(torch.cat([channels_to_end(band) for band in bands], -1))
    return x


def from_wavelets(x: Float[Tensor, "t b c h w"], patch: int, time_patch: int) -> Float[Tensor, "t2 b c2 h2 w2"]:
    """Return the pixels of wavelets, the inverse of `to_wavelets`."""
    for _ in range(int(math.log2(patch))):
        axes = (4, 3, 0) if time_patch > 1 else (3, 4)
        bands = list(x.chunk(2 ** len(axes), 2))
        for axis in axes:
            pairs = zip(bands[::2], bands[1::2], strict=True)
            bands = [torch.stack([mean + half, mean - half], axis + 1).flatten(axis, axis + 1) for mean, half in pairs]
        x = bands[0]
    return x


class FactorizedConv(nn.Module):
    """A 3x3 convolution of each frame, then one over three frames at each position."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.space = CausalConv(channels, out)
        self.time = CausalConv(out, out, _PAST, kernel=1)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c2 h w"]:
        """The shape of x but for the channels."""
        y: Tensor = self.time(self.space(x), stream)
        return y


class FactorizedBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))) with factorised convolutions; a 1x1 convolution on the skip where the
    width changes. Norms see one frame."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels, True)
        self.conv1 = FactorizedConv(channels, out)
        self.norm2 = _norm(out, True)
        self.conv2 = FactorizedConv(out, out)
        self.skip = CausalConv(channels, out, kernel=1) if channels != out else None

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c2 h w"]:
        """The shape of x but for the channels."""
        y: Tensor = self.conv1(silu(self.norm1(x)), stream)
        y = self.conv2(silu(self.norm2(y)), stream)
        return y + (x if self.skip is None else self.skip(x))


class TimeAttention(nn.Module):
    """x + out(attention(query, key, value of norm(x))): one head over a position of this frame and all before it.

    A stream carries the keys and values of all frames so far.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels, True)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c h w"]:
        """The shape of x."""
        tokens = self.norm(x).permute(1, 3, 4, 0, 2).flatten(0, 2)  # (b h w) t c
        query, key, value = self.query_key_value(tokens).chunk(3, -1)
        if stream is not None:
            key, value = stream.extend(self, torch.stack([key, value]), 2)
        new, total = query.shape[1], key.shape[1]
        visible = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        mixed: Tensor = self.out(_attend(query, key, value, visible))
        back = mixed.unflatten(0, (x.shape[1], *x.shape[3:])).permute(3, 0, 4, 1, 2)
        return x + back


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention as torch computes it for three axes, to the bit, in operations that an exporter to ONNX knows: its
    `scaled_dot_product_attention` has to have four, and there rounds differently."""
    scale = query.shape[-1] ** -0.25
    scores = (query * scale) @ (key * scale).mT
    return scores.masked_fill(~visible, -math.inf).softmax(-1) @ value


class HybridHalve(nn.Module):
    """Halve space, time or both: each time a strided convolution plus the mean of two; then a 1x1 convolution.

    1 + 2n frames become 1 + n: the first is a group of its own.
    """

    def __init__(self, channels: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.space = Halve(channels) if strides[1] > 1 else None
        self.time = CausalConv(channels, channels, _PAST, kernel=1, strides=(2, 1)) if strides[0] > 1 else None
        self.out = CausalConv(channels, channels, kernel=1)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b c h2 w2"]:
        """`t` is 1 + 2n at the start of a video and 2n after it, where time is halved."""
        if self.space is not None:
            x = self.space(x) + to_frames(F.avg_pool2d(to_images(x), 2), x.shape[:2])
        if self.time is not None:
            first = x[:1] if stream is None or stream.get(self.time) is None else x[:0]
            pairs = x[len(first) :]
            one, two = pairs.unflatten(0, (pairs.shape[0] // 2, 2)).unbind(1)
            x = self.time(x, stream) + join_frames((first, (one + two) / 2))
        y: Tensor = self.out(x)
        return y


class HybridDouble(nn.Module):
    """Double time, space or both: each time nearest neighbours plus a convolution of them; then a 1x1 convolution.

    1 + n frames become 1 + 2n: the first is not repeated.
    """

    def __init__(self, channels: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.time = CausalConv(channels, channels, _PAST, kernel=1) if strides[0] > 1 else None
        self.space = CausalConv(channels, channels) if strides[1] > 1 else None
        self.out = CausalConv(channels, channels, kernel=1)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b c h2 w2"]:
        """`1 + n` frames in, `1 + 2n` out at the start of a video; `n` and `2n` after it, where time is doubled."""
        if self.time is not None:
            fresh = stream is None or stream.get(self.time) is None
            x = repeat_frames(x, 2)[1 if fresh else 0 :]
            x = self.time(x, stream) + x
        if self.space is not None:
            x = to_frames(F.interpolate(to_images(x), scale_factor=2.0, mode="nearest"), x.shape[:2])
            x = self.space(x) + x
        y: Tensor = self.out(x)
        return y


def _convolution(channels: int, out: int, video: bool) -> FactorizedConv | CausalConv:
    return FactorizedConv(channels, out) if video else CausalConv(channels, out)


def _norm(channels: int, video: bool) -> Norm:
    return Norm("frame", channels, groups=1) if video else Norm("frame", channels)


def _block(channels: int, out: int, video: bool) -> nn.Module:
    return FactorizedBlock(channels, out) if video else ResidualBlock(channels, out, Window(), norm="frame")


def _level(channels: int, out: int, depth: int, video: bool) -> list[nn.Module]:
    return [_block(channels if j == 0 else out, out, video) for j in range(depth)]


def _middle(width: int, video: bool) -> list[nn.Module]:
    attention = [FrameAttention(width, groups=1), TimeAttention(width)] if video else [FrameAttention(width)]
    return [_block(width, width, video), *attention, _block(width, width, video)]


def _is_start(network: nn.Module, stream: Stream | None) -> bool:
    """Whether a chunk is the first of its video; the stream is told that the next one is not."""
    if stream is None:
        return True
    is_start = stream.get(network) is None
    stream.put(network, torch.empty(0))
    return is_start


def _product(strides: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    return math.prod(t for t, _ in strides), math.prod(s for _, s in strides)
