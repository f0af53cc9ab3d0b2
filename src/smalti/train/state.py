"""All that a run owns and a checkpoint holds: both players, averaged weights, optimizers, the step."""

import copy
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from smalti import __version__
from smalti.adversary import Discriminator
from smalti.errors import IntegrityError
from smalti.files import check_manifest, load_tensors, new_folder, read_json, save_tensors, write_json
from smalti.losses import Anchors
from smalti.losses.perceptual import LPIPS
from smalti.tokenizer import Tokenizer
from smalti.train.common import World
from smalti.train.config import AdversaryConfig, OptimizerConfig, TokenizerTraining

_FORMAT = 1


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
        given = Tokenizer.load(config.init)
        if given.config != config.tokenizer:
            raise IntegrityError(f"{config.init}: holds another architecture than `tokenizer` of this run")
        tokenizer.load_state_dict(given.state_dict())
    tokenizer.to(world.device).train()
    state = TrainState(
        config=config,
        world=world,
        tokenizer=tokenizer,
        shared=_shared(tokenizer, world),
        average=copy.deepcopy(tokenizer).requires_grad_(False).eval(),
        optimizer=_adamw(tokenizer, config.optimizer),
        lpips=None if config.lpips is None else config.lpips.build().to(world.device),
    )
    if discriminator is not None and config.adversary is not None:
        discriminator = discriminator.to(world.device).train()
        optimizer = _adamw(discriminator, config.adversary.optimizer)
        state.opponent = Opponent(config.adversary, discriminator, _shared(discriminator, world), optimizer)
    return state


def save(state: TrainState, folder: Path, data_digest: str) -> Path:
    """Write `folder/step-N` whole or not at all; the averaged tokenizer in it is a tokenizer folder of its own."""
    target = folder / f"step-{state.step:08d}"
    with new_folder(target, replace=True) as part:
        state.average.save(part / "tokenizer")
        save_tensors(part / "tokenizer.safetensors", state.tokenizer.state_dict())
        save_tensors(part / "optimizer.safetensors", _flatten(state.optimizer, state.tokenizer))
        if (opponent := state.opponent) is not None:
            save_tensors(part / "discriminator.safetensors", opponent.discriminator.state_dict())
            moments = _flatten(opponent.optimizer, opponent.discriminator)
            save_tensors(part / "discriminator-optimizer.safetensors", moments)
            if opponent.anchors is not None:
                save_tensors(part / "anchors.safetensors", opponent.anchors._asdict())
        about = {"format": _FORMAT, "smalti": __version__, "torch": torch.__version__, "data": data_digest}
        write_json(part / "state.json", about | {"step": state.step, "updates": state.updates})
    return target


def load(state: TrainState, folder: Path) -> dict[str, Any]:
    """Restore a checkpoint into a fresh state; gives what `state.json` says. Raises IntegrityError on any change."""
    check_manifest(folder)
    about = read_json(folder / "state.json")
    if about.get("format") != _FORMAT:
        raise IntegrityError(f"{folder}: format {about.get('format')} by smalti {about.get('smalti')}, not {_FORMAT}")
    state.tokenizer.load_state_dict(load_tensors(folder / "tokenizer.safetensors"))
    state.average.load_state_dict(load_tensors(folder / "tokenizer" / "model.safetensors"))
    _unflatten(state.optimizer, state.tokenizer, load_tensors(folder / "optimizer.safetensors"))
    if (opponent := state.opponent) is not None:
        opponent.discriminator.load_state_dict(load_tensors(folder / "discriminator.safetensors"))
        moments = load_tensors(folder / "discriminator-optimizer.safetensors")
        _unflatten(opponent.optimizer, opponent.discriminator, moments)
        if (folder / "anchors.safetensors").is_file():
            anchors = load_tensors(folder / "anchors.safetensors")
            opponent.anchors = Anchors(**{name: t.to(state.world.device) for name, t in anchors.items()})
    state.step, state.updates = about["step"], about["updates"]
    return dict(about)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name))


def digest_of(keys: list[str]) -> str:
    """One digest of a data listing: a resumed run must see the same."""
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()


def _shared(module: nn.Module, world: World) -> nn.Module:
    # Buffers are tables that never change, or a batch norm's, which stays local as in the peers.
    return DistributedDataParallel(module, broadcast_buffers=False) if world.size > 1 else module


def _adamw(module: nn.Module, config: OptimizerConfig) -> AdamW:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas)


def _flatten(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name: `exp_avg/NAME`, ..."""
    return {
        f"{kind}/{name}": value
        for name, parameter in module.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _unflatten(optimizer: Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}/{name}" in tensors]
        for kind in kinds:
            value = tensors[f"{kind}/{name}"]
            # AdamW counts its steps on the CPU.
            optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
