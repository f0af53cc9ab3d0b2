"""A training step against the plain way of it: two forwards of the tokenizer, two passes through LPIPS and D; and, on
a GPU, a step that is recorded as a CUDA graph against one that is not."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import CPU, fastest
from smalti.data import Batch, ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import PatchConfig, StyleGAN2Config
from smalti.families import load
from smalti.losses.perceptual import LPIPS, lpips_shapes
from smalti.tokenizer import TokenizerConfig
from smalti.training.ahead import Copies
from smalti.training.config import GANConfig, MuonConfig, OptimizerConfig, TokenizerTraining
from smalti.training.distributed import Part, World
from smalti.training.tokenizer_figures import read
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.training.tokenizer_step import accumulate, begin, step
from smalti.video import to_video
from tests.reference.plain_step import plain_gradients

SIZE = 128


def plain_step(state: TrainState, video: Tensor) -> None:
    """The plain gradients and both optimizers' steps."""
    assert state.gan is not None
    gradients = plain_gradients(state, video, torch.zeros(len(video), dtype=torch.int64))
    for module, optimizer, found in zip(
        (state.tokenizer, state.gan.discriminator),
        (state.optimizer, state.gan.optimizer),
        gradients,
        strict=True,
    ):
        for parameter, gradient in zip(module.parameters(), found, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


def random_lpips() -> LPIPS:
    """VGG's LPIPS with random weights: time does not ask what they are."""
    rng = torch.Generator().manual_seed(0)
    weights = {name: 0.05 * torch.randn(shape, generator=rng) for name, shape in lpips_shapes("vgg").items()}
    return LPIPS("vgg", {name: w.abs() if name.startswith("lin") else w for name, w in weights.items()})


def training(discriminator: PatchConfig | StyleGAN2Config, device: torch.device = CPU) -> TrainState:
    """An image model of 3 M parameters at 128 px with L1, LPIPS (VGG, random weights: time does not ask) and a GAN."""
    config = TokenizerTraining(
        tokenizer=TokenizerConfig(patch=4, width=64, multipliers=(1, 2), strides=((1, 2),)),
        data=ImagesConfig(path=photos("train")),
        steps=1_000_000,
        batch_size=2,
        weights={"l1": 1.0},
        gan=GANConfig(discriminator=discriminator, adaptive=True, weight=0.75),
    )
    state = start_tokenizer(config, World(0, 1, device))
    state.lpips = random_lpips().to(device)
    state.config = config.model_copy(update={"weights": {"l1": 1.0, "lpips": 1.0}})
    return state


def measure(device: torch.device = CPU) -> tuple[str, list[dict[str, object]]]:
    """Seconds per step of both ways, and the largest difference of their gradients."""
    rows: list[dict[str, object]] = []
    video = torch.rand(2, 3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    video = video.to(device)
    for name, discriminator in (("patch", PatchConfig()), ("stylegan2", StyleGAN2Config.parse({"size": SIZE}))):
        one, two = training(discriminator, device), training(discriminator, device)
        difference = _difference(copy.deepcopy(one), video)
        times = fastest(
            {"ours": lambda s=one: step(s, video), "plain": lambda s=two: plain_step(s, video)}, rounds=3, device=device
        )
        rows.append(
            {
                "discriminator": name,
                "ours_s": times["ours"],
                "plain_s": times["plain"],
                "ratio": times["plain"] / times["ours"],
                "gradient_difference": difference,
            }
        )
    return (
        f"a GAN step at 2x{SIZE}x{SIZE} with LPIPS and adaptive weight; gradient_difference: relative, float32",
        rows,
    )


def measure_recorded(device: torch.device) -> tuple[str, list[dict[str, object]]]:
    """Seconds per step of the training of smalti/tiny-image-2, with `cuda_graph` and without: where each step is read,
    where ten are read together, and where the batch of the next one is copied beside them, too."""
    config = TokenizerTraining(
        tokenizer=load("smalti/tiny-image-2").config,
        data=ImagesConfig(path=photos("train")),
        steps=1_000_000,
        batch_size=128,
        weights={"l2": 1.0, "batch_entropy": -0.001},
        optimizer=OptimizerConfig(muon=MuonConfig(turns=3, precision="bfloat16")),
        precision="bfloat16",
        fast_kernels=True,
    )
    pixels = torch.randint(0, 256, (128, 1, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    loops = {}
    for name in ("plain", "recorded"):
        state = start_tokenizer(config.replace({"cuda_graph": name == "recorded"}), World(0, 1, device))
        loops |= {f"{name}, {how}": loop for how, loop in ways(state, pixels).items()}
        for _ in range(3):  # the second is recorded
            step(state, to_video(pixels.to(device)))
    times = {name: seconds / TOGETHER for name, seconds in fastest(loops, rounds=5, device=device).items()}
    base = times["plain, each is read"]
    rows = [{"steps": name, "s": seconds, "ratio": base / seconds} for name, seconds in times.items()]
    return f"a step of smalti/tiny-image-2's training, 128 x 64 x 64, of {TOGETHER}; ratio: to the first", rows


TOGETHER = 10
"""Steps that are timed, and read, together."""


def ways(state: TrainState, pixels: Tensor) -> dict[str, Callable[[], object]]:
    """The loops over `TOGETHER` steps whose bytes come from the host: read one by one, read together, and with the
    copies ahead."""
    rows, device = len(pixels), state.world.device
    batch = Batch(pixels, ("",) * rows, 0, (None,) * rows, tuple(range(rows)), rows)

    def each() -> object:
        return [step(state, batch.to(device).video) for _ in range(TOGETHER)]

    def together() -> object:
        return read(state, [begin(state, batch.to(device).video) for _ in range(TOGETHER)])

    def ahead() -> object:
        copies, begun = Copies(device), []
        on_its_way = copies.begin(batch)
        for _ in range(TOGETHER):
            there = copies.finish(on_its_way)
            begun.append(begin(state, there.video))
            on_its_way = copies.begin(batch)
        return read(state, begun)

    return {"each is read": each, "ten are read together": together, "and copied ahead": ahead}


def _difference(state: TrainState, video: Tensor) -> float:
    """The largest difference of the two ways' gradients, relative to the largest entry of each parameter's."""
    index = torch.zeros(len(video), dtype=torch.int64)
    wanted = plain_gradients(state, video, index)
    accumulate(state, Part(video, tuple(range(len(video))), index, 1.0, len(video)))
    assert state.gan is not None
    worst = 0.0
    for module, gradients in zip((state.tokenizer, state.gan.discriminator), wanted, strict=True):
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            if parameter.grad is not None and gradient.abs().max() > 0:
                worst = max(worst, float((parameter.grad - gradient).abs().max() / gradient.abs().max()))
    return worst
