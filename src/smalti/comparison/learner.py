"""What takes part: something that learns from batches, gives videos back by way of ids, and can be put on disk."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smalti.files import load_tensors, save_tensors
from smalti.losses import Anchors
from smalti.losses.perceptual import LPIPS
from smalti.metrics import Usage
from smalti.tokenizer.score import round_trip
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step

STATE = "state.safetensors"


class Learnt(NamedTuple):
    """What a step was."""

    loss: float
    psnr: float
    """Of the batch, in dB."""
    usage: Usage
    """Of the batch's ids."""


@runtime_checkable
class Learner(Protocol):
    """A contender with its weights and its optimizer."""

    levels: Sequence[int]
    """Their product is the codebook's size."""
    parameters: int

    def step(self, video: Tensor, share: float) -> Learnt:
        """Learn from a batch `b 3 t h w` in [-1, 1], when `share` of the budget is spent: schedules follow it."""
        ...

    def kind(self, share: float) -> Hashable:
        """Steps of one kind make the same operations; their FLOPs are counted once."""
        ...

    def round_trip(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction, ids) of a video, by way of its ids alone, as it is measured."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that the next step depends on into a folder that is there."""
        ...

    def load(self, folder: Path) -> None:
        """Restore it."""
        ...


class Ours:
    """A tokenizer of smalti with its training config; the step is that of `smalti train`."""

    def __init__(self, config: TokenizerTraining, device: torch.device, lpips: LPIPS | None = None) -> None:
        """`lpips` takes the place of the network that the config would load once more."""
        self.config = config
        self.state = start_tokenizer(config, World(0, 1, device))
        if lpips is not None:
            self.state.lpips = lpips
        self.levels: Sequence[int] = self.state.tokenizer.levels
        self.parameters = sum(p.numel() for p in self.state.tokenizer.parameters())

    def step(self, video: Tensor, share: float) -> Learnt:
        """One step of `smalti.training`, at the place of its schedules that `share` says."""
        self.state.step = self._place(share)
        measured = step(self.state, video)
        return Learnt(measured.total, measured.psnr, measured.usage)

    def kind(self, share: float) -> Hashable:
        """Return whether there is a discriminator yet, and whether its penalty is due."""
        gan, place = self.config.gan, self._place(share)
        if gan is None or gan.share(place) == 0:
            return None
        return gan.penalty != "none" and place % gan.penalty_every == 0

    def round_trip(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """By the averaged weights."""
        return round_trip(self.state.ema, video)

    def save(self, folder: Path) -> None:
        """Weights and moments; the averaged tokenizer beside them is a tokenizer folder of its own."""
        tensors = pack(self._modules(), self._optimizers()) | {"updates": torch.tensor(self.state.updates)}
        if self.state.gan is not None and self.state.gan.anchors is not None:
            tensors |= {f"anchors/{name}": value for name, value in self.state.gan.anchors._asdict().items()}
        save_tensors(folder / STATE, tensors)
        self.state.ema.save(folder / "tokenizer")

    def load(self, folder: Path) -> None:
        """Restore it."""
        tensors = load_tensors(folder / STATE)
        unpack(tensors, self._modules(), self._optimizers())
        self.state.updates = int(tensors["updates"])
        anchors = {name[len("anchors/") :]: value for name, value in tensors.items() if name.startswith("anchors/")}
        if self.state.gan is not None and anchors:
            device = self.state.world.device
            self.state.gan.anchors = Anchors(**{name: value.to(device) for name, value in anchors.items()})

    def _place(self, share: float) -> int:
        return min(round(share * self.config.steps), self.config.steps - 1)

    def _modules(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"tokenizer": self.state.tokenizer, "average": self.state.ema}
        return found if self.state.gan is None else found | {"discriminator": self.state.gan.discriminator}

    def _optimizers(self) -> dict[str, Optimizer]:
        found = {"of-tokenizer": self.state.optimizer}
        return found if self.state.gan is None else found | {"of-discriminator": self.state.gan.optimizer}


def pack(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """The tensors of all of them: `module/name`, and `optimizer/number of the parameter/moment`."""
    found = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for number, parameter in enumerate(_parameters(optimizer)):
            moments = optimizer.state.get(parameter, {})
            found |= {f"{name}/{number}/{key}": value for key, value in moments.items()}
    return found


def unpack(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> None:
    """Put back what `pack` gave, into the same modules and optimizers."""
    for name, module in modules.items():
        module.load_state_dict({key: tensors[f"{name}/{key}"] for key in module.state_dict()})
    for name, optimizer in optimizers.items():
        parameters = list(_parameters(optimizer))
        for full, value in tensors.items():
            of, _, rest = full.partition("/")
            if of == name:
                number, _, key = rest.partition("/")
                parameter = parameters[int(number)]
                # Adam counts its steps on the CPU.
                optimizer.state[parameter][key] = value.clone() if key == "step" else value.to(parameter.device)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
