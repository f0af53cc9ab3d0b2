"""Pixels to latents (MAGVIT-v2, arXiv 2310.05737, figure 3 left)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.blocks import ResidualBlock, to_patches
from smalti.nn.causal import CausalConv
from smalti.nn.norm import Norm
from smalti.nn.stream import Stream
from smalti.tokenizer.config import TokenizerConfig


class Encoder(nn.Module):
    """Stem; for each level residual blocks and a strided convolution; more blocks; norm, SiLU, 1x1 convolution."""

    def __init__(self, config: TokenizerConfig, dim: int) -> None:
        super().__init__()
        self.patch = config.patch
        widths = [config.width * m for m in config.multipliers]
        causal = {"time": config.time, "past": config.past, "start": config.start}
        self.stem = CausalConv(3 * config.patch**2, widths[0], kernel=config.stem_kernel, **causal)  # type: ignore[arg-type]
        layers: list[nn.Module] = []
        reach, step = config.patch * (config.stem_kernel // 2), config.patch
        for i, width in enumerate(widths):
            before = widths[max(0, i - 1)]
            for j in range(config.depth):
                layers.append(ResidualBlock(before if j == 0 else width, width, norm=config.norm, **causal))  # type: ignore[arg-type]
            reach += 2 * config.depth * step
            if i < len(config.strides):
                out = width if config.depth else widths[i + 1]
                layers.append(CausalConv(width, out, strides=config.strides[i], **causal))  # type: ignore[arg-type]
                reach, step = reach + step, step * config.strides[i][1]
        layers += [ResidualBlock(widths[-1], widths[-1], norm=config.norm, **causal) for _ in range(config.middle)]  # type: ignore[arg-type]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.norm, widths[-1])
        self.to_latent = CausalConv(widths[-1], dim, kernel=1)
        self.reach = reach + 2 * config.middle * step
        """Pixels on each side that a latent sees beyond its own square."""

    def forward(self, video: Float[Tensor, "t b 3 h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b d h2 w2"]:
        """A video (time first) of legal size, or the next chunk of one, to latents."""
        x: Tensor = self.stem(to_patches(video, self.patch), stream)
        for layer in self.layers:
            x = layer(x, stream)
        z: Tensor = self.to_latent(F.silu(self.norm(x)))
        return z
