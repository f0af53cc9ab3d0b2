"""What a tokenizer is: its quantizer, its widths and strides, and the three choices that decide exactness."""

import math
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from smalti.config import Config, Tuple
from smalti.nn.causal import PastKernel, Start
from smalti.nn.norm import NormKind
from smalti.quantize import FSQConfig, QuantizerConfig

Stride = Annotated[tuple[int, int], Strict(False)]
"""(time, space)."""


class TokenizerConfig(Config):
    """A causal CNN autoencoder around a scalar quantizer; `time=1` makes it an image model of the same code."""

    kind: Literal["causal-cnn"] = "causal-cnn"
    quantizer: QuantizerConfig = FSQConfig()
    width: int = Field(64, ge=1)
    """Channels of the first level."""
    multipliers: Tuple[int] = (1, 2, 4)
    """Channels of each level, in widths, from the pixels inwards."""
    strides: Tuple[Stride] = ((1, 2), (1, 2))
    """(time, space) stride between one level and the next; one fewer than levels."""
    depth: int = Field(2, ge=0)
    """Residual blocks per level in the encoder."""
    decoder_depth: int = Field(3, ge=0)
    """Residual blocks per level in the decoder, which has the harder part."""
    middle: int = Field(2, ge=0)
    """More residual blocks at the latent resolution, in each half."""
    patch: int = Field(1, ge=1)
    """Side of the squares of pixels that the stem turns into channels."""
    stem_kernel: int = Field(3, ge=1)
    """Side of the first convolution (MAGVIT-v2: 3; MagicMaster: 7)."""
    head_kernel: int = Field(3, ge=1)
    """Side of the last convolution (MAGVIT-v2: 3; MagicMaster: 1)."""
    norm: NormKind = "position"
    adaptive: bool = True
    """Norms at the head of each decoder level modulated by the codes."""
    time: int = Field(1, ge=1)
    """Frames that a causal convolution sees: 1 for images, 3 for video."""
    past: PastKernel = "point"
    """Kernels of the past frames: 1x1, or as large as that of the current frame."""
    start: Start = "repeat"
    """What stands before the first frame: itself, or zeros."""

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
        if self.stem_kernel % 2 == 0 or self.head_kernel % 2 == 0:
            raise ValueError("stem_kernel and head_kernel must be odd")
        return self

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, rows and columns per token."""
        space = self.patch * math.prod(s for _, s in self.strides)
        return math.prod(t for t, _ in self.strides), space, space
