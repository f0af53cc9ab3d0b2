"""smalti: images and video to discrete tokens and back.

    tokenizer = smalti.load("runs/mine/tokenizer")
    ids = tokenizer.encode(video)          # video: b 3 t h w in [-1, 1]
    video = tokenizer.decode(ids)

Names are imported when they are first used: `import smalti` alone costs milliseconds and brings no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smalti.version import __version__ as __version__

if TYPE_CHECKING:
    from smalti.app.compare import compare
    from smalti.app.serve import serve
    from smalti.families import load
    from smalti.nn.causal import Stream
    from smalti.pipeline.compress import compress, decompress
    from smalti.pipeline.decode import decode
    from smalti.pipeline.evaluate import evaluate
    from smalti.pipeline.export import export
    from smalti.pipeline.generate import generate
    from smalti.pipeline.reconstruct import reconstruct
    from smalti.pipeline.tokenize import tokenize
    from smalti.pipeline.train import train
    from smalti.quantize import CodebookConfig, DSQConfig, FSQConfig, LFQConfig
    from smalti.tokenizer import Tokenizer, TokenizerConfig, VQGANConfig
    from smalti.video import batch

_HOMES = {
    "CodebookConfig": "smalti.quantize",
    "DSQConfig": "smalti.quantize",
    "FSQConfig": "smalti.quantize",
    "LFQConfig": "smalti.quantize",
    "Stream": "smalti.nn.causal",
    "Tokenizer": "smalti.tokenizer",
    "TokenizerConfig": "smalti.tokenizer",
    "VQGANConfig": "smalti.tokenizer",
    "batch": "smalti.video",
    "compare": "smalti.app.compare",
    "compress": "smalti.pipeline.compress",
    "decode": "smalti.pipeline.decode",
    "decompress": "smalti.pipeline.compress",
    "evaluate": "smalti.pipeline.evaluate",
    "export": "smalti.pipeline.export",
    "generate": "smalti.pipeline.generate",
    "load": "smalti.families",
    "reconstruct": "smalti.pipeline.reconstruct",
    "serve": "smalti.app.serve",
    "tokenize": "smalti.pipeline.tokenize",
    "train": "smalti.pipeline.train",
}

__all__ = [
    "CodebookConfig",
    "DSQConfig",
    "FSQConfig",
    "LFQConfig",
    "Stream",
    "Tokenizer",
    "TokenizerConfig",
    "VQGANConfig",
    "batch",
    "compare",
    "compress",
    "decode",
    "decompress",
    "evaluate",
    "export",
    "generate",
    "load",
    "reconstruct",
    "serve",
    "tokenize",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smalti' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
