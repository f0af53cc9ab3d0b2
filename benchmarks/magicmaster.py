"""MagicMaster's own models and training step against ours of equal function and equal weights, in one process.

Both in float32, LPIPS (VGG, random weights) without dropout, the gradient penalty at every step. `ours` is our step in
their order: the discriminator moves first, and the tokenizer plays against the new one; it is compared with theirs
gradient by gradient. `default` is our step as it is: both players move at once. Beside the time stand the counted
operations, which a busy machine does not change.

    SMALTI_MAGICMASTER=folder python -m benchmarks magicmaster
    python -m benchmarks.magicmaster 3d decode streamed       # peak memory and operations of one, as JSON
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import CPU, child, growth_mb, seconds, turns
from benchmarks.peers import magicmaster as peer
from benchmarks.training_step import random_lpips
from smalti import losses as loss
from smalti.comparison.flops import count_flops
from smalti.data.source import sample_rng
from smalti.discriminators import StyleGAN2Config
from smalti.recipes.magicmaster import imagenet_row, kinetics_row
from smalti.tokenizer import Tokenizer
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.tokenizer_figures import TokenizerStep
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.training.tokenizer_step import step

TINY = "SMALTI_TINY"
"""Set, the same networks are measured at width 32 and 32 pixels: to see that the program runs."""


class Case(NamedTuple):
    """One of their configurations, at a size."""

    config: str
    training: TokenizerTraining
    width: int
    frames: int
    size: int
    batch: int
    rounds: int
    """On a CPU, beside the first step of each: a step of the video model takes minutes."""

    def video(self) -> Tensor:
        """Uniform noise in [-1, 1]: time does not ask what is in the picture."""
        rng = torch.Generator().manual_seed(1)
        return torch.rand(self.batch, 3, self.frames, self.size, self.size, generator=rng) * 2 - 1

    @property
    def index(self) -> Tensor:
        """The frame of each clip that LPIPS and the discriminator see: the one that our first step draws."""
        drawn = loss.random_frames(self.batch, self.frames, sample_rng(self.training.seed, 0, 0))
        return drawn

    def prepared(self) -> TokenizerTraining:
        """Our training of it. Its LPIPS is made of random weights, and needs no file."""
        training, judge = self.training, StyleGAN2Config.parse({"size": self.size})
        assert training.gan is not None
        changes = {
            "tokenizer": training.tokenizer.model_copy(update={"width": self.width}),
            "gan": training.gan.model_copy(update={"discriminator": judge}),
            "batch_size": self.batch,
            "lpips": None,
            "precision": "float32",  # as theirs: autocast, which its image configs declare, is never entered
        }
        return training.model_copy(update=changes)


def cases() -> dict[str, Case]:
    """The two that are reported."""
    image = "magvit/magvit_fsq_imagenet1k_style2_d128_64000_128x128_8x8_ep20.py"
    video = "magvit/magvit_v2_fsq_k600_style2_d64_64000_128x128_4x32_ep40.py"
    if os.environ.get(TINY):
        return {
            "2d": Case(image, imagenet_row(), 32, 1, 32, 2, 2),
            "3d": Case(video, kinetics_row(), 32, 5, 32, 1, 1),
        }
    return {
        "2d": Case(image, imagenet_row(), 128, 1, 128, 2, 2),
        "3d": Case(video, kinetics_row(), 64, 17, 128, 1, 1),
    }


def their(case: Case, folder: Path, device: torch.device = CPU) -> peer.Magicmaster:
    """Their model with random weights of seed 0."""
    torch.manual_seed(0)
    made = peer.build(folder, case.config, width=case.width, size=case.size, index=case.index)
    made.model.to(device)
    return made


def our(case: Case, theirs: peer.Magicmaster | None = None, device: torch.device = CPU) -> TrainState:
    """Our state, with their weights where they are given."""
    state = start_tokenizer(case.prepared(), World(0, 1, device))
    state.lpips = random_lpips().to(device)
    if theirs is not None:
        assert state.gan is not None
        for tokenizer in (state.tokenizer, state.ema):
            tokenizer.load_state_dict(peer.tokenizer_of(theirs.generator.state_dict()))
        state.gan.discriminator.load_state_dict(peer.discriminator_of(theirs.model.discriminator.state_dict()))
        state.lpips = peer.lpips_of(theirs.model.perceptual_loss).to(device)
    return state


def ordered(state: TrainState, order: str) -> TrainState:
    """Set the order of the two networks' updates; return the same state."""
    assert state.gan is not None
    state.gan.config = state.gan.config.replace({"order": order})
    return state


def call(what: str, who: str, state: TrainState | peer.Magicmaster, video: Tensor) -> Callable[[], object]:
    """One encode, decode or training step of `theirs`, or of `ours` in their order or by `default`."""
    if isinstance(state, peer.Magicmaster):
        generator = state.generator
        if what == "step":
            return lambda: state.step(video)
        if what == "encode":
            return torch.no_grad()(lambda: generator.quantizer_image(video))
        with torch.no_grad():
            codes = generator.quantizer_image(video)[0]
        return torch.no_grad()(lambda: generator.decoder_image(codes, None, True))
    tokenizer = state.tokenizer
    if what == "step":
        return lambda: step(ordered(state, "alternate" if who == "ours" else "together"), video)
    if what == "encode":
        return torch.inference_mode()(lambda: tokenizer.encode(video))
    with torch.inference_mode():
        ids = tokenizer.encode(video)
    return torch.inference_mode()(lambda: tokenizer.decode(ids))


@contextmanager
def gradients(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Tensor]]:
    """The gradients of the parameters as they were when the optimizer made its step."""
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        found.update({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    hook = optimizer.register_step_pre_hook(keep)
    yield found
    hook.remove()


class Compared(NamedTuple):
    """What the first step of each gave."""

    difference: float
    """The largest of all gradients of both networks, relative."""
    losses: float
    """The largest of the losses and of the adaptive weight, relative."""
    seconds: Mapping[str, float]


def compared(theirs: peer.Magicmaster, state: TrainState, video: Tensor, device: torch.device) -> Compared:
    """One step of each in their order, on the same frames."""
    gan = ordered(state, "alternate").gan
    assert gan is not None
    judge, players = theirs.model.discriminator, theirs.players
    log: dict[str, Tensor] = {}
    found: list[TokenizerStep] = []
    with (
        gradients(theirs.generator, players["generator"].optimizer) as of_generator,
        gradients(judge, players["discriminator"].optimizer) as of_judge,
        gradients(state.tokenizer, state.optimizer) as of_tokenizer,
        gradients(gan.discriminator, gan.optimizer) as of_ours,
    ):
        spent = {"theirs": seconds(lambda: log.update(theirs.step(video)), device)}
        spent["ours"] = seconds(lambda: found.append(step(state, video)), device)
    (measured,) = found
    pairs = {
        "loss_rec": measured.total,
        "loss_gen": measured.losses["adversarial"] * measured.gan_weight,
        "loss_disc_grad_penalty": measured.losses["penalty"],
        "sum_disc": measured.losses["discriminator"],
        "d_weight": measured.gan_weight,
    }
    return Compared(
        max(
            distance(of_tokenizer, peer.tokenizer_of(of_generator)), distance(of_ours, peer.discriminator_of(of_judge))
        ),
        max(abs(value / log[name].item() - 1) for name, value in pairs.items()),
        spent,
    )


@torch.no_grad()
def forward_differences(theirs: peer.Magicmaster, tokenizer: Tokenizer, video: Tensor) -> dict[str, float]:
    """The largest relative difference of latents before quantization, and of pixels decoded from the same ids."""
    generator = theirs.generator
    z, _, _ = generator.encoder(video, None, True)
    z = generator.quantizer.project_in(z.movedim(1, -1)).movedim(-1, 1).reshape(len(video), 6, -1)
    ours = tokenizer.encoder(video.permute(2, 0, 1, 3, 4)).permute(1, 2, 0, 3, 4).reshape(len(video), 6, -1)
    codes, ids = generator.quantizer_image(video)[:2]
    pixels = generator.decoder_image(codes, None, True)
    ids = ids if ids.dim() == 4 else ids[:, None]
    return {
        "encode": ((ours - z).abs().max() / z.abs().max()).item(),
        "decode": ((tokenizer.decode(ids.long()) - pixels).abs().max() / pixels.abs().max()).item(),
    }


def distance(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of two sets of gradients, relative to the largest entry of each tensor.

    Tensors whose gradient is nothing but rounding (biases that a norm takes away again) count by 1e-5 of the largest.
    """
    assert set(ours) <= set(theirs), set(ours) - set(theirs)
    least = 1e-5 * max(float(value.abs().max()) for value in ours.values())
    pairs = [(value, theirs[name].to(value.device)) for name, value in ours.items()]
    return max(float((a - b).abs().max()) / max(least, float(b.abs().max())) for a, b in pairs)


WHO = {"encode": ("theirs", "ours"), "decode": ("theirs", "ours"), "step": ("theirs", "ours", "default")}


def measure(device: torch.device = CPU) -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row for each case and direction; raises SystemExit where no checkout is given."""
    folder = peer.find()
    if folder is None:
        raise SystemExit(f"magicmaster: no checkout; {peer.HOW}")
    rows: list[dict[str, object]] = []
    for name, case in cases().items():
        # On a CPU memory is that of fresh processes, which run before this one fills.
        fresh = device.type == "cpu" and not os.environ.get(TINY)
        apart = {what: {w: alone(name, what, w) for w in WHO[what]} for what in WHO} if fresh else {}
        theirs = their(case, folder, device)
        state, video = our(case, theirs, device), case.video().to(device)
        differences = forward_differences(theirs, state.tokenizer, video)
        first = compared(theirs, state, video, device)
        said(name, differences, first)
        for what, contenders in WHO.items():
            calls = {w: call(what, w, theirs if w == "theirs" else state, video) for w in contenders}
            best = turns(calls, rounds=case.rounds if device.type == "cpu" else 9, device=device)
            if what == "step":
                best |= {w: min(best[w], first.seconds[w]) for w in first.seconds}
            costs = apart.get(what) or {w: cost(calls[w], device) for w in contenders}
            rows.append(row(name, what, best, costs, {**differences, "step": first.difference}[what]))
            said(json.dumps(rows[-1]))
        del theirs, state, calls
    if device.type == "cpu":
        rows.append(row("3d", "decode, streamed", {}, {"ours": alone("3d", "decode", "streamed")}))
    return (
        "MagicMaster's own code against ours; gflop: counted; difference: relative, float32; mb: above what was held",
        rows,
    )


def said(*what: object) -> None:
    """Progress: some of it takes minutes."""
    print(*what, file=sys.stderr, flush=True)


class Cost(NamedTuple):
    """What one call takes, whatever else the machine does."""

    mb: float
    gflop: float


def cost(call: Callable[[], object], device: torch.device = CPU) -> Cost:
    """Memory above what was held before the call, and the operations of a second one: counting holds memory too."""
    mb = growth_mb(call, device)
    return Cost(mb, count_flops(call) / 1e9)


def alone(case: str, what: str, who: str) -> Cost:
    """The cost of one call in a process of its own."""
    found = Cost(**child("benchmarks.magicmaster", case, what, who))
    said(case, what, who, f"{found.mb:.0f} MB, {found.gflop:.0f} Gflop")
    return found


def row(
    case: str, what: str, best: Mapping[str, float], costs: Mapping[str, Cost], difference: float | None = None
) -> dict[str, object]:
    """A line of the table."""
    theirs, ours, default = (best.get(who) for who in ("theirs", "ours", "default"))
    return {
        "case": case,
        "what": what,
        "theirs_s": theirs,
        "ours_s": ours,
        "ratio": theirs / ours if theirs and ours else None,
        "default_s": default,
        "default_ratio": theirs / default if theirs and default else None,
        "difference": difference,
        **{
            f"{who}_{unit}": getattr(costs[who], unit) if who in costs else None
            for unit in Cost._fields
            for who in ("theirs", "ours", "default")
        },
    }


def streamed(case: Case, video: Tensor) -> Callable[[], object]:
    """Decoding one latent frame at a time by a model of the same widths and depths that is causal: norms per frame.

    Theirs sees the whole clip in its norms and cannot be streamed.
    """
    changes = {"width": case.width, "norm": "frame", "adaptive": "frame"}
    tokenizer = Tokenizer(case.training.tokenizer.replace(changes)).eval()
    with torch.inference_mode():
        ids = tokenizer.encode(video)

    def decode() -> None:
        for _ in tokenizer.decode_stream(ids.split(1, 1)):
            pass

    return torch.inference_mode()(decode)


def main(name: str, what: str, who: str) -> None:
    """Print the cost of one call."""
    torch.set_num_threads(1)
    case = cases()[name]
    if who == "streamed":
        made = streamed(case, case.video())
    else:
        folder = peer.find()
        assert who != "theirs" or folder is not None
        state = their(case, folder) if who == "theirs" and folder else our(case)
        made = call(what, who, state, case.video())
    print(json.dumps(cost(made)._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:4])
