"""Weights, gradients, moments and EMA weights in shards over the ranks of a run, by torch's `fully_shard` (FSDP2; ZeRO,
Rajbhandari et al. 2020, arXiv 1910.02054).

Of a tensor of n rows, rank r of W holds those of chunk r of `torch.chunk(W)`: at most ceil(n / W). A layer is whole
while it is computed, on the way there and back; its gradients are summed into the shards. An optimizer and the average
see shards alone. What needs whole tensors (a file, a validation, Muon's matrices) gets them from `whole_of`.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smalti.errors import MachineError
from smalti.training.distributed import World


def shard(module: nn.Module, layers: Iterable[nn.Module], world: World) -> nn.Module:
    """Cut the parameters of a module into shards, in place, and return it; those of one of its `layers` come together
    when the layer is computed, all others when the module is. Raises MachineError where this torch cannot."""
    # Here, for they take a fourth of the time of all imports of a run.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A warning at each step that nobody may write into the results of a layer: gradients would be lost, and tests
    # compare those of every kind of network.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view", category=UserWarning)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    _check_mean(world)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in layers:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    # Whole from its forward to its backward pass: the adaptive weight of a GAN loss needs the last layer in between.
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    return module


def _check_mean(world: World) -> None:
    """Raise MachineError where ranks cannot find a mean in shards: on a CPU, gloo of earlier torch refused it, or gave
    the sum without a word."""
    given = torch.full((world.size,), float(world.rank), device=world.device)
    found, wanted = torch.empty(1, device=world.device), (world.size - 1) / 2
    # A new name from torch 2.13 on, where the old one warns.
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    try:
        scatter(found, given, op=dist.ReduceOp.AVG)
        is_right = abs(float(found) - wanted) < 1e-3
    except (RuntimeError, ValueError):
        is_right = False
    if not world.min(int(is_right)):
        what = f"shard: torch {torch.__version__} finds no mean of gradients in shards on {world.device.type}"
        raise MachineError(f"{what}; take torch 2.13, or set shard to false")


def _is_cut(x: Tensor) -> bool:
    """Return whether a tensor is in shards; none is before the class is imported."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """Return what this rank holds of a tensor: a tensor that is in no shards is held whole."""
    cut: Any = x
    return cut.to_local() if _is_cut(x) else x


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return the rows of a whole tensor that this rank holds of one that is cut as `like` is."""
    if not _is_cut(like):
        return whole
    mesh: Any = like.device_mesh  # type: ignore[attr-defined]
    parts, rank = whole.chunk(mesh.size()), mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def as_shard(part: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that is cut as `like` is, of the rows that each rank holds."""
    if not _is_cut(like):
        return part
    from torch.distributed.tensor import DTensor

    cut: Any = like
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(part, cut.device_mesh, cut.placements, run_check=False, shape=shape, stride=stride)


def whole_of(x: Tensor) -> Tensor:
    """Return the whole tensor; all ranks call it together."""
    cut: Any = x
    return cut.full_tensor() if _is_cut(x) else x


class ModuleWeights:
    """The weights of a module, in shards or not, as a `Stateful` that is put back from whole tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        """Return weights and buffers."""
        return self.module.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor], /) -> None:
        """Put them back."""
        own = self.module.state_dict()
        cut = {
            name: as_shard(part_of(value, own[name]).to(own[name].device), own[name]) if name in own else value
            for name, value in tensors.items()
        }
        self.module.load_state_dict(cut)


class ShardedRun:
    """The EMA weights of a run in shards, and what rank 0 has whole for a while: to save, to validate, to show."""

    def __init__(self, ema: nn.Module, live: nn.Module, world: World) -> None:
        """`ema` is whole, `live` is in shards. Parameters of `ema` have no numbers from now on where none were
        gathered: they are on the device `meta`."""
        self.ema, self.world = ema, world
        self.averages = nn.ParameterList()
        """This rank's shards of the EMA weights, in the order of the parameters."""
        self.tensors: dict[str, dict[str, Tensor]] = {}
        """Whole tensors of files by their names, on rank 0."""
        self._like = [*live.parameters()]
        for buffer in ema.buffers():
            buffer.data = buffer.to(world.device)
        self._cut()

    @torch.no_grad()
    def gather(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Bring the EMA weights together on rank 0, and the tensors of files in its main memory; all ranks call it."""
        # One after the other: the others hold no more than one whole tensor.
        values = (whole_of(as_shard(p.detach(), like)) for p, like in zip(self.averages, self._like, strict=True))
        if self.world.is_main:
            self._put([*values])
        else:
            for _ in values:
                pass
        self.tensors = {file: {} for file in tensors}
        for file, contents in tensors.items():
            for name, value in contents.items():
                whole = whole_of(value)
                if self.world.is_main:
                    self.tensors[file][name] = whole.cpu()

    def release(self) -> None:
        """Forget what was gathered."""
        self._put([p.detach().to("meta") for p in self.ema.parameters()])
        self.tensors = {}

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Let the EMA weights be loaded from a file, whole and on every rank, and keep this rank's shards of them."""
        self._put([torch.empty_like(p, device="cpu") for p in self.ema.parameters()])
        yield
        self._cut()

    @torch.no_grad()
    def _cut(self) -> None:
        parts = (part_of(p, like).to(like.device) for p, like in zip(self.ema.parameters(), self._like, strict=True))
        self.averages = nn.ParameterList(nn.Parameter(part.clone(), requires_grad=False) for part in parts)
        self.release()

    def _put(self, values: list[Tensor]) -> None:
        names = [name for name, _ in self.ema.named_parameters()]
        self.ema.load_state_dict(dict(zip(names, values, strict=True)), strict=False, assign=True)
