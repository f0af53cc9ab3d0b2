"""What a tokenizer is: its quantizer, its widths and strides, and the choices that decide exactness."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Strict, model_validator

from smalti.config import Config, Tuple
from smalti.nn.causal import PastKernel, Start, Window
from smalti.nn.norm import AdaptiveKind, NormKind
from smalti.quantize import FSQConfig, QuantizerConfig

if TYPE_CHECKING:
    from smalti.tokenizer.decoder import Decoder
    from smalti.tokenizer.encoder import Encoder
    from smalti.tokenizer.vqgan import VQGANDecoder, VQGANEncoder

Stride = Annotated[tuple[int, int], Strict(False)]
"""(time, space)."""
Depth = int | Tuple[int]
"""Residual blocks per level: one number for all levels, or one for each, from the pixels inwards."""


class TokenizerConfig(Config):
    """A causal CNN autoencoder around a scalar quantizer; `time=1` makes it an image model of the same code."""

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
    middle: int = Field(2, ge=0)
    """Additional residual blocks at the latent resolution, in the encoder and in the decoder."""
    patch: int = Field(1, ge=1)
    """Side of the pixel patches that are folded into channels before the first convolution."""
    stem_kernel: int = Field(3, ge=1)
    """Kernel size of the first convolution in space (MAGVIT-v2: 3; MagicMaster: 7)."""
    stem_time: int | None = Field(None, ge=1)
    """Kernel size of the first convolution in time; null is `time` (MagicMaster: 7)."""
    code_kernel: int = Field(3, ge=1)
    """Kernel size of the decoder's first convolution, in space and time; 1 is pointwise (MagicMaster)."""
    head_kernel: int = Field(3, ge=1)
    """Kernel size of the last convolution in space (MAGVIT-v2: 3; MagicMaster: 1)."""
    head_time: int | None = Field(None, ge=1)
    """Kernel size of the last convolution in time; null is `time` (MagicMaster: 1)."""
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
    time: int = Field(1, ge=1)
    """Kernel size of the causal convolutions in time: 1 for images, 3 for video."""
    past: PastKernel = "point"
    """Kernel of the past frames in space: 1x1 (`point`), or as large as that of the current frame (`full`)."""
    start: Start = "repeat"
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
        if any(t > self.time for t, _ in self.strides):
            raise ValueError(f"a time stride cannot exceed time, the frames that a convolution sees ({self.time})")
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
        """What the convolutions see of time."""
        return Window(self.time, self.past, self.start)

    @property
    def grey(self) -> int:
        """Grey frames that stand in front of a video: as many as its first group lacks."""
        return self.total_strides[0] - 1 if self.start == "grey" else 0

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, rows and columns per token."""
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
    def rows_on_cpu(self) -> bool:
        """Whether rows, and not channels, should lie together in the memory of a CPU: the gradient of a 2-D
        convolution's weights is then 1.2 times as fast (benchmarks/README.md). Norms per position put the channels
        together again, and 3-D convolutions want them so."""
        return self.time == 1 and self.norm != "position"

    def networks(self, dim: int) -> "tuple[Encoder, Decoder]":
        """The encoder and the decoder around a quantizer of `dim` channels."""
        from smalti.tokenizer.decoder import Decoder
        from smalti.tokenizer.encoder import Encoder

        return Encoder(self, dim), Decoder(self, dim)


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
    def time(self) -> int:
        """Frames that a convolution sees: one."""
        return 1

    @property
    def strides(self) -> tuple[Stride, ...]:
        """(time, space) stride between one level and the next."""
        return ((1, 2),) * (len(self.multipliers) - 1)

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, rows and columns per token."""
        space = 2 ** len(self.strides)
        return 1, space, space

    @property
    def is_causal(self) -> bool:
        """Frames never meet."""
        return True

    @property
    def is_tile_exact(self) -> bool:
        """Attention sees the whole frame."""
        return False

    @property
    def rows_on_cpu(self) -> bool:
        """Whether rows, and not channels, should lie together in the memory of a CPU: its attention wants channels."""
        return False

    def networks(self, dim: int) -> "tuple[VQGANEncoder, VQGANDecoder]":
        """The encoder and the decoder around a quantizer of `dim` channels."""
        from smalti.tokenizer.vqgan import VQGANDecoder, VQGANEncoder

        return VQGANEncoder(self, dim), VQGANDecoder(self, dim)


AnyTokenizerConfig = Annotated[TokenizerConfig | VQGANConfig, Field(discriminator="kind")]
