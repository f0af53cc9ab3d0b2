"""The autoencoder of Open-MAGVIT2 (Luo et al. 2024, arXiv 2409.04410), for images and for video."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Blocks, Tuple
from smalti.nn.blocks import Norm, NormKind, ResidualBlock
from smalti.nn.causal import CausalConv, CausalUpsample, Stream, Window, silu
from smalti.quantize import LFQConfig, QuantizerConfig
from smalti.tokenizer.cnn import AutoencoderConfig

_EPS = 1e-6


class OpenMagvit2Config(AutoencoderConfig):
    """The autoencoder of Open-MAGVIT2: residual blocks without biases, and a decoder modulated by the statistics of the
    codes.

    Norms and statistics see a whole frame in an image model, a whole clip in a video model: the latter is not causal
    though its convolutions are, and neither is tile-exact.
    """

    kind: Literal["open-magvit2"] = "open-magvit2"
    quantizer: QuantizerConfig = LFQConfig()
    """Quantizer of the latents; its levels decide the codebook size."""
    width: int = Field(128, ge=1)
    """Channels of the first level."""
    multipliers: Tuple[int] = (1, 1, 2, 2, 4)
    """Channels of each level as multiples of `width`, from the pixels inwards; each further level halves the sides."""
    depth: Blocks = Field(4, ge=1)
    """Residual blocks per level and at the latent resolution, in both halves."""
    time_kernel: Literal[1, 3] = 1
    """Frames that a convolution sees: 1 for images, 3 for video."""
    time_strides: Tuple[Literal[1, 2]] = ()
    """Time stride between one level and the next, from the pixels inwards, one fewer than `multipliers`; an empty list
    is 1 throughout, as in an image model."""

    @model_validator(mode="after")
    def _fits_together(self) -> "OpenMagvit2Config":
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be at least 1 (found {list(self.multipliers)})")
        if self.time_strides and len(self.time_strides) != len(self.multipliers) - 1:
            raise ValueError(
                f"time_strides stand between levels: one fewer than multipliers ({len(self.multipliers) - 1}) or none"
                f" (found {len(self.time_strides)})"
            )
        if self.time_kernel == 1 and 2 in self.time_strides:
            raise ValueError("an image model (time_kernel 1) has no time strides")
        return self

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """(time, space) stride between one level and the next."""
        return tuple((t, 2) for t in self.time_strides or (1,) * (len(self.multipliers) - 1))

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of one token."""
        space = 2 ** len(self.strides)
        return 2 ** self.time_strides.count(2), space, space

    @property
    def norm(self) -> NormKind:
        """Extent of the norms and of the statistics."""
        return "frame" if self.time_kernel == 1 else "clip"

    @property
    def is_causal(self) -> bool:
        """Whether ids are independent of later frames: in an image model, which encodes each frame alone."""
        return self.time_kernel == 1

    @property
    def is_contiguous_on_cpu(self) -> bool:
        """Whether the memory of a CPU should hold the channels apart: in an image model, as in that of MAGVIT-v2."""
        return self.time_kernel == 1

    def networks(self, dim: int) -> "tuple[OpenMagvit2Encoder, OpenMagvit2Decoder]":
        """Build the encoder and the decoder around a quantizer of `dim` channels."""
        return OpenMagvit2Encoder(self, dim), OpenMagvit2Decoder(self, dim)


class OpenMagvit2Encoder(nn.Module):
    """Stem; for each level residual blocks and a strided convolution; more blocks; norm, SiLU, 1x1 convolution."""

    def __init__(self, config: OpenMagvit2Config, dim: int) -> None:
        super().__init__()
        widths, window = [config.width * m for m in config.multipliers], Window(config.time_kernel, start="zero")
        self.stem = CausalConv(3, widths[0], window, bias=False)
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += _level(config, widths[max(0, i - 1)], width, config.depth)
            if i < len(config.strides):
                layers.append(CausalConv(width, width, window, strides=config.strides[i]))
        layers += _level(config, widths[-1], widths[-1], config.depth)
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.norm, widths[-1])
        self.to_latent = CausalConv(widths[-1], dim, kernel=1)
        self.reach: int | None = None
        """The whole frame, by the norms."""

    def forward(self, video: Float[Tensor, "t b 3 h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b d h2 w2"]:
        """Encode a video (time first) of legal size to latents."""
        x: Tensor = self.stem(video, stream)
        for layer in self.layers:
            x = layer(x, stream)
        z: Tensor = self.to_latent(silu(self.norm(x)))
        return z


class OpenMagvit2Decoder(nn.Module):
    """Convolution; blocks; for each level a norm from the statistics of the codes, residual blocks, depth-to-space;
    norm, SiLU, convolution."""

    def __init__(self, config: OpenMagvit2Config, dim: int) -> None:
        super().__init__()
        widths, strides = [config.width * m for m in config.multipliers][::-1], config.strides[::-1]
        window = Window(config.time_kernel, start="zero")
        self.stem = CausalConv(dim, widths[0], window)
        layers: list[nn.Module] = [*_level(config, widths[0], widths[0], config.depth)]
        for i, width in enumerate(widths):
            before = widths[max(0, i - 1)]
            layers += [StatisticsNorm(config.norm, before, dim), *_level(config, before, width, config.depth)]
            if i < len(strides):
                layers.append(CausalUpsample(width, width, window, strides=strides[i], first_phase=True))
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.norm, widths[-1])
        self.to_pixels = CausalConv(widths[-1], 3, window)
        self.reach: int | None = None
        """The whole frame, by the norms."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes (time first) to video."""
        x: Tensor = self.stem(codes, stream)
        for layer in self.layers:
            x = layer(x, codes) if isinstance(layer, StatisticsNorm) else layer(x, stream)
        video: Tensor = self.to_pixels(silu(self.norm(x)), stream)
        return video


class StatisticsNorm(nn.Module):
    """A norm whose weight and bias come from the codes: norm(x) * gamma(std of the codes) + beta(mean of the codes).

    Mean and unbiased standard deviation are those of each channel of the codes over the frame (`kind="frame"`) or the
    clip. Where a single position leaves the deviation undefined, it is that of zero variance.
    """

    def __init__(self, kind: NormKind, channels: int, code_dim: int) -> None:
        super().__init__()
        self.dims = (0, 3, 4) if kind == "clip" else (3, 4)
        self.norm = Norm(kind, channels, affine=False)
        self.gamma = nn.Linear(code_dim, channels)
        self.beta = nn.Linear(code_dim, channels)

    def forward(
        self, x: Float[Tensor, "t b c h w"], codes: Float[Tensor, "t2 b d h2 w2"]
    ) -> Float[Tensor, "t b c h w"]:
        """`codes` are the decoder's input, at their own resolution."""
        count = codes[:, 0, 0].numel() if 0 in self.dims else codes[0, 0, 0].numel()
        variance, mean = torch.var_mean(codes, self.dims, correction=min(1, count - 1))
        scale: Tensor = self.gamma((variance + _EPS).sqrt())
        shift: Tensor = self.beta(mean)
        return torch.addcmul(shift[..., None, None], self.norm(x), scale[..., None, None])


def _level(config: OpenMagvit2Config, channels: int, out: int, depth: int) -> list[nn.Module]:
    window = Window(config.time_kernel, start="zero")
    return [ResidualBlock(channels if j == 0 else out, out, window, norm=config.norm, bias=False) for j in range(depth)]
