"""The training in a file of MagicMaster's trainer: live weights, discriminator, and the moments of both optimizers.

The file holds what torch's Adam saves: one entry a parameter, numbered in the order of the module's parameters, which
is that of its state; parameters that never had a gradient have none. A link is a reordering, so the moments of a
weight go where the weight goes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.discriminators import Discriminator, PatchConfig, StyleGAN2Config
from smalti.errors import ConfigError, IntegrityError
from smalti.families.checkpoint import family_of, source_at
from smalti.families.family import Checkpoint
from smalti.families.links import ForeignModel, assemble
from smalti.families.magicmaster import MAGICMASTER
from smalti.families.names import find_tokenizer, split_options
from smalti.families.source import read_source
from smalti.tokenizer import Tokenizer

_MOMENTS = ("exp_avg", "exp_avg_sq")
_DISCRIMINATOR = ("discriminator.module.", "discriminator.")
_STYLEGAN2 = (
    (r"first\.weight_orig", r"convs.0.0.conv.weight_orig"),
    (r"first\.bias", r"convs.0.1.bias"),
    (r"last\.weight_orig", r"final_conv.0.conv.weight_orig"),
    (r"last\.bias", r"final_conv.1.bias"),
    (r"hidden\.weight_orig", r"final_linear.0.linear.weight_orig"),
    (r"hidden\.bias", r"final_linear.0.bias"),
    (r"logit\.(weight_orig)", r"final_linear.1.linear.\1"),
    (r"logit\.bias", r"final_linear.1.bias"),
)
"""Names of ours -> theirs, outside the blocks; their activations own the biases."""
_BLOCK = {
    "inner.weight_orig": "conv1.0.conv.weight_orig",
    "inner.bias": "conv1.1.bias",
    "down.weight_orig": "conv2.1.conv.weight_orig",
    "down.bias": "conv2.2.bias",
    "skip.weight_orig": "skip.1.conv.weight_orig",
}


class ForeignTraining(NamedTuple):
    """The training in a file, under our names; moments as `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""

    live: Mapping[str, Tensor]
    """Live weights of the tokenizer."""
    moments: Mapping[str, Tensor]
    discriminator: Mapping[str, Tensor]
    """State of the discriminator; empty where the file has none, or none was asked for."""
    discriminator_moments: Mapping[str, Tensor]
    lacking: Sequence[str]
    """Parts that are not in the file, and start anew."""


def read_training(name: str, tokenizer: Tokenizer, discriminator: Discriminator | None) -> ForeignTraining:
    """Read the training of a checkpoint that `tokenizer` was imported from, `discriminator` being ours of the run.

    Raises ConfigError for another family, and where the file's discriminator is another network; IntegrityError for a
    damaged file, or one without the live weights.
    """
    bare, options = split_options(name)
    checkpoint = read_source(source_at(find_tokenizer(bare)))
    if family_of(checkpoint) is not MAGICMASTER:
        raise ConfigError(f"init_training: {name} is not of MagicMaster's trainer, the one whose training is read")
    model = MAGICMASTER.read(checkpoint, options.replace({"weights": "live"}))
    if model.copy != "live":
        raise IntegrityError(f"init_training: {name} has one copy of its weights, and no training; set it to false")
    lacking: list[str] = []
    sources = {link.source: model.stored(link.source) for link in model.links}
    held = {source: checkpoint.tensors[stored] for source, stored in sources.items() if stored in checkpoint.tensors}
    live = assemble(tokenizer, model.links, held, checkpoint.where)
    moments = _tokenizer_moments(checkpoint, model, tokenizer, held)
    if not moments:
        lacking.append("moments of the tokenizer's optimizer")
    state, others = dict[str, Tensor](), dict[str, Tensor]()
    if discriminator is not None:
        state, others = _discriminator_state(checkpoint, discriminator)
        lacking += [] if state else ["discriminator"]
        lacking += [] if others else ["moments of the discriminator's optimizer"]
    return ForeignTraining(live, moments, state, others, lacking)


def _tokenizer_moments(
    checkpoint: Checkpoint, model: ForeignModel, tokenizer: Tokenizer, held: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the moments by our names; none where a parameter that is run lacks them."""
    names = [name for name in checkpoint.tensors if name.startswith(model.prefix)]
    entries = _entries(checkpoint, "generator", [name.removeprefix(model.prefix) for name in names])
    if not all(source in entries and entries[source]["exp_avg"].shape == held[source].shape for source in held):
        return {}
    moments = {
        f"{kind}/{name}": value
        for kind in _MOMENTS
        for name, value in assemble(
            tokenizer, model.links, {source: entries[source][kind] for source in held}, checkpoint.where
        ).items()
    }
    step = torch.as_tensor(next(iter(entries.values()))["step"], dtype=torch.float32)
    return moments | {f"step/{name}": step.clone() for name, _ in tokenizer.named_parameters()}


def _discriminator_state(
    checkpoint: Checkpoint, discriminator: Discriminator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return state and moments of the discriminator by our names. Raises ConfigError where it is another network."""
    prefix = next((p for p in _DISCRIMINATOR if any(name.startswith(p) for name in checkpoint.tensors)), None)
    if prefix is None:
        return {}, {}
    theirs = {n.removeprefix(prefix): tensor for n, tensor in checkpoint.tensors.items() if n.startswith(prefix)}
    kernels = {name for name in theirs if name.endswith(".kernel")}  # constants of its blurs
    names = _names(discriminator)
    shapes = {names[name]: tensor.shape for name, tensor in discriminator.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in theirs.items() if name not in kernels}:
        raise ConfigError(
            f"gan.discriminator: that of {checkpoint.where} has other tensors; take the recipe that it was trained by"
        )
    buffers = {names[name] for name, _ in discriminator.named_buffers()} | kernels
    entries = _entries(checkpoint, "discriminator", [name for name in theirs if name not in buffers])
    state = {name: theirs[names[name]] for name in discriminator.state_dict()}
    parameters = [name for name, _ in discriminator.named_parameters()]
    if not all(names[name] in entries for name in parameters):
        return state, {}
    return state, {
        f"{kind}/{name}": torch.as_tensor(entries[names[name]][kind], dtype=torch.float32)
        for kind in (*_MOMENTS, "step")
        for name in parameters
    }


def _entries(checkpoint: Checkpoint, part: str, parameters: Sequence[str]) -> dict[str, Any]:
    """Return the entries of an optimizer by the names of the parameters, those that it has."""
    tree = checkpoint.tree if isinstance(checkpoint.tree, dict) else {}
    optimizer = tree.get("optimizer")
    own = optimizer.get(part) if isinstance(optimizer, dict) else None
    state = own.get("state") if isinstance(own, dict) else None
    if not isinstance(state, dict):
        return {}
    numbered = {name: state.get(number) for number, name in enumerate(parameters)}
    return {n: s for n, s in numbered.items() if isinstance(s, dict) and {"step", *_MOMENTS} <= s.keys()}


def _names(discriminator: Discriminator) -> dict[str, str]:
    """Return their name of each tensor of ours. Raises ConfigError for a kind that MagicMaster does not have."""
    config = getattr(discriminator, "config", None)
    if isinstance(config, StyleGAN2Config):
        return {name: _stylegan2_name(name) for name in discriminator.state_dict()}
    if isinstance(config, PatchConfig) and config.norm == "batch":
        return {name: _patch_name(name, config.stages) for name in discriminator.state_dict()}
    raise ConfigError("gan.discriminator: MagicMaster has stylegan2, and patch with norm batch")


def _stylegan2_name(name: str) -> str:
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        return f"convs.{int(match[1]) + 1}.{_BLOCK[match[2]]}"
    return next(match.expand(theirs) for ours, theirs in _STYLEGAN2 if (match := re.fullmatch(ours, name)))


def _patch_name(name: str, stages: int) -> str:
    """Name a tensor of the patch discriminator: our layers are convolution, (norm,) activation, one after the other."""
    _, number, part = name.split(".")
    stage, place = divmod(int(number) - 2, 3)
    if int(number) == 0:
        return f"model.0.conv.{part}"
    if stage == stages:
        return f"model.{stages + 1}.{part}"
    return f"model.{stage + 1}.{'conv' if place == 0 else 'bn'}.{part}"
