"""A peer's tokenizer beside configs of smalti: our pixel loss, batches, EMA and evaluator; the rest its own."""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.peers.architectures import Peer
from smalti import losses as loss
from smalti.comparison.learner import LearnerStep
from smalti.data.source import sample_rng
from smalti.files import load_tensors, save_tensors
from smalti.losses.perceptual import LPIPS
from smalti.metrics import Usage
from smalti.training.config import OptimizerConfig
from smalti.training.optimizer import update_ema

STATE = "state.safetensors"


class Shared(NamedTuple):
    """What is equal for all contenders, ours and theirs."""

    steps: int
    """Of the schedules."""
    size: int
    ema: float = 0.99
    """Decay of the averaged weights, which rises as (1 + n) / (10 + n)."""
    lpips: LPIPS | None = None
    lpips_weight: float = 1.0


class PeerLearner:
    """L1 (and LPIPS of one frame a clip) with the quantizer's own loss; AdamW with no decay is Adam."""

    def __init__(self, peer: Peer, seed: int, shared: Shared, optimizer: OptimizerConfig) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = peer.build(shared.size)
        self.module.train()
        self.average = copy.deepcopy(self.module).requires_grad_(False).eval()
        self.settings, self.shared, self.seed = optimizer, shared, seed
        self.levels: Sequence[int] = peer.levels
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        self.optimizer = AdamW(trained, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay)
        self.updates = 0

    def step(self, video: Tensor, share: float) -> LearnerStep:
        """Forward, backward, update."""
        made = self.module(video)
        total = loss.l1(made.video, video) + made.loss
        if self.shared.lpips is not None:
            index = loss.random_frames(len(video), video.shape[2], sample_rng(self.seed, self.updates, 0))
            ours, theirs = (loss.select_frames(v, index).squeeze(2) for v in (made.video, video))
            total = total + self.shared.lpips_weight * self.shared.lpips(ours, theirs).mean()
        total.backward()
        place = min(round(share * self.shared.steps), self.shared.steps - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr_at(place, self.shared.steps)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        update_ema(self.average, self.module, min(self.shared.ema, (1 + self.updates) / (10 + self.updates)))
        self.updates += 1
        error = (made.video.detach().clamp(-1, 1) - video).square().mean()
        usage = Usage(self.levels)
        usage.update(made.ids)
        return LearnerStep(float(total.detach()), -10 * math.log10(max(float(error) / 4, 1e-12)), usage)

    def kind(self, share: float) -> Hashable:
        """All steps are alike."""
        return None

    def round_trip(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """By the averaged weights, in one forward pass: decoding from ids alone is not in all of these projects."""
        with torch.no_grad():
            made = self.average(video)
        return made.video, made.ids.long()

    def save(self, folder: Path) -> None:
        """Weights, averages, moments."""
        tensors = pack({"module": self.module, "average": self.average}, {"of-module": self.optimizer})
        save_tensors(folder / STATE, tensors | {"updates": torch.tensor(self.updates)})

    def load(self, folder: Path) -> None:
        """Restore it."""
        tensors = load_tensors(folder / STATE)
        unpack(tensors, {"module": self.module, "average": self.average}, {"of-module": self.optimizer})
        self.updates = int(tensors["updates"])
        if "steps" in vars(self.module):  # VidTok's annealing counts them
            self.module.steps = self.updates


def pack(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Return the tensors of all: `module/name`, and `optimizer/number of the parameter/moment`."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for number, parameter in enumerate(_parameters(optimizer)):
            moments = optimizer.state.get(parameter, {})
            tensors |= {f"{name}/{number}/{key}": value for key, value in moments.items()}
    return tensors


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
