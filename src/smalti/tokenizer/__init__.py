"""The tokenizer: an encoder, a scalar quantizer and a decoder."""

from smalti.tokenizer.cnn import TokenizerConfig
from smalti.tokenizer.inflate import inflate
from smalti.tokenizer.tiles import decode_tiles, encode_tiles
from smalti.tokenizer.tokenizer import AnyTokenizerConfig, Reconstruction, Tokenizer
from smalti.tokenizer.vqgan import VQGANConfig

__all__ = [
    "AnyTokenizerConfig",
    "Reconstruction",
    "Tokenizer",
    "TokenizerConfig",
    "VQGANConfig",
    "decode_tiles",
    "encode_tiles",
    "inflate",
]
