"""Scalar quantizers: LFQ, FSQ and DSQ, and the exact entropies of their codes."""

from typing import Annotated

from pydantic import Field

from smalti.quantize.codebook import Lookup
from smalti.quantize.dsq import DSQ, DSQConfig
from smalti.quantize.fsq import FSQ, FSQConfig
from smalti.quantize.lfq import LFQ, LFQConfig
from smalti.quantize.quantizer import Quantized, Quantizer
from smalti.quantize.scalar import ScalarQuantizer, ScalarQuantizerConfig

QuantizerConfig = Annotated[LFQConfig | FSQConfig | DSQConfig, Field(discriminator="kind")]

__all__ = [
    "DSQ",
    "FSQ",
    "LFQ",
    "DSQConfig",
    "FSQConfig",
    "LFQConfig",
    "Lookup",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ScalarQuantizer",
    "ScalarQuantizerConfig",
]
