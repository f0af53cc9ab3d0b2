"""AdamW or Muon and its state, EMA weights, and modules that several ranks train together."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from smalti.training.config import OptimizerConfig
from smalti.training.distributed import World
from smalti.training.muon import Muon


def wrap_ddp(module: nn.Module, world: World, *, unused: bool = False) -> nn.Module:
    """Return the module, wrapped if there are several ranks; `unused` if a step may leave some parameters out."""
    # Buffers are tables that never change, or a batch norm's, which stays local as in the peers.
    if world.size == 1:
        return module
    # A new name from torch 2.13 on, where the old one warns.
    known = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False, "find_unused_parameters": unused}
    return DistributedDataParallel(module, **options)


def kernels(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of convolutions and linear layers: what multiplies features.

    Not among them: biases and norms; embeddings and learned positions, which are features themselves; the widths and
    scales of learned quantizers, whose zero is no neutral place.
    """
    owners = [owner for owner in module.modules() if not isinstance(owner, nn.Embedding)]
    named = ((name, p) for owner in owners for name, p in owner.named_parameters(recurse=False))
    return [p for name, p in named if name in ("weight", "weight_orig") and p.dim() > 1]


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return the optimizer of what is trained: AdamW, or with `muon` Muon for `kernels` and AdamW for the rest.

    Weight decay is on `kernels` alone. `set_lr` sets the rates of a step.
    """
    decayed = set(kernels(module))
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p in decayed]
    others = [p for p in parameters if p not in decayed]
    muon = config.muon
    groups = [
        {"params": [] if muon else matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if muon is None or not matrices:
        return AdamW(groups, lr=config.lr, betas=config.betas)
    own = {"params": matrices, "weight_decay": config.weight_decay, "lr": muon.lr}
    # AdamW refuses to have no parameters.
    rest = groups or [{"params": [torch.zeros(())], "weight_decay": 0.0}]
    adamw = AdamW(rest, lr=config.lr, betas=config.betas)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[muon.precision]
    return Muon([own], adamw, momentum=muon.momentum, turns=muon.turns, dtype=dtype)


def set_lr(optimizer: Optimizer, config: OptimizerConfig, lr: float) -> None:
    """Set the learning rate of every group; Muon's has the same course as AdamW's, from a peak of its own."""
    for group in optimizer.param_groups:
        group["lr"] = lr * config.muon.lr / config.lr if config.muon is not None and "turns" in group else lr


def clip_gradient(module: nn.Module, limit: float | None) -> Tensor:
    """Cut the whole gradient to a norm of at most `limit`, if there is one; return the norm before."""
    if limit:
        return torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


@torch.no_grad()
def update_ema(ema: nn.Module, live: nn.Module, decay: float) -> None:
    """Move the EMA weights to decay * ema + (1 - decay) * live."""
    torch._foreach_lerp_(list(ema.parameters()), list(live.parameters()), 1 - decay)


class OptimizerState:
    """The tensors of an optimizer under the names of a module's parameters: `exp_avg/NAME`, ..."""

    def __init__(self, optimizer: Optimizer, module: nn.Module) -> None:
        self.optimizer, self.module = optimizer, module

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors; none before the first step."""
        return {
            f"{kind}/{name}": value
            for name, parameter in self.module.named_parameters()
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor], /) -> None:
        """Put them back."""
        for name, parameter in self.module.named_parameters():
            for kind in ("step", "exp_avg", "exp_avg_sq", "momentum"):
                if f"{kind}/{name}" in tensors:
                    value = tensors[f"{kind}/{name}"]
                    # AdamW counts its steps on the CPU.
                    self.optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
