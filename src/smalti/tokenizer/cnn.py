"""The common part of the configs of all tokenizers, and the causal CNN autoencoder of MAGVIT-v2 (arXiv 2310.05737,
figure 3): its config, encoder and decoder."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Blocks, C, Config, Tuple, Two
from smalti.nn.blocks import (
    AdaptiveKind,
    AdaptiveNorm,
    Norm,
    NormKind,
    ResidualBlock,
    from_patches,
    to_patches,
    to_patches_last,
)
from smalti.nn.causal import CausalConv, CausalUpsample, PastKernel, Stream, Window, silu, some_frames
from smalti.quantize import FSQConfig, QuantizerConfig

NOT_CAUSAL = "not causal (norms or convolutions let a frame see those after it)"
"""Reason for which a tokenizer has no streams, for messages."""


class AutoencoderConfig(Config):
    """The networks of a tokenizer. By default they are causal, see the whole frame and no later latent."""

    @property
    def is_causal(self) -> bool:
        """Whether ids and pixels up to a frame are independent of what comes after it, but for `lookahead`."""
        return True

    @property
    def lookahead(self) -> int:
        """Latents after a frame's own on which its pixels depend; ids depend on none."""
        return 0

    @property
    def first_frames(self) -> int:
        """Frames of the first latent: 1, so that an image is a video of one frame, or as many as those of each other
        one where groups are whole from the start."""
        return 1

    @property
    def modes(self) -> int:
        """Ways to code a token frame; more than 1 are told by the last digit of its ids, equal in all of them."""
        return 1

    @property
    def is_tile_exact(self) -> bool:
        """Whether a large frame can be cut into tiles without changing a token: no where norms or attention see it
        all."""
        return False

    @property
    def is_contiguous_on_cpu(self) -> bool:
        """Whether the memory of a CPU should hold the channels apart: no where attention, or norms over channels, are
        faster with the channels last."""
        return False

    def with_quantizer(self: C, quantizer: QuantizerConfig) -> C:
        """Return the same networks around another quantizer."""
        return self.replace({"quantizer": quantizer})


Stride = Two[int]
"""(time, space)."""
Depth = Blocks | Tuple[Blocks]
"""Residual blocks per level: one number for all levels, or one for each, from the pixels inwards."""


class TokenizerConfig(AutoencoderConfig):
    """A causal CNN autoencoder around a scalar quantizer; with `time_kernel=1` it is an image model."""

    former_names: ClassVar[Mapping[str, str]] = {"time": "time_kernel", "past": "past_kernel"}

    kind: Literal["causal-cnn"] = "causal-cnn"
    quantizer: QuantizerConfig = FSQConfig()
    """Quantizer of the latents; its levels decide the codebook size."""
    width: int = Field(64, ge=1)
    """Channels of the first level."""
    multipliers: Tuple[int] = (1, 2, 4)
    """Channels of each level as multiples of `width`, from the pixels inwards."""
    strides: Tuple[Stride] = ((1, 2), (1, 2))
    """(time, space) stride between one level and the next; one entry fewer than `multipliers`."""
    depth: Depth = 2
    """Residual blocks per level in the encoder: one number for all levels, or one for each."""
    decoder_depth: Depth = 3
    """Residual blocks per level in the decoder, which has the harder task: one number, or one for each level."""
    middle: Blocks = Field(2, ge=0)
    """Additional residual blocks at the latent resolution, in the encoder and in the decoder."""
    patch: int = Field(1, ge=1)
    """Side of the pixel patches that are folded into channels before the first convolution."""
    stem_kernel: int = Field(3, ge=1)
    """Kernel size of the first convolution in space (MAGVIT-v2: 3; MagicMaster: 7)."""
    stem_time: int | None = Field(None, ge=1)
    """Kernel size of the first convolution in time; null is `time_kernel` (MagicMaster: 7)."""
    code_kernel: int = Field(3, ge=1)
    """Kernel size of the decoder's first convolution, in space and time; 1 is pointwise (MagicMaster)."""
    head_kernel: int = Field(3, ge=1)
    """Kernel size of the last convolution in space (MAGVIT-v2: 3; MagicMaster: 1)."""
    head_time: int | None = Field(None, ge=1)
    """Kernel size of the last convolution in time; null is `time_kernel` (MagicMaster: 1)."""
    norm: NormKind = "position"
    """Statistics of the norms: over the channels of one position, or over groups of channels of one frame or one clip.
    Only `clip` is not causal, and only `position` is tile-exact."""
    groups: int = Field(32, ge=1)
    """Groups of channels in the norms `frame` and `clip`, reduced to a common divisor with the channels. Use fewer in a
    narrow network: with one channel per group the frame loses its mean colour."""
    final_norm: bool = True
    """Whether a norm and a SiLU precede the latents and the pixels (MagicMaster: false)."""
    adaptive: AdaptiveKind = "position"
    """Modulation of the norm at the head of each decoder level: by the codes of the position, by their mean over the
    frame or over the clip (MagicMaster), or none (mindone)."""
    adaptive_source: Literal["codes", "first"] = "codes"
    """Source of the modulation: the codes, or the output of the decoder's first convolution (MagicMaster)."""
    activate_upsample: bool = False
    """Whether a SiLU stands between an upsampling convolution and its depth-to-space (MagicMaster: true)."""
    bias: bool = True
    """Whether convolutions have biases; if false, only the decoder's first one has (mindone)."""
    time_kernel: int = Field(1, ge=1)
    """Kernel size of the causal convolutions in time: 1 for images, 3 for video."""
    past_kernel: PastKernel = "point"
    """Kernel of the past frames in space: 1x1 (`point`), or as large as that of the current frame (`full`)."""
    start: Literal["repeat", "zero", "grey"] = "repeat"
    """Padding before the first frame: the frame itself (`repeat`), zeros in every layer (`zero`), or mid-grey frames
    that pass through the whole network (`grey`; MagicMaster, mindone)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TokenizerConfig":
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one or more positive numbers (found {list(self.multipliers)})")
        if len(self.strides) != len(self.multipliers) - 1:
            raise ValueError(
                f"strides must be one fewer than multipliers (found {len(self.strides)} and {len(self.multipliers)})"
            )
        if any(t < 1 or s < 1 for t, s in self.strides):
            raise ValueError(f"strides must be at least 1 (found {self.strides})")
        if any(t > self.time_kernel for t, _ in self.strides):
            raise ValueError(
                f"a time stride cannot exceed time_kernel, the frames that a convolution sees ({self.time_kernel})"
            )
        if not all(kernel % 2 for kernel in (self.stem_kernel, self.code_kernel, self.head_kernel)):
            raise ValueError("stem_kernel, code_kernel and head_kernel must be odd")
        for name, depths in (("depth", self.depths), ("decoder_depth", self.decoder_depths)):
            if len(depths) != len(self.multipliers) or min(depths) < 0:
                raise ValueError(
                    f"{name} must be one number of blocks, or one for each of {len(self.multipliers)} levels"
                    f" (found {list(depths)})"
                )
        return self

    @property
    def depths(self) -> tuple[int, ...]:
        """Residual blocks of each level of the encoder, from the pixels inwards."""
        return (self.depth,) * len(self.multipliers) if isinstance(self.depth, int) else self.depth

    @property
    def decoder_depths(self) -> tuple[int, ...]:
        """Residual blocks of each level of the decoder, from the pixels inwards."""
        same = self.decoder_depth
        return (same,) * len(self.multipliers) if isinstance(same, int) else same

    @property
    def window(self) -> Window:
        """Frames that the convolutions see, and how."""
        return Window(self.time_kernel, self.past_kernel, self.start)

    @property
    def grey(self) -> int:
        """Grey frames that stand in front of a video: as many as its first group lacks."""
        return self.total_strides[0] - 1 if self.start == "grey" else 0

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of one token."""
        space = self.patch * math.prod(s for _, s in self.strides)
        return math.prod(t for t, _ in self.strides), space, space

    @property
    def is_causal(self) -> bool:
        """Whether ids and pixels up to a frame are independent of what comes after it."""
        return "clip" not in (self.norm, self.adaptive)

    @property
    def is_tile_exact(self) -> bool:
        """Whether a large frame can be cut into tiles without changing a token."""
        return self.norm == "position" and self.adaptive in ("none", "position")

    @property
    def is_contiguous_on_cpu(self) -> bool:
        """Whether the memory of a CPU should hold the channels apart (contiguous) instead of together (channels last).

        The gradient of a 2-D convolution's weights is then 1.2 times as fast (benchmarks/README.md). Not for position
        norms or 3-D convolutions, which are faster with channels last."""
        return self.time_kernel == 1 and self.norm != "position"

    def networks(self, dim: int) -> "tuple[Encoder, Decoder]":
        """Build the encoder and the decoder around a quantizer of `dim` channels."""
        return Encoder(self, dim), Decoder(self, dim)


class Encoder(nn.Module):
    """Stem; for each level residual blocks and a strided convolution; more blocks; norm, SiLU, 1x1 convolution.

    With `start="grey"`, grey frames (zeros) are put in front of a video and pass through all layers, so that 1 + s*n
    frames are n + 1 whole groups of s.
    """

    def __init__(self, config: TokenizerConfig, dim: int) -> None:
        super().__init__()
        self.patch, self.grey = config.patch, config.grey
        self.orders_pixels = config.patch > 1 and not config.is_contiguous_on_cpu
        """Whether the order of the pixels in memory makes no difference: patches are put in order as they are made."""
        widths, window, bias = [config.width * m for m in config.multipliers], config.window, config.bias
        groups = config.groups
        stem = window._replace(time=config.stem_time or config.time_kernel)
        self.stem = CausalConv(3 * config.patch**2, widths[0], stem, kernel=config.stem_kernel, bias=bias)
        layers: list[nn.Module] = []
        reach, step, have = config.patch * (config.stem_kernel // 2), config.patch, widths[0]
        for i, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
            for _ in range(depth + (config.middle if i == len(widths) - 1 else 0)):
                layers.append(ResidualBlock(have, width, window, norm=config.norm, groups=groups, bias=bias))
                reach, have = reach + 2 * step, width
            if i < len(config.strides):
                out = have if config.depths[i + 1] else widths[i + 1]
                layers.append(CausalConv(have, out, window, strides=config.strides[i], bias=bias))
                reach, step, have = reach + step, step * config.strides[i][1], out
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.norm, have, groups=groups) if config.final_norm else None
        self.to_latent = CausalConv(have, dim, kernel=1, bias=bias)
        self.reach: int | None = reach
        """Pixels on each side that a latent sees beyond its own square."""

    def forward(self, video: Float[Tensor, "t b 3 h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b d h2 w2"]:
        """Encode a video (time first) of legal size, or the next chunk of one, to latents."""
        if self.grey and (stream is None or stream.get(self) is None):
            video = F.pad(video, (0, 0) * 4 + (self.grey, 0))
            if stream is not None:
                stream.put(self, video.new_empty(0))
        patches = (to_patches_last if self.orders_pixels else to_patches)(video, self.patch)
        x: Tensor = self.stem(patches, stream)
        for layer in self.layers:
            x = layer(x, stream)
        z: Tensor = self.to_latent(x if self.norm is None else silu(self.norm(x)))
        return z


class Decoder(nn.Module):
    """Convolution; blocks; for each level an adaptive norm from the codes, residual blocks, depth-to-space; head.

    With `start="grey"`, the frames that stand for the encoder's grey ones are dropped at the end.
    """

    def __init__(self, config: TokenizerConfig, dim: int) -> None:
        super().__init__()
        self.patch, self.grey, self.adaptive_source = config.patch, config.grey, config.adaptive_source
        widths = [config.width * m for m in config.multipliers][::-1]
        depths, strides = config.decoder_depths[::-1], config.strides[::-1]
        window, bias, groups = config.window, config.bias, config.groups
        # A kernel of 1 is a projection, in time as in space.
        first = window if config.code_kernel > 1 else Window()
        self.from_codes = CausalConv(dim, widths[0], first, kernel=config.code_kernel)
        source = dim if config.adaptive_source == "codes" else widths[0]
        layers: list[nn.Module] = [
            ResidualBlock(widths[0], widths[0], window, norm=config.norm, groups=groups, bias=bias)
            for _ in range(config.middle)
        ]
        reach, step, have = float(config.code_kernel // 2 + 2 * config.middle), 1.0, widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if config.adaptive != "none":
                time_stride = math.prod(t for t, _ in strides[:i])
                by = config.adaptive
                layers.append(AdaptiveNorm(config.norm, have, source, by=by, time_stride=time_stride, groups=groups))
            for _ in range(depth):
                layers.append(ResidualBlock(have, width, window, norm=config.norm, groups=groups, bias=bias))
                reach, have = reach + 2 * step, width
            if i < len(strides):
                out = have if depths[i + 1] else widths[i + 1]
                layers.append(
                    CausalUpsample(have, out, window, strides=strides[i], bias=bias, activate=config.activate_upsample)
                )
                reach, step, have = reach + step, step / strides[i][1], out
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.norm, have, groups=groups) if config.final_norm else None
        head = window._replace(time=config.head_time or config.time_kernel)
        self.to_pixels = CausalConv(have, 3 * config.patch**2, head, kernel=config.head_kernel, bias=bias)
        self.reach: int | None = math.ceil(reach + step * (config.head_kernel // 2))
        """Latents on each side that a pixel sees beyond its own."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes (time first), or the next chunk of them, to video."""
        x: Tensor = self.from_codes(codes, stream)
        source = codes if self.adaptive_source == "codes" else x
        for layer in self.layers:
            x = layer(x, source) if isinstance(layer, AdaptiveNorm) else layer(x, stream)
        if self.norm is not None:
            x = silu(self.norm(x))
        video = from_patches(self.to_pixels(x, stream), self.patch)
        if self.grey and (stream is None or stream.get(self) is None):
            video = some_frames(video, slice(self.grey, None))
            if stream is not None:
                stream.put(self, video.new_empty(0))
        return video
