"""AdamW of a module: its groups, and its tensors by name for a checkpoint; modules that several ranks share."""

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from smalti.training.config import OptimizerConfig
from smalti.training.distributed import World


def shared(module: nn.Module, world: World, *, unused: bool = False) -> nn.Module:
    """The module, wrapped for several ranks; `unused` where a step may leave some parameters out."""
    # Buffers are tables that never change, or a batch norm's, which stays local as in the peers.
    if world.size == 1:
        return module
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=unused)


def adamw(module: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over what is trained; weight decay is on matrices and kernels only."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas)


def flatten(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name: `exp_avg/NAME`, ..."""
    return {
        f"{kind}/{name}": value
        for name, parameter in module.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def unflatten(optimizer: Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `flatten` gave."""
    for name, parameter in module.named_parameters():
        kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}/{name}" in tensors]
        for kind in kinds:
            value = tensors[f"{kind}/{name}"]
            # AdamW counts its steps on the CPU.
            optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
