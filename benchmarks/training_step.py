"""A training step against the plain way of it: two forwards of the tokenizer, two passes through LPIPS and D."""

import copy

import torch
from torch import Tensor

from benchmarks.measure import CPU, fastest
from smalti import losses as loss
from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import PatchConfig, StyleGAN2Config
from smalti.losses.perceptual import LPIPS, shapes
from smalti.tokenizer import TokenizerConfig
from smalti.training import tokenizer_state as states
from smalti.training.config import AdversaryConfig, TokenizerTraining
from smalti.training.distributed import World
from smalti.training.tokenizer_state import TrainState
from smalti.training.tokenizer_step import accumulate, step

ALONE = World(0, 1, torch.device("cpu"))
SIZE = 128


def plain_gradients(state: TrainState, video: Tensor, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the tokenizer and of the discriminator by the book, as MagicMaster and most of the field take them.

    The tokenizer runs once without gradient for the discriminator and once with, for itself; the adaptive weight
    differentiates the reconstruction and the adversarial loss down to the last layer, and the sum is differentiated
    once more.
    """
    opponent = state.opponent
    assert opponent is not None
    adversary, samples, discriminator = opponent.config, opponent.discriminator.samples, opponent.discriminator
    with torch.no_grad():
        fake = state.tokenizer(video).video
    hinge = adversary.loss == "hinge"
    real = samples(video, index).requires_grad_()
    fakes, reals = discriminator(samples(fake, index)), discriminator(real)
    lost = (loss.hinge_discriminator if hinge else loss.non_saturating_discriminator)(reals, fakes)
    if adversary.penalty != "none":
        penalty = loss.zero_centred if adversary.penalty == "zero_centred" else loss.one_centred
        lost = lost + adversary.penalty_weight * penalty(loss.input_gradient_norms(reals, real))
    if adversary.lecam:
        lost = lost + adversary.lecam * loss.lecam(reals, fakes, loss.follow(opponent.anchors, reals, fakes))
    of_discriminator = torch.autograd.grad(lost, list(discriminator.parameters()))
    reconstruction = state.tokenizer(video)
    named = {"l1": loss.l1(reconstruction.video, video), "l2": loss.l2(reconstruction.video, video)}
    named = {name: value for name, value in named.items() if name in state.config.weights}
    if state.lpips is not None:
        named["lpips"] = state.lpips(
            *(loss.select_frames(v, None).squeeze(2) for v in (reconstruction.video, video))
        ).mean()
    total = loss.weigh(named | dict(reconstruction.losses), state.config.weights)
    played = (loss.hinge_generator if hinge else loss.non_saturating_generator)(
        discriminator(samples(reconstruction.video, index))
    )
    weight: float | Tensor = adversary.weight
    if adversary.adaptive:
        last = state.tokenizer.decoder.last_weight
        norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (total, played)]
        weight = loss.adaptive_weight(norms[0], norms[1], scale=adversary.weight)
    of_tokenizer = torch.autograd.grad(total + weight * played, list(state.tokenizer.parameters()))
    return list(of_tokenizer), list(of_discriminator)


def plain_step(state: TrainState, video: Tensor) -> None:
    """The plain gradients and both optimizers' steps."""
    assert state.opponent is not None
    gradients = plain_gradients(state, video, torch.zeros(len(video), dtype=torch.int64))
    for module, optimizer, found in zip(
        (state.tokenizer, state.opponent.discriminator),
        (state.optimizer, state.opponent.optimizer),
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
    weights = {name: 0.05 * torch.randn(shape, generator=rng) for name, shape in shapes("vgg").items()}
    return LPIPS("vgg", {name: w.abs() if name.startswith("lin") else w for name, w in weights.items()})


def training(discriminator: PatchConfig | StyleGAN2Config, device: torch.device = CPU) -> TrainState:
    """An image model of 3 M parameters at 128 px with L1, LPIPS (VGG, random weights: time does not ask) and a GAN."""
    config = TokenizerTraining(
        tokenizer=TokenizerConfig(patch=4, width=64, multipliers=(1, 2), strides=((1, 2),)),
        data=ImagesConfig(path=photos("train")),
        steps=1_000_000,
        batch_size=2,
        weights={"l1": 1.0},
        adversary=AdversaryConfig(discriminator=discriminator, adaptive=True, weight=0.75),
    )
    state = states.start(config, World(0, 1, device))
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


def _difference(state: TrainState, video: Tensor) -> float:
    """The largest difference of the two ways' gradients, relative to the largest entry of each parameter's."""
    index = torch.zeros(len(video), dtype=torch.int64)
    wanted = plain_gradients(state, video, index)
    accumulate(state, video, index, 1.0)
    assert state.opponent is not None
    worst = 0.0
    for module, gradients in zip((state.tokenizer, state.opponent.discriminator), wanted, strict=True):
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            if parameter.grad is not None and gradient.abs().max() > 0:
                worst = max(worst, float((parameter.grad - gradient).abs().max() / gradient.abs().max()))
    return worst
