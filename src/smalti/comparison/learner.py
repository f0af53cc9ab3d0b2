"""The learners of a comparison: they learn from batches, reconstruct videos from ids, and can be saved."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from smalti.files import load_tensors
from smalti.losses.perceptual import LPIPS
from smalti.metrics import Usage
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import round_trip
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.fit import read_state, write_state
from smalti.training.optimizer import OptimizerState
from smalti.training.task import Savable, Stateful
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.training.tokenizer_step import step

_FORMER_STATE = "state.safetensors"


class LearnerStep(NamedTuple):
    """The figures of a step."""

    loss: float
    psnr: float
    """PSNR of the batch in dB."""
    usage: Usage
    """Usage of the codebook by the batch."""


@runtime_checkable
class Learner(Protocol):
    """A model with its weights and its optimizer."""

    levels: Sequence[int]
    """Their product is the codebook's size."""
    parameters: int

    def step(self, video: Tensor, share: float) -> LearnerStep:
        """Learn from a batch `b 3 t h w` in [-1, 1], when `share` of the budget is spent: schedules follow it."""
        ...

    def kind(self, share: float) -> Hashable:
        """Return the kind of a step: steps of one kind make the same operations, which are counted once."""
        ...

    def round_trip(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return (reconstruction, ids) of a video, decoded from its ids alone, as it is scored."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that the next step depends on into a folder that exists."""
        ...

    def load(self, folder: Path) -> None:
        """Restore it."""
        ...


class TokenizerLearner(Savable):
    """A tokenizer of smalti with its training config; step, checkpoints and EMA are those of `smalti train`."""

    data_digest = ""

    def __init__(self, config: TokenizerTraining, device: torch.device, lpips: LPIPS | None = None) -> None:
        """`lpips` takes the place of the network that the config would load once more."""
        self.config = config
        self.state: TrainState = start_tokenizer(config, World(0, 1, device))
        self.ema: Tokenizer = self.state.ema
        if lpips is not None:
            self.state.lpips = lpips
        self.levels: Sequence[int] = self.state.tokenizer.levels
        self.parameters = sum(p.numel() for p in self.state.tokenizer.parameters())

    def step(self, video: Tensor, share: float) -> LearnerStep:
        """Make one step of `smalti.training`, at the place of its schedules that `share` says."""
        self.state.step = self._place(share)
        result = step(self.state, video)
        return LearnerStep(result.total, result.psnr, result.usage)

    def kind(self, share: float) -> Hashable:
        """Return whether there is a discriminator yet, and whether its penalty is due."""
        gan, place = self.config.gan, self._place(share)
        if gan is None or gan.share(place) == 0:
            return None
        return gan.penalty != "none" and place % gan.penalty_every == 0

    def round_trip(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode with the EMA weights."""
        return round_trip(self.state.ema, video)

    def save(self, folder: Path) -> None:
        """Write what a checkpoint of a run holds; `tokenizer` in it is a tokenizer folder of its own."""
        write_state(self, folder)

    def load(self, folder: Path) -> None:
        """Restore it, from a folder of an earlier version too."""
        if (folder / _FORMER_STATE).is_file():
            self._load_former(load_tensors(folder / _FORMER_STATE))
        else:
            read_state(self, folder)

    def tensors(self) -> dict[str, Stateful]:
        """Return the weights and optimizers' tensors of both networks."""
        return self.state.tensors()

    def export(self, folder: Path) -> None:
        """Write the tokenizer with the EMA weights."""
        self.ema.save(folder)

    def _place(self, share: float) -> int:
        return min(round(share * self.config.steps), self.config.steps - 1)

    def _load_former(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the single file of version 0.1.0, in which optimizers number their parameters."""
        prefixes = {"optimizer": "of-tokenizer/", "discriminator-optimizer": "of-discriminator/", "ema": "average/"}
        for name, target in {**self.tensors(), "ema": self.ema}.items():
            prefix = prefixes.get(name, f"{name}/")
            mine = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            target.load_state_dict(_by_name(mine, target) if isinstance(target, OptimizerState) else mine)
        self.state.updates = int(tensors["updates"])


def _by_name(numbered: Mapping[str, Tensor], moments: OptimizerState) -> dict[str, Tensor]:
    """Return `NUMBER/KIND` as `KIND/NAME`, by the order of the optimizer's parameters."""
    names = {parameter: name for name, parameter in moments.module.named_parameters()}
    parameters = [parameter for group in moments.optimizer.param_groups for parameter in group["params"]]
    split = {key: key.partition("/") for key in numbered}
    return {f"{kind}/{names[parameters[int(n)]]}": numbered[key].clone() for key, (n, _, kind) in split.items()}
