"""The tokenizer: an encoder, a scalar quantizer and a decoder."""

from smalti.tokenizer.config import AnyTokenizerConfig, TokenizerConfig, VQGANConfig
from smalti.tokenizer.inflate import inflate
from smalti.tokenizer.tiles import decode_tiles, encode_tiles
from smalti.tokenizer.tokenizer import Reconstruction, Tokenizer

load = Tokenizer.from_pretrained

__all__ = [
    "AnyTokenizerConfig",
    "Reconstruction",
    "Tokenizer",
    "TokenizerConfig",
    "VQGANConfig",
    "decode_tiles",
    "encode_tiles",
    "inflate",
    "load",
]
