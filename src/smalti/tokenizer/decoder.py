"""Codes to pixels (MAGVIT-v2, arXiv 2310.05737, figure 3 right)."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.blocks import ResidualBlock, from_patches
from smalti.nn.causal import CausalConv, CausalUpsample
from smalti.nn.norm import AdaptiveNorm, Norm
from smalti.nn.stream import Stream
from smalti.tokenizer.config import TokenizerConfig


class Decoder(nn.Module):
    """Convolution; blocks; for each level an adaptive norm from the codes, residual blocks, depth-to-space; head."""

    def __init__(self, config: TokenizerConfig, dim: int) -> None:
        super().__init__()
        self.patch = config.patch
        widths = [config.width * m for m in config.multipliers][::-1]
        strides = config.strides[::-1]
        causal = {"time": config.time, "past": config.past, "start": config.start}
        self.from_codes = CausalConv(dim, widths[0], **causal)  # type: ignore[arg-type]
        layers: list[nn.Module] = [
            ResidualBlock(widths[0], widths[0], norm=config.norm, **causal)  # type: ignore[arg-type]
            for _ in range(config.middle)
        ]
        reach, step = 1.0 + 2 * config.middle, 1.0
        for i, width in enumerate(widths):
            before = widths[max(0, i - 1)] if config.decoder_depth else width
            if config.adaptive:
                layers.append(AdaptiveNorm(config.norm, before, dim, math.prod(t for t, _ in strides[:i])))
            for j in range(config.decoder_depth):
                layers.append(ResidualBlock(before if j == 0 else width, width, norm=config.norm, **causal))  # type: ignore[arg-type]
            reach += 2 * config.decoder_depth * step
            if i < len(strides):
                out = width if config.decoder_depth else widths[i + 1]
                layers.append(CausalUpsample(width, out, strides=strides[i], **causal))  # type: ignore[arg-type]
                reach, step = reach + step, step / strides[i][1]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.norm, widths[-1])
        self.to_pixels = CausalConv(widths[-1], 3 * config.patch**2, kernel=config.head_kernel, **causal)  # type: ignore[arg-type]
        self.reach = math.ceil(reach + step * (config.head_kernel // 2))
        """Latents on each side that a pixel sees beyond its own."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, where the adaptive weight of the adversary compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Codes (time first), or the next chunk of them, to video."""
        x: Tensor = self.from_codes(codes, stream)
        for layer in self.layers:
            x = layer(x, codes) if isinstance(layer, AdaptiveNorm) else layer(x, stream)
        return from_patches(self.to_pixels(F.silu(self.norm(x)), stream), self.patch)
