"""Halton-MaskGIT's own transformer and sampler (github.com/valeoai/Halton-MaskGIT), from a checkout of it.

Their files run as they are; the trainer that their sampler asks for is ours, and its tokenizer decodes to nothing, so
that tokens alone are timed. Nothing of it is copied here.
"""

import importlib.util
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

VARIABLE = "SMALTI_HALTON"
HOW = (
    f"git clone https://github.com/valeoai/Halton-MaskGIT somewhere, pip install einops tqdm, and set {VARIABLE} to "
    f"that folder"
)


class Nothing(nn.Module):
    """In the place of their tokenizer."""

    def decode_code(self, code: Tensor) -> Tensor:
        """No picture."""
        return code.new_zeros(len(code), 3, 1, 1, dtype=torch.float32)


class Halton:
    """Their model of a shape, and their sampler over it."""

    def __init__(self, folder: Path, *, width: int, depth: int, heads: int, codes: int) -> None:
        self._folder = folder
        shape = {"input_size": 16, "hidden_dim": width, "depth": depth, "heads": heads, "mlp_dim": 4 * width}
        self.model: nn.Module = self._file("Network/transformer.py").Transformer(codebook_size=codes, **shape).eval()
        args = SimpleNamespace(mask_value=codes, codebook_size=codes, device="cpu")
        self._trainer = SimpleNamespace(vit=self.model, ae=Nothing(), args=args, input_size=16, autocast=nullcontext())

    def sample(self, sampler: Any, labels: Tensor) -> Tensor:
        """The codes of one sample for each label."""
        _, codes, _ = sampler(self._trainer, nb_sample=len(labels), labels=labels, verbose=False)
        return codes[-1]

    def sampler(self, steps: int, scale: float) -> Any:
        """Their sampler of 2025: cells far apart, guidance at every step."""
        return self._file("Sampler/halton_sampler.py").HaltonSampler(step=steps, w=scale)

    def _file(self, name: str) -> Any:
        spec = importlib.util.spec_from_file_location(Path(name).stem, self._folder / name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def find() -> Path | None:
    """The checkout, if there is one."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None
