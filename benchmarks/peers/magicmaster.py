"""MagicMaster's own models and training step (github.com/ZhichengHuang/MagicMaster), from a checkout of it.

Its model files and its algorithm run as they are, built from its own config files; its package cannot be imported, so
what surrounds them is ours (`standins`). Nothing of it is copied here.
"""

import importlib
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers import standins
from smalti.families.links import assemble
from smalti.families.magicmaster import recognise_generator
from smalti.losses.perceptual import LPIPS
from smalti.tokenizer import Tokenizer

VARIABLE = "SMALTI_MAGICMASTER"
HOW = f"git clone https://github.com/ZhichengHuang/MagicMaster somewhere, and set {VARIABLE} to that folder"
PACKAGES = (
    "",
    ".models",
    *(f".models.{part}" for part in ("algorithms", "autoencoders", "discriminators", "generator")),
)
FILES = (
    "algorithms.average_model",
    "algorithms.magvit_vq_gan",
    "autoencoders.magvit_v2",
    "autoencoders.magvit_v2_2d",
    "discriminators.stylegan2_discriminator",
    "generator.magvit_generator",
    "losses.vqperceptual",
    "quantizers.finite_scalar_quantization",
)


class Magicmaster(NamedTuple):
    """Their model with all that their training step moves."""

    model: Any
    """Their MagVitVQGAN: `generator.module`, `discriminator`, `perceptual_loss`, `generator_ema`, `train_step`."""
    players: Mapping[str, standins.OptimWrapper]

    @property
    def generator(self) -> Any:
        """Their tokenizer."""
        return self.model.generator.module

    def step(self, video: Tensor) -> Mapping[str, Tensor]:
        """Their training step on `b 3 t h w`; what it would log."""
        inputs = video.squeeze(2) if video.shape[2] == 1 else video
        return self.model.train_step({"inputs": inputs, "data_samples": None}, self.players)


def find() -> Path | None:
    """The checkout that the environment names, or None."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder and (Path(folder) / "magicmaster" / "models").is_dir() else None


def build(folder: Path, config: str, *, width: int, size: int, index: Tensor) -> Magicmaster:
    """The model of one of its config files, made `width` wide for pictures of `size`; LPIPS without dropout.

    It looks at frame `index[i]` of clip i where it would draw one at random, so that others can look at the same.
    """
    modules, registry = _load(folder)
    algorithm = modules["algorithms.magvit_vq_gan"]
    pick = algorithm.pick_video_frame
    algorithm.pick_video_frame = lambda video, drawn: pick(video, index[:, None].to(video.device))
    settings = runpy.run_path(str(folder / "configs" / config))["model"]
    modules["losses.vqperceptual"].LPIPS.load_from_pretrained = lambda self: None
    settings["data_preprocessor"] = standins.AsIs()
    settings["discriminator"]["in_size"] = size
    network = settings["generator"]
    network["quantizer"]["dim"] = 4 * width
    for half in ("encoder", "decoder"):
        network[half] |= {"image_size": size, "init_dim": width}
    model = registry.build(settings)
    model.perceptual_loss.eval()
    for name, value in model.perceptual_loss.named_parameters():
        if name.startswith("lin"):
            value.abs_()
    model.generator = standins.Wrapped(model.generator)
    rates = {"generator": (model.generator, 5.4e-5), "discriminator": (model.discriminator, 4.32e-4)}
    players = {
        name: standins.OptimWrapper(torch.optim.Adam(module.parameters(), lr=rate, betas=(0.5, 0.9)))
        for name, (module, rate) in rates.items()
    }
    return Magicmaster(model, players)


def _load(folder: Path) -> tuple[dict[str, ModuleType], standins.Registry]:
    """Their files, among stand-ins that are gone again afterwards."""
    registry = standins.Registry()
    around = standins.modules(registry)
    for name in (*PACKAGES, ".models.losses", ".models.quantizers"):
        package = ModuleType(f"magicmaster{name}")
        package.__path__ = [str(folder / "magicmaster" / name.lstrip(".").replace(".", "/"))]
        around[f"magicmaster{name}"] = package
    before = dict(sys.modules)
    sys.modules.update(around)
    try:
        return {name: importlib.import_module(f"magicmaster.models.{name}") for name in FILES}, registry
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("magicmaster", "mmengine", "mmcv", "torchvision", "requests", "tqdm"):
                del sys.modules[name]
        sys.modules.update(before)


def tokenizer_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` under their names (weights, or gradients) as a state of our tokenizer of the same function."""
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    found = recognise_generator(shapes, (8, 8, 8, 5, 5, 5), "MagicMaster")
    with torch.device("meta"):
        ours = Tokenizer(found.config)
    return assemble(ours, found.links, values, "MagicMaster")


def discriminator_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` under the names of their StyleGAN2 discriminator, under ours; its blur kernels are no weights there."""
    parts = {"conv1": "inner", "conv2": "down", "skip": "skip"}
    ends = {"final_conv.0": "last", "final_conv.1": "last", "final_linear.0": "hidden", "final_linear.1": "logit"}
    named = {}
    for name, value in values.items():
        first, second, third, *_ = name.split(".")
        if first != "convs":
            place = ends[f"{first}.{second}"]
        else:
            place = "first" if second == "0" else f"blocks.{int(second) - 1}.{parts[third]}"
        if not name.endswith("kernel"):
            named[f"{place}.{name.rpartition('.')[2]}"] = value
    return named


def lpips_of(loss: nn.Module) -> LPIPS:
    """Our LPIPS with the weights of theirs."""
    weights = {}
    for name, value in loss.named_parameters():
        part, _, rest = name.partition(".")
        weights[f"features.{rest.partition('.')[2]}" if part == "net" else f"{part}.weight"] = value
    return LPIPS("vgg", weights)
