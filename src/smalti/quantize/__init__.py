"""Quantizers: LFQ, FSQ and DSQ, which are scalar, and tables of codes; and the exact entropies of their codes."""

from typing import Annotated

from pydantic import Field

from smalti.quantize.codebook import Codebook, CodebookConfig, Lookup
from smalti.quantize.dsq import DSQ, DSQConfig
from smalti.quantize.quantizer import (
    FSQ,
    LFQ,
    FSQConfig,
    LFQConfig,
    Quantized,
    Quantizer,
    ScalarQuantizer,
    ScalarQuantizerConfig,
)

QuantizerConfig = Annotated[LFQConfig | FSQConfig | DSQConfig | CodebookConfig, Field(discriminator="kind")]

__all__ = [
    "DSQ",
    "FSQ",
    "LFQ",
    "Codebook",
    "CodebookConfig",
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
