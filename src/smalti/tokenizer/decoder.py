"""Codes to pixels (MAGVIT-v2, arXiv 2310.05737, figure 3 right)."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.activation import silu
from smalti.nn.blocks import ResidualBlock, from_patches
from smalti.nn.causal import CausalConv, CausalUpsample, Window
from smalti.nn.norm import AdaptiveNorm, Norm
from smalti.nn.stream import Stream
from smalti.tokenizer.config import TokenizerConfig


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
        head = window._replace(time=config.head_time or config.time)
        self.to_pixels = CausalConv(have, 3 * config.patch**2, head, kernel=config.head_kernel, bias=bias)
        self.reach: int | None = math.ceil(reach + step * (config.head_kernel // 2))
        """Latents on each side that a pixel sees beyond its own."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, where the adaptive weight of the adversary compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Codes (time first), or the next chunk of them, to video."""
        x: Tensor = self.from_codes(codes, stream)
        source = codes if self.adaptive_source == "codes" else x
        for layer in self.layers:
            x = layer(x, source) if isinstance(layer, AdaptiveNorm) else layer(x, stream)
        if self.norm is not None:
            x = silu(self.norm(x))
        video = from_patches(self.to_pixels(x, stream), self.patch)
        if self.grey and (stream is None or stream.get(self) is None):
            video = video[self.grey :]
            if stream is not None:
                stream.put(self, video.new_empty(0))
        return video
