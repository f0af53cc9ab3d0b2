"""Weight decay is on the weights of convolutions and linear layers, and on nothing else that is trained."""

import pytest
import torch
from torch import nn

from smalti.discriminators import Magvit2DConfig, Magvit3DConfig, PatchConfig, StyleGAN2Config
from smalti.generation import AutoregressiveConfig, MaskedConfig
from smalti.quantize import DSQConfig, LFQConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig, VQGANConfig
from smalti.training.config import OptimizerConfig
from smalti.training.optimizer import make_optimizer

SMALL = {"grid": (2, 4, 4), "width": 16, "depth": 2, "heads": 2, "classes": 3}
MODULES = {
    "cnn": lambda: Tokenizer(TokenizerConfig(width=8, quantizer=DSQConfig(levels=(8, 5, 3)), time_kernel=3)),
    "vqgan": lambda: Tokenizer(VQGANConfig(width=32, multipliers=(1, 2), latent=16, quantizer=LFQConfig(bits=4))),
    "masked": lambda: MaskedConfig(levels=(2,) * 6, tasks=("generation", "prediction"), hints=True, **SMALL).build(),
    "autoregressive": lambda: AutoregressiveConfig(levels=(2,) * 6, **SMALL).build(),
    "patch": lambda: PatchConfig(width=8).build(),
    "stylegan2": lambda: StyleGAN2Config(size=16, width=8).build(),
    "magvit2d": lambda: Magvit2DConfig(width=8, multipliers=(2,)).build(),
    "magvit3d": lambda: Magvit3DConfig(width=8, multipliers=(2,)).build(),
}
PLAIN = (
    ".bias",
    ".start",
    ".widths",
    ".scale_in",
    ".scale_out",
    ".cells",
    ".hint",
    "tables",
    "tasks",
    "labels",
    "biases",
)
"""Parts of the names of what is never decayed, beside norms."""


@pytest.mark.parametrize("name", MODULES)
def test_a_step_without_gradient_shrinks_kernels_and_moves_nothing_else(name):
    """With a zero gradient, AdamW multiplies what is decayed by 1 - lr * weight_decay and leaves the rest."""
    module = MODULES[name]()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(1 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(i)))
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    optimizer = make_optimizer(module, OptimizerConfig(lr=0.5, weight_decay=0.25))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    owners = dict(module.named_modules())
    shrunk = 0
    for key, parameter in module.named_parameters():
        owner = owners[key.rpartition(".")[0]]
        kernel = parameter.dim() > 1 and not isinstance(owner, nn.Embedding) and not any(p in f".{key}" for p in PLAIN)
        expected = before[key] * (1 - 0.5 * 0.25) if kernel else before[key]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0, msg=key)
        shrunk += kernel
    assert shrunk > 3


@pytest.mark.parametrize(("name", "parts"), [("cnn", ["quantizer.widths"]), ("masked", ["cells", "tables", "labels"])])
def test_the_parts_that_were_decayed_by_their_rank_are_there(name, parts):
    """Widths of DSQ, learned positions and embeddings have two or more axes, as kernels have."""
    named = dict(MODULES[name]().named_parameters())
    for part in parts:
        assert any(part in key and p.dim() > 1 for key, p in named.items()), part
