"""The tokenizer: an encoder, a scalar quantizer and a decoder."""

from smalti.tokenizer.cnn import TokenizerConfig
from smalti.tokenizer.conditional import ConditionalConfig
from smalti.tokenizer.cosmos import CosmosConfig
from smalti.tokenizer.inflate import inflate, start_conditional, with_quarters
from smalti.tokenizer.open_magvit2 import OpenMagvit2Config
from smalti.tokenizer.tokenizer import AnyTokenizerConfig, Reconstruction, Tokenizer
from smalti.tokenizer.vidtok import VidTokConfig
from smalti.tokenizer.vqgan import VQGANConfig

__all__ = [
    "AnyTokenizerConfig",
    "ConditionalConfig",
    "CosmosConfig",
    "OpenMagvit2Config",
    "Reconstruction",
    "Tokenizer",
    "TokenizerConfig",
    "VQGANConfig",
    "VidTokConfig",
    "inflate",
    "start_conditional",
    "with_quarters",
]
