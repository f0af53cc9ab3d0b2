"""VQGAN's encoder and decoder (Esser et al. 2021, arXiv 2012.09841), as all who took them over build them: images only.

One network with a field for each of their differences: MagicMaster, taming, Show-o's MAGVIT-v2, IBQ, LlamaGen, VQModel
of diffusers, MaskGIT's and MaskBit's.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Blocks, Tuple
from smalti.nn.blocks import GROUPS, FrameAttention, Norm, ResidualBlock
from smalti.nn.causal import CausalConv, Stream, Window, to_frames, to_images
from smalti.quantize import FSQConfig, QuantizerConfig
from smalti.tokenizer.cnn import AutoencoderConfig, Depth
from smalti.tokenizer_info import PixelRange

Shortcut = Literal["input", "output"]


class VQGANConfig(AutoencoderConfig):
    """The image autoencoder of VQGAN (arXiv 2012.09841); the defaults are as MagicMaster builds it.

    Group norms and attention see one whole frame: causal, for it has no time, but not tile-exact.
    """

    kind: Literal["vqgan"] = "vqgan"
    quantizer: QuantizerConfig = FSQConfig()
    """Quantizer of the latents; its levels decide the codebook size."""
    width: int = Field(128, ge=1)
    """Unit of the channels: those of a level whose multiplier is 1."""
    multipliers: Tuple[int] = (1, 1, 2, 2, 4)
    """Channels of each level as multiples of `width`, from the pixels inwards; each further level halves the sides."""
    decoder_multipliers: Tuple[int] | None = None
    """The same of the decoder, from the pixels inwards too; null is `multipliers` (Show-o: others)."""
    depth: Depth = 2
    """Residual blocks per level in the encoder: one number for all levels, or one for each, from the pixels inwards."""
    decoder_depth: Depth = 3
    """Residual blocks per level in the decoder: one number, or one for each level, from the pixels inwards."""
    middle: Blocks = Field(2, ge=0)
    """Residual blocks between the innermost level and the latents, in the encoder and in the decoder."""
    decoder_middle: Blocks | None = Field(None, ge=0)
    """The same of the decoder; null is `middle` (MaskBit may have others)."""
    attention_levels: Tuple[int] | None = None
    """Levels, counted from the pixels, in which attention follows every block; null is the innermost one (Show-o,
    MaskGIT: none)."""
    middle_attention: bool = True
    """Whether attention follows the first of the middle blocks (MaskGIT, MaskBit, aMUSEd: false)."""
    latent: int = Field(256, ge=1)
    """Channels between the networks and the quantizer's projections; of no use without projections."""
    projections: Literal[0, 1, 2] = 2
    """1x1 convolutions between the network and the quantizer, on each side: to the quantizer's channels (1: taming),
    after one that leaves them (2: MagicMaster), or none (MaskGIT)."""
    latent_kernel: Literal[1, 3] = 3
    """Kernel size of the encoder's last convolution before the projections (MaskGIT, MaskBit: 1)."""
    groups: int = Field(GROUPS, ge=1)
    """Groups of channels in the norms, reduced to a common divisor with the channels."""
    block_bias: bool = True
    """Whether the first convolution and those of the blocks have biases (MaskGIT, MaskBit: false)."""
    downsample: Literal["convolution", "average"] = "convolution"
    """Halving of the sides: a strided convolution, or the mean of each square of four (MaskGIT)."""
    shortcut: Shortcut = "input"
    """Source of the 1x1 convolution in a block that changes the channels: its input, or, as published, its own output
    (MaskGIT, MaskBit), so that the input is lost."""
    pixels: PixelRange = "signed"
    """Range of the pixels inside the network: [-1, 1], or [0, 1] (`unit`: MaskGIT, MaskBit, aMUSEd). Outside it is
    always [-1, 1]."""

    @model_validator(mode="after")
    def _consistent(self) -> "VQGANConfig":
        levels = len(self.multipliers)
        for name, multipliers in (("multipliers", self.multipliers), ("decoder_multipliers", self.widths_out)):
            if not multipliers or min(multipliers) < 1 or len(multipliers) != levels:
                raise ValueError(f"{name} must be a positive number for each of {levels} levels (found {multipliers})")
        for name, depths in (("depth", self.depths), ("decoder_depth", self.decoder_depths)):
            if len(depths) != levels or min(depths) < 1:
                raise ValueError(f"{name} must be 1 or more, or one for each of {levels} levels (found {depths})")
        if any(not 0 <= level < levels for level in self.attended):
            raise ValueError(f"attention_levels must be in [0, {levels}) (found {list(self.attended)})")
        return self

    @property
    def widths_out(self) -> tuple[int, ...]:
        """Multipliers of the decoder's levels, from the pixels inwards."""
        return self.multipliers if self.decoder_multipliers is None else self.decoder_multipliers

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
    def attended(self) -> tuple[int, ...]:
        """Levels with attention after every block, counted from the pixels."""
        return (len(self.multipliers) - 1,) if self.attention_levels is None else self.attention_levels

    @property
    def time_kernel(self) -> int:
        """Frames that a convolution sees: one."""
        return 1

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """(time, space) stride between one level and the next."""
        return ((1, 2),) * (len(self.multipliers) - 1)

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of one token."""
        space = 2 ** len(self.strides)
        return 1, space, space

    def networks(self, dim: int) -> "tuple[VQGANEncoder, VQGANDecoder]":
        """Build the encoder and the decoder around a quantizer of `dim` channels."""
        return VQGANEncoder(self, dim), VQGANDecoder(self, dim)


class VQGANEncoder(nn.Module):
    """Stem; levels of residual blocks, some with attention, and halvings between them; middle blocks with attention;
    norm, SiLU, convolution; projections."""

    def __init__(self, config: VQGANConfig, dim: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.pixels = config.pixels
        self.stem = CausalConv(3, widths[0], bias=config.block_bias)
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += _level(config, widths[max(0, i - 1)], width, config.depths[i], attention=i in config.attended)
            if i < len(widths) - 1:
                layers.append(Halve(width) if config.downsample == "convolution" else HalveByMean())
        self.layers = nn.ModuleList(layers + _middle(config, widths[-1], config.middle))
        self.norm = Norm("frame", widths[-1], groups=config.groups)
        latent = config.latent if config.projections else dim
        self.head = CausalConv(widths[-1], latent, kernel=config.latent_kernel)
        self.project = CausalConv(latent, latent, kernel=1) if config.projections == 2 else None
        self.to_latent = CausalConv(latent, dim, kernel=1) if config.projections else None
        self.reach: int | None = None
        """The whole frame, by the norms."""

    def forward(self, video: Float[Tensor, "t b 3 h w"], stream: Stream | None = None) -> Float[Tensor, "t b d h2 w2"]:
        """Encode a video (time first) of legal size to latents, frame by frame."""
        x: Tensor = self.stem(video if self.pixels == "signed" else video * 0.5 + 0.5)
        for layer in self.layers:
            x = layer(x)
        z: Tensor = self.head(F.silu(self.norm(x)))
        for projection in (self.project, self.to_latent):
            z = z if projection is None else projection(z)
        return z


class VQGANDecoder(nn.Module):
    """The encoder, backwards: projections, stem, middle blocks, levels and doublings, head."""

    def __init__(self, config: VQGANConfig, dim: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.widths_out][::-1]
        self.pixels = config.pixels
        latent = config.latent if config.projections else dim
        self.from_codes = CausalConv(dim, latent, kernel=1) if config.projections else None
        self.project = CausalConv(latent, latent, kernel=1) if config.projections == 2 else None
        self.stem = CausalConv(latent, widths[0])
        layers = _middle(config, widths[0], config.middle if config.decoder_middle is None else config.decoder_middle)
        for i, width in enumerate(widths):
            level = len(widths) - 1 - i
            depth, attention = config.decoder_depths[level], level in config.attended
            layers += _level(config, widths[max(0, i - 1)], width, depth, attention=attention)
            layers += [Double(width)] if level else []
        self.layers = nn.ModuleList(layers)
        self.norm = Norm("frame", widths[-1], groups=config.groups)
        self.to_pixels = CausalConv(widths[-1], 3)
        self.reach: int | None = None
        """The whole frame, by the norms."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t b 3 h2 w2"]:
        """Decode codes (time first) to video, frame by frame."""
        x = codes
        for projection in (self.from_codes, self.project, self.stem):
            x = x if projection is None else projection(x)
        for layer in self.layers:
            x = layer(x)
        video: Tensor = self.to_pixels(F.silu(self.norm(x)))
        return video if self.pixels == "signed" else video * 2 - 1


class Halve(nn.Module):
    """A 3x3 convolution of stride 2; padded with zeros at the right and bottom alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c h2 w2"]:
        """Halve an even height and width."""
        return to_frames(self.conv(F.pad(to_images(x), (0, 1, 0, 1))), x.shape[:2])


class Double(nn.Module):
    """Nearest upsampling by two, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c h2 w2"]:
        """Double the height and width."""
        return to_frames(self.conv(F.interpolate(to_images(x), scale_factor=2.0, mode="nearest")), x.shape[:2])


class HalveByMean(nn.Module):
    """The mean of each square of four pixels."""

    def forward(self, x: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b c h2 w2"]:
        """Halve an even height and width."""
        return to_frames(F.avg_pool2d(to_images(x), 2), x.shape[:2])


class OutputShortcutBlock(ResidualBlock):
    """h + shortcut(h) with h = conv(silu(norm(conv(silu(norm(x)))))): where the channels change, x itself is lost.

    That is how the published MaskGIT-VQGAN and MaskBit were trained. Where they do not change it is x + h, as ever.
    """

    def __init__(self, channels: int, out: int, window: Window, *, groups: int = GROUPS, bias: bool = True) -> None:
        super().__init__(channels, out, window, norm="frame", groups=groups, bias=bias)
        if self.skip is not None:
            self.skip = CausalConv(out, out, kernel=1, bias=bias)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c2 h w"]:
        """The shape of x but for the channels."""
        y: Tensor = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.skip is None else self.skip(y))


def _block(config: VQGANConfig, channels: int, out: int) -> ResidualBlock:
    if config.shortcut == "output":
        return OutputShortcutBlock(channels, out, Window(), groups=config.groups, bias=config.block_bias)
    return ResidualBlock(channels, out, Window(), norm="frame", groups=config.groups, bias=config.block_bias)


def _level(config: VQGANConfig, channels: int, out: int, depth: int, *, attention: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for j in range(depth):
        layers.append(_block(config, channels if j == 0 else out, out))
        if attention:
            layers.append(FrameAttention(out, groups=config.groups))
    return layers


def _middle(config: VQGANConfig, channels: int, count: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number in range(count):  # built in the order in which they run: fresh weights of a seed depend on it
        layers.append(_block(config, channels, channels))
        if number == 0 and config.middle_attention:
            layers.append(FrameAttention(channels, groups=config.groups))
    return layers
