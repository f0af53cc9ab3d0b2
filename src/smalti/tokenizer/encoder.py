"""Pixels to latents (MAGVIT-v2, arXiv 2310.05737, figure 3 left)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.activation import silu
from smalti.nn.blocks import ResidualBlock, to_patches
from smalti.nn.causal import CausalConv
from smalti.nn.norm import Norm
from smalti.nn.stream import Stream
from smalti.tokenizer.config import TokenizerConfig


class Encoder(nn.Module):
    """Stem; for each level residual blocks and a strided convolution; more blocks; norm, SiLU, 1x1 convolution.

    With `start="grey"`, grey frames (zeros) are put in front of a video and pass through all layers, so that 1 + s*n
    frames are n + 1 whole groups of s.
    """

    def __init__(self, config: TokenizerConfig, dim: int) -> None:
        super().__init__()
        self.patch, self.grey = config.patch, config.grey
        widths, window, bias = [config.width * m for m in config.multipliers], config.window, config.bias
        groups = config.groups
        stem = window._replace(time=config.stem_time or config.time)
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
        """A video (time first) of legal size, or the next chunk of one, to latents."""
        if self.grey and (stream is None or stream.get(self) is None):
            video = F.pad(video, (0, 0) * 4 + (self.grey, 0))
            if stream is not None:
                stream.put(self, video.new_empty(0))
        x: Tensor = self.stem(to_patches(video, self.patch), stream)
        for layer in self.layers:
            x = layer(x, stream)
        z: Tensor = self.to_latent(x if self.norm is None else silu(self.norm(x)))
        return z
