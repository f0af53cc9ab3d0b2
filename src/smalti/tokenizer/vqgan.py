"""VQGAN's encoder and decoder (Esser et al. 2021, arXiv 2012.09841), as MagicMaster builds them: images only."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Config, Tuple
from smalti.nn.attention import FrameAttention
from smalti.nn.blocks import Norm, ResidualBlock
from smalti.nn.causal import CausalConv, Window
from smalti.nn.stream import Stream
from smalti.quantize import FSQConfig, QuantizerConfig


class VQGANConfig(Config):
    """The image autoencoder of VQGAN (arXiv 2012.09841, as MagicMaster builds it) around a scalar quantizer.

    Group norms and attention see one whole frame: causal, for it has no time, but not tile-exact.
    """

    kind: Literal["vqgan"] = "vqgan"
    quantizer: QuantizerConfig = FSQConfig()
    """Quantizer of the latents; its levels decide the codebook size."""
    width: int = Field(128, ge=1)
    """Channels of the first level."""
    multipliers: Tuple[int] = (1, 1, 2, 2, 4)
    """Channels of each level as multiples of `width`, from the pixels inwards; each further level halves the sides."""
    depth: int = Field(2, ge=1)
    """Residual blocks per level in the encoder, each followed by attention at the innermost level."""
    decoder_depth: int = Field(3, ge=1)
    """Residual blocks per level in the decoder, each followed by attention at the innermost level."""
    latent: int = Field(256, ge=1)
    """Channels between the networks and the quantizer's projections."""

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

    @property
    def is_causal(self) -> bool:
        """Whether ids are independent of later frames: yes, each frame is encoded alone."""
        return True

    @property
    def is_tile_exact(self) -> bool:
        """Whether a large frame can be cut into tiles without changing a token: no, attention sees it all."""
        return False

    @property
    def is_contiguous_on_cpu(self) -> bool:
        """Whether the memory of a CPU should hold the channels apart: no, attention is faster with channels last."""
        return False

    def networks(self, dim: int) -> "tuple[VQGANEncoder, VQGANDecoder]":
        """Build the encoder and the decoder around a quantizer of `dim` channels."""
        return VQGANEncoder(self, dim), VQGANDecoder(self, dim)


class VQGANEncoder(nn.Module):
    """Stem; levels of residual blocks, with attention in the last, and halvings between them; block, attention, block;
    norm, SiLU, convolution; two projections."""

    def __init__(self, config: VQGANConfig, dim: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.stem = CausalConv(3, widths[0])
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            layers += _level(widths[max(0, i - 1)], width, config.depth, attention=last)
            layers += [] if last else [Halve(width)]
        layers += [_block(widths[-1], widths[-1]), FrameAttention(widths[-1]), _block(widths[-1], widths[-1])]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm("frame", widths[-1])
        self.head = CausalConv(widths[-1], config.latent)
        self.project = CausalConv(config.latent, config.latent, kernel=1)
        self.to_latent = CausalConv(config.latent, dim, kernel=1)
        self.reach: int | None = None
        """The whole frame, by attention."""

    def forward(self, video: Float[Tensor, "t b 3 h w"], stream: Stream | None = None) -> Float[Tensor, "t b d h2 w2"]:
        """Encode a video (time first) of legal size to latents, frame by frame."""
        x: Tensor = self.stem(video)
        for layer in self.layers:
            x = layer(x)
        z: Tensor = self.to_latent(self.project(self.head(F.silu(self.norm(x)))))
        return z


class VQGANDecoder(nn.Module):
    """The encoder, backwards; every block of the first level has attention after it."""

    def __init__(self, config: VQGANConfig, dim: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers][::-1]
        self.from_codes = CausalConv(dim, config.latent, kernel=1)
        self.project = CausalConv(config.latent, config.latent, kernel=1)
        self.stem = CausalConv(config.latent, widths[0])
        layers: list[nn.Module] = [
            _block(widths[0], widths[0]),
            FrameAttention(widths[0]),
            _block(widths[0], widths[0]),
        ]
        for i, width in enumerate(widths):
            layers += _level(widths[max(0, i - 1)], width, config.decoder_depth, attention=i == 0)
            layers += [Double(width)] if i < len(widths) - 1 else []
        self.layers = nn.ModuleList(layers)
        self.norm = Norm("frame", widths[-1])
        self.to_pixels = CausalConv(widths[-1], 3)
        self.reach: int | None = None
        """The whole frame, by attention."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t b 3 h2 w2"]:
        """Decode codes (time first) to video, frame by frame."""
        x: Tensor = self.stem(self.project(self.from_codes(codes)))
        for layer in self.layers:
            x = layer(x)
        video: Tensor = self.to_pixels(F.silu(self.norm(x)))
        return video


class Halve(nn.Module):
    """A 3x3 convolution of stride 2; padded with zeros at the right and bottom alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b c h2 w2"]:
        """Halve an even height and width."""
        y: Tensor = self.conv(F.pad(x.flatten(0, 1), (0, 1, 0, 1)))
        return y.unflatten(0, x.shape[:2])


class Double(nn.Module):
    """Nearest upsampling by two, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b c h2 w2"]:
        """Double the height and width."""
        y: Tensor = self.conv(F.interpolate(x.flatten(0, 1), scale_factor=2.0, mode="nearest"))
        return y.unflatten(0, x.shape[:2])


def _block(channels: int, out: int) -> ResidualBlock:
    return ResidualBlock(channels, out, Window(), norm="frame")


def _level(channels: int, out: int, depth: int, *, attention: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for j in range(depth):
        layers.append(_block(channels if j == 0 else out, out))
        if attention:
            layers.append(FrameAttention(out))
    return layers
