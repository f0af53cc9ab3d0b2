"""AdamW or Muon and its state, EMA weights, and modules that several ranks train together.

Muon (Jordan et al. 2024) is momentum whose every matrix is made orthogonal, so that all its directions move alike.
torch has it from 2.9 on, for matrices alone; the one here takes the kernels of convolutions as
matrices too, works with every torch that smalti does, and is beside AdamW in one optimizer. On a matrix it takes the
step of torch's.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from smalti.training.config import OptimizerConfig
from smalti.training.distributed import World
from smalti.training.late import decides_alone
from smalti.training.sharded import as_shard, local, part_of, whole_of


def wrap_ddp(module: nn.Module, world: World, *, unused: bool = False) -> nn.Module:
    """Return the module, wrapped if there are several ranks; `unused` if a step may leave some parameters out."""
    # Buffers are tables that never change, or a batch norm's, which stays local as in the peers.
    if world.size == 1:
        return module
    # A new name from torch 2.13 on, where the old one warns.
    known = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # Gradients lie in the buffers that ranks exchange: one copy of them, not two.
    options: dict[str, Any] = {name: False, "find_unused_parameters": unused, "gradient_as_bucket_view": True}
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
    # Shards have been seen with AdamW's plain kernels alone.
    alone = (decides_alone(parameters[0].device) and local(parameters[0]) is parameters[0]) or None
    if muon is None or not matrices:
        return AdamW(groups, lr=config.lr, betas=config.betas, fused=alone)
    own = {"params": matrices, "weight_decay": config.weight_decay, "lr": muon.lr}
    # AdamW refuses to have no parameters.
    rest = groups or [{"params": [torch.zeros(())], "weight_decay": 0.0}]
    adamw = AdamW(rest, lr=config.lr, betas=config.betas, fused=alone)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[muon.precision]
    return Muon([own], adamw, momentum=muon.momentum, turns=muon.turns, dtype=dtype)


def set_lr(optimizer: Optimizer, config: OptimizerConfig, lr: float) -> None:
    """Set the learning rate of every group; Muon's has the same course as AdamW's, from a peak of its own."""
    for group in optimizer.param_groups:
        group["lr"] = lr * config.muon.lr / config.lr if config.muon is not None and "turns" in group else lr


def clip_gradient(module: nn.Module, limit: float | None) -> Tensor:
    """Cut the whole gradient to a norm of at most `limit`, if there is one; return the norm before."""
    if limit:
        return whole_of(torch.nn.utils.clip_grad_norm_(module.parameters(), limit))
    return whole_of(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


def skips_alone(optimizer: Optimizer) -> bool:
    """Return whether an optimizer of `make_optimizer` leaves steps out by a tensor on the device."""
    return any(group.get("fused") for group in optimizer.param_groups)


def update(optimizer: Optimizer, skip: Tensor) -> None:
    """Take a step of an optimizer unless `skip`, 0 or 1, is 1, and forget the gradients.

    Where the device decides, nobody waits for it: weights and moments stay as they were, to the bit.
    """
    if skips_alone(optimizer):
        optimizer.found_inf, optimizer.grad_scale = skip, None  # type: ignore[attr-defined]
        optimizer.step()
    elif not skip:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def update_ema(ema: nn.Module, live: nn.Module, decay: float | Tensor) -> None:
    """Move the EMA weights, or this rank's shards of them, to decay * ema + (1 - decay) * live: at 1 they stay, at 0
    they are those of `live`, to the bit."""
    averages, weights = list[Tensor](ema.parameters()), [local(p) for p in live.parameters()]
    if not isinstance(decay, Tensor):
        torch._foreach_lerp_(averages, weights, 1 - decay)
        return
    # A few kernels for all weights, where lerp with a tensor takes one for each.
    torch._foreach_mul_(averages, (decay > 0).to(averages[0].dtype))
    change = [*torch._foreach_sub(weights, averages)]
    torch._foreach_mul_(change, (1 - decay).to(averages[0].dtype))
    torch._foreach_add_(averages, change)


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
                    # AdamW counts its steps on the CPU, unless it is the device that skips some of them.
                    if kind != "step":
                        value = _like(value, parameter)
                    elif skips_alone(self.optimizer):
                        value = value.to(parameter.device)
                    self.optimizer.state[parameter][kind] = value


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor on the device of a parameter, and in shards if that is."""
    return as_shard(part_of(value, parameter).to(parameter.device), parameter)


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's polynomial: singular values of 0.002 and more come near 1 in five turns, between 0.7 and 1.2."""


def orthogonalize(
    matrices: Float[Tensor, "*b m n"], turns: int = 5, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "*b m n"]:
    """Return nearly the orthogonal matrix next to each of one or `b` matrices, by a Newton-Schulz iteration of so many
    turns in a number type.

    Singular vectors stay, singular values become about 1; a zero matrix stays zero.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.to(dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(turns):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(Optimizer):
    """Muon for some groups of parameters, and AdamW for those that it is given, as one optimizer.

    A kernel `out in ...` is the matrix of `out` rows. Its update is the orthogonalized Nesterov momentum times
    sqrt(max(1, out / in)), so that one learning rate suits all shapes. Weight decay is that of AdamW.
    """

    def __init__(
        self, groups: list[dict[str, Any]], adamw: AdamW, *, momentum: float, turns: int, dtype: torch.dtype
    ) -> None:
        for group in groups:
            group |= {"momentum": momentum, "turns": turns, "dtype": dtype}
        super().__init__([*groups, *adamw.param_groups], {})
        self._own = self.param_groups[: len(groups)]
        self._adamw = adamw
        self._adamw.param_groups = self.param_groups[len(groups) :]
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step along the gradients; parameters without one stay."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        skip: Tensor | None = getattr(self, "found_inf", None)
        for group in self._own:
            self._move([p for p in group["params"] if p.grad is not None], group, skip)
        self._adamw.found_inf, self._adamw.grad_scale = skip, None  # type: ignore[attr-defined]
        self._adamw.step()
        return loss

    def _move(self, parameters: Sequence[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Move parameters along their gradients: those of one shape together, for a GPU waits for each call.

        Where `skip` is 1 the momentum takes the place of a gradient, so that it stays, and the step is 0 long.
        """
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        momenta, keep, lr = [local(self.state[p]["momentum"]) for p in parameters], group["momentum"], group["lr"]
        if skip is not None:
            lr = lr * (1 - skip)
            gradients = [torch.where(skip > 0, m, g) for m, g in zip(momenta, gradients, strict=True)]
        torch._foreach_lerp_(momenta, gradients, 1 - keep)
        ahead = torch._foreach_lerp(gradients, momenta, keep)
        torch._foreach_mul_([local(p) for p in parameters], 1 - lr * group["weight_decay"])
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter, direction in zip(parameters, ahead, strict=True):
            alike.setdefault((len(parameter), parameter.shape[1:].numel()), []).append((parameter, direction))
        for (rows, columns), pairs in alike.items():
            # A matrix has no update by its rows alone: of shards, those of one shape come together on every rank.
            matrices = [whole_of(as_shard(direction, parameter)).flatten(1) for parameter, direction in pairs]
            batch = torch.stack(matrices) if len(pairs) > 1 else matrices[0]
            updates = orthogonalize(batch, group["turns"], group["dtype"]).expand(len(pairs), -1, -1)
            step = lr * max(1.0, rows / columns) ** 0.5
            for (parameter, _), update in zip(pairs, updates, strict=True):
                change, place = part_of(update.view(parameter.shape).to(parameter.dtype), parameter), local(parameter)
                if isinstance(step, Tensor):
                    place.sub_(change * step)
                else:
                    place.add_(change, alpha=-step)
