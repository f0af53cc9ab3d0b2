"""All that a run owns and a checkpoint holds: both players, averaged weights, optimizers, the step."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from smalti.discriminators import Discriminator
from smalti.errors import IntegrityError
from smalti.files import load_tensors, new_folder, save_tensors
from smalti.losses import Anchors
from smalti.losses.perceptual import LPIPS
from smalti.tokenizer import Tokenizer
from smalti.tokenizer import load as load_tokenizer
from smalti.training.checkpoints import checkpoint_path, read_about, write_about
from smalti.training.config import AdversaryConfig, TokenizerTraining
from smalti.training.distributed import World
from smalti.training.optimizer import adamw, flatten, shared, unflatten


@dataclass
class Opponent:
    """The adversary's part of a run."""

    config: AdversaryConfig
    discriminator: Discriminator
    shared: nn.Module
    """The same, wrapped for several ranks."""
    optimizer: Optimizer
    anchors: Anchors | None = None
    """LeCAM's moving means of the logits."""


@dataclass
class TrainState:
    """The state of a run. Data order, augmentation and choice of frames have none: they follow from (seed, step)."""

    config: TokenizerTraining
    world: World
    tokenizer: Tokenizer
    shared: nn.Module
    """The same, wrapped for several ranks."""
    average: Tokenizer
    """Moving average of the weights: what is measured, drawn and kept."""
    optimizer: Optimizer
    opponent: Opponent | None = None
    lpips: LPIPS | None = None
    step: int = 0
    """Steps made, those skipped included."""
    updates: int = 0
    """Steps that changed the weights."""


def start(config: TokenizerTraining, world: World) -> TrainState:
    """A fresh state; random weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = Tokenizer(config.tokenizer)
        discriminator = None if config.adversary is None else config.adversary.discriminator.build()
    if config.init is not None:
        given = load_tokenizer(str(config.init))
        if given.config != config.tokenizer:
            raise IntegrityError(f"{config.init}: holds another architecture than `tokenizer` of this run")
        tokenizer.load_state_dict(given.state_dict())
    tokenizer.to(world.device).train()
    state = TrainState(
        config=config,
        world=world,
        tokenizer=tokenizer,
        shared=shared(tokenizer, world),
        average=copy.deepcopy(tokenizer).requires_grad_(False).eval(),
        optimizer=adamw(tokenizer, config.optimizer),
        lpips=None if config.lpips is None else config.lpips.build().to(world.device),
    )
    if discriminator is not None and config.adversary is not None:
        discriminator = discriminator.to(world.device).train()
        optimizer = adamw(discriminator, config.adversary.optimizer)
        state.opponent = Opponent(config.adversary, discriminator, shared(discriminator, world), optimizer)
    return state


def save(state: TrainState, folder: Path, data_digest: str) -> Path:
    """Write `folder/step-N` whole or not at all; the averaged tokenizer in it is a tokenizer folder of its own."""
    target = checkpoint_path(folder, state.step)
    with new_folder(target, replace=True) as part:
        state.average.save(part / "tokenizer")
        save_tensors(part / "tokenizer.safetensors", state.tokenizer.state_dict())
        save_tensors(part / "optimizer.safetensors", flatten(state.optimizer, state.tokenizer))
        if (opponent := state.opponent) is not None:
            save_tensors(part / "discriminator.safetensors", opponent.discriminator.state_dict())
            moments = flatten(opponent.optimizer, opponent.discriminator)
            save_tensors(part / "discriminator-optimizer.safetensors", moments)
            if opponent.anchors is not None:
                save_tensors(part / "anchors.safetensors", opponent.anchors._asdict())
        write_about(part, data_digest, state.step, state.updates)
    return target


def load(state: TrainState, folder: Path) -> dict[str, Any]:
    """Restore a checkpoint into a fresh state; gives what `state.json` says. Raises IntegrityError on any change."""
    about = read_about(folder)
    state.tokenizer.load_state_dict(load_tensors(folder / "tokenizer.safetensors"))
    state.average.load_state_dict(load_tensors(folder / "tokenizer" / "model.safetensors"))
    unflatten(state.optimizer, state.tokenizer, load_tensors(folder / "optimizer.safetensors"))
    if (opponent := state.opponent) is not None:
        opponent.discriminator.load_state_dict(load_tensors(folder / "discriminator.safetensors"))
        moments = load_tensors(folder / "discriminator-optimizer.safetensors")
        unflatten(opponent.optimizer, opponent.discriminator, moments)
        if (folder / "anchors.safetensors").is_file():
            anchors = load_tensors(folder / "anchors.safetensors")
            opponent.anchors = Anchors(**{name: t.to(state.world.device) for name, t in anchors.items()})
    state.step, state.updates = about["step"], about["updates"]
    return about
