"""One training step of a tokenizer and its discriminator: one forward of the tokenizer, then both updates.

Both networks are updated at once, each against the other as it was, unless the config has them alternate: micro-batches
can then be accumulated and give the gradients of the whole. Gradients with respect to the reconstructed pixels are
linear in the losses, so each is taken once, there: the last layer's norms, which the adaptive weight compares, follow
from them, and their weighted sum is sent back through the tokenizer once. The plain way runs the tokenizer twice and
LPIPS and discriminator backward twice.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from smalti import losses as loss
from smalti.data.shuffle import sample_rng
from smalti.losses import Anchors, widen
from smalti.metrics.codebook import Usage
from smalti.training.config import GANConfig, OptimizerConfig
from smalti.training.optimizer import clip_gradient, update_ema
from smalti.training.tokenizer_state import GANState, TrainState


class TokenizerStep(NamedTuple):
    """The figures of a step; means over ranks and micro-batches."""

    step: int
    losses: Mapping[str, float]
    """Unweighted losses by name; with a GAN also `adversarial`, `discriminator`, `penalty`, `lecam`."""
    total: float
    """The weighted sum that the tokenizer minimises, without the adversarial loss."""
    lr: float
    grad_norm: float
    """Norm of the tokenizer's gradient before clipping."""
    gan_weight: float
    psnr: float
    """PSNR of the training batch in dB, on floats."""
    usage: Usage
    """Usage of the codebook on this rank: by this batch, or in a run by all batches since the last line of the log."""
    skipped: bool
    """Whether the update was left out because a loss or gradient was not finite."""

    bad_files: int = 0
    """Files of the run that could not be read so far, on this rank."""

    @property
    def note(self) -> str:
        """The loss and the PSNR."""
        return f"loss {self.total:.4f} psnr {self.psnr:.2f}"

    def line(self) -> dict[str, Any]:
        """Return the line for log.jsonl."""
        use = self.usage.summary(pixels=1)
        return {
            **{"step": self.step, "total": self.total, "psnr": self.psnr},
            **{f"loss/{name}": value for name, value in self.losses.items()},
            **{"lr": self.lr, "grad_norm": self.grad_norm, "gan_weight": self.gan_weight},
            **{"usage": use.share, "distinct": use.distinct, "perplexity": use.perplexity, "tokens": use.tokens},
            **{"skipped": self.skipped, "bad_files": self.bad_files},
        }


def step(state: TrainState, video: Tensor) -> TokenizerStep:
    """Train on one batch of this rank, `b 3 t h w` in [-1, 1]; advances `state`."""
    config, world = state.config, state.world
    # Ranks must make equally many micro-batches, and a bad file can leave one of them with fewer rows.
    count = world.min(min(config.accumulate, len(video))) if config.accumulate > 1 else 1
    parts, frames = video.tensor_split(count), _frame_index(state, video).tensor_split(count)
    sums: dict[str, Tensor] = {}
    usage = Usage(state.tokenizer.levels)
    lr = _set_lrs(state)
    averages = _averages(state)
    for i, (part, index) in enumerate(zip(parts, frames, strict=True)):
        last = i == len(parts) - 1
        with _unsynced(state.ddp, last), _unsynced(None if state.gan is None else state.gan.ddp, last):
            measured, ids = accumulate(state, part.to(world.device), index, len(part) / len(video))
        usage.update(ids.cpu())
        for name, value in measured.items():
            sums[name] = sums.get(name, torch.zeros((), device=world.device)) + value * (len(part) / len(video))
    means = {name: float(value) for name, value in zip(sums, world.mean(torch.stack([*sums.values()])), strict=True)}
    grad_norm, skipped = _update(state, all(map(math.isfinite, means.values())))
    if skipped:
        _restore(state, averages)
    return TokenizerStep(
        step=state.step,
        losses={n: v for n, v in means.items() if n not in ("total", "gan_weight", "squared_error")},
        total=means["total"],
        lr=lr,
        grad_norm=grad_norm,
        gan_weight=means.get("gan_weight", 0.0),
        psnr=-10 * math.log10(means["squared_error"] / 4) if means["squared_error"] > 0 else math.nan,
        usage=usage,
        skipped=skipped,
    )


def accumulate(state: TrainState, video: Tensor, index: Tensor, share: float) -> tuple[dict[str, Tensor], Tensor]:
    """Add one micro-batch's gradients, times its share of the batch, to both networks; return its losses and ids."""
    config = state.config
    with torch.autocast(video.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        reconstruction = state.ddp(video)
        # The graph is cut at the pixels: every loss is differentiated down to here, once.
        pixels = widen(reconstruction.video.detach()).requires_grad_()
        pixel_losses = _pixel_losses(state, pixels, video, index)
        weights = _weights(state)
        total = loss.weigh({**pixel_losses, **reconstruction.losses}, weights)
        (at_pixels,) = torch.autograd.grad(total, pixels, retain_graph=bool(reconstruction.losses))
        measured = {**pixel_losses, **reconstruction.losses, "total": total}
        gan = state.gan
        if gan is not None and gan.config.share(state.step) > 0:
            gan_losses, adversarial_at_pixels = _gan_gradients(state, gan, video, pixels, index, share)
            weight = _gan_weight(state, gan.config, reconstruction.video, at_pixels, adversarial_at_pixels)
            at_pixels = at_pixels + weight * adversarial_at_pixels
            measured |= gan_losses | {"gan_weight": weight}
    outputs, gradients = [reconstruction.video], [(at_pixels * share).to(reconstruction.video.dtype)]
    for name, value in reconstruction.losses.items():  # these reach the encoder by another way than the pixels
        outputs, gradients = [*outputs, value], [*gradients, torch.full_like(value, weights[name] * share)]
    torch.autograd.backward(outputs, gradients)
    measured["squared_error"] = (pixels.clamp(-1, 1) - video).square().mean()
    return {name: value.detach() for name, value in measured.items()}, reconstruction.ids


def _pixel_losses(state: TrainState, pixels: Tensor, video: Tensor, index: Tensor) -> dict[str, Tensor]:
    """Return the losses between pixels: l1 and l2 if they are weighted, lpips and logits if they are configured."""
    functions = {"l1": loss.l1, "l2": loss.l2}
    losses = {name: function(pixels, video) for name, function in functions.items() if name in state.config.weights}
    if state.lpips is not None:
        frames = index if state.config.lpips_frames == "random" else None
        ours, theirs = (loss.select_frames(v, frames).squeeze(2) for v in (pixels, video))
        rng = sample_rng(state.config.seed, state.step, 1) if state.lpips.dropout else None
        losses["lpips"] = state.lpips(ours, theirs, rng).mean()
    if state.logits is not None and state.config.logits is not None:
        frames = index if state.config.logits.frames == "random" else None
        ours, theirs = (loss.select_frames(v, frames).squeeze(2) for v in (pixels, video))
        losses["logits"] = state.logits(ours, theirs).mean()
    return losses


def _weights(state: TrainState) -> dict[str, float]:
    """Return the configured weights, with the entropies' boost of the first steps."""
    config = state.config
    boost = 1 + config.entropy_boost * max(0.0, 1 - state.step / config.entropy_boost_steps)
    return {name: w * (boost if name.endswith("_entropy") else 1) for name, w in config.weights.items()}


def _gan_gradients(
    state: TrainState, gan: GANState, video: Tensor, pixels: Tensor, index: Tensor, share: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Add the discriminator's gradients to it; return the losses and the adversarial gradient at the pixels.

    If the updates alternate, the discriminator is updated here, and that gradient is taken through the new one. If both
    are made at once, one backward through the fakes serves both as long as none is beyond the hinge.
    """
    settings, samples = gan.config, gan.discriminator.samples
    alternate = settings.order == "alternate"
    fake = gan.ddp(samples(pixels.detach() if alternate else pixels, index))
    common = not alternate and _opposed(settings, fake)
    generators = {"hinge": loss.hinge_generator, "non_saturating": loss.non_saturating_generator}
    discriminators = {"hinge": loss.hinge_discriminator, "non_saturating": loss.non_saturating_discriminator}
    tokenizer_loss, discriminator_loss = generators[settings.losses[0]], discriminators[settings.losses[1]]
    adversarial = tokenizer_loss(fake)
    if not (alternate or common):
        (at_pixels,) = torch.autograd.grad(adversarial, pixels, retain_graph=True)
    factor = loss.lazy_factor(state.step, settings.penalty_every) if settings.penalty != "none" else 0
    real_samples = samples(video, index).requires_grad_(factor > 0)
    # A second derivative in bfloat16 is noise, so the real samples are scored in float32 where there is a penalty.
    half = state.config.precision == "bfloat16" and not factor
    with torch.autocast(video.device.type, torch.bfloat16, enabled=half):
        real = gan.ddp(real_samples)
    measured = {"discriminator": discriminator_loss(real, fake)}
    objective = measured["discriminator"]
    if factor:
        norms = loss.input_gradient_norms(real, real_samples)
        penalties = {"r1": loss.r1_penalty, "gradient_norm": loss.gradient_penalty}
        measured["penalty"] = penalties[settings.penalty](norms)
        objective = objective + factor * settings.penalty_weight * measured["penalty"]
    if settings.lecam:
        means = [state.world.mean(logits.float().mean()) for logits in (real, fake)]
        gan.anchors = loss.update_lecam_ema(gan.anchors, means[0], means[1])
        measured["lecam"] = loss.lecam(real, fake, gan.anchors)
        objective = objective + settings.lecam * measured["lecam"]
    parameters = list(gan.discriminator.parameters())
    torch.autograd.backward(objective * share, inputs=[*parameters, pixels] if common else parameters)
    if common:
        assert pixels.grad is not None
        at_pixels = pixels.grad * (-2 / share)
    elif alternate:
        _move(state, gan)
        adversarial = tokenizer_loss(gan.discriminator(samples(pixels, index)))
        (at_pixels,) = torch.autograd.grad(adversarial, pixels)
    return measured | {"adversarial": adversarial}, at_pixels


def _opposed(settings: GANConfig, fake: Tensor) -> bool:
    """Return whether the discriminator's loss has -1/2 times the gradient of the tokenizer's at every fake.

    mean relu(1 + D) / 2 is (1 + mean D) / 2 where no fake is below -1, and the tokenizer's is -mean D.
    """
    return settings.losses == ("hinge", "hinge") and not settings.lecam and bool((fake > -1).all())


def _move(state: TrainState, gan: GANState) -> None:
    """Update the discriminator within the step, unless its gradient is not finite on any rank."""
    norm = clip_gradient(gan.discriminator, gan.config.optimizer.clip)
    if not state.world.any(not bool(torch.isfinite(norm))):
        gan.optimizer.step()
    gan.optimizer.zero_grad(set_to_none=True)


def _gan_weight(
    state: TrainState, settings: GANConfig, video: Tensor, at_pixels: Tensor, adversarial_at_pixels: Tensor
) -> Tensor:
    weight = torch.tensor(settings.weight, device=video.device)
    if settings.adaptive:
        last = state.tokenizer.decoder.last_weight
        norms = loss.last_layer_norms(video, last, at_pixels, adversarial_at_pixels, reduce=state.world.mean)
        weight = loss.adaptive_weight(norms.reconstruction, norms.adversarial, scale=settings.weight)
    return weight * settings.share(state.step)


def _update(state: TrainState, finite: bool) -> tuple[float, bool]:
    """Update both networks, or neither if something is not finite on any rank; return grad_norm and whether skipped."""
    config, gan = state.config, state.gan
    trained: list[tuple[torch.nn.Module, torch.optim.Optimizer, OptimizerConfig]]
    trained = [(state.tokenizer, state.optimizer, config.optimizer)]
    if gan is not None and gan.config.order == "together" and gan.config.share(state.step) > 0:
        trained.append((gan.discriminator, gan.optimizer, gan.config.optimizer))
    norms = [clip_gradient(module, settings.clip) for module, _, settings in trained]
    skipped = state.world.any(not (finite and all(bool(torch.isfinite(norm)) for norm in norms)))
    for _, optimizer, _ in trained:
        if not skipped:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not skipped:
        update_ema(state.ema, state.tokenizer, config.ema_decay(state.updates))
        state.updates += 1
    state.step += 1
    return float(norms[0]), skipped


def _set_lrs(state: TrainState) -> float:
    """Set both learning rates of this step; return the tokenizer's."""
    optimizers = [(state.optimizer, state.config.optimizer)]
    if (gan := state.gan) is not None:
        optimizers.append((gan.optimizer, gan.config.optimizer))
    for optimizer, settings in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(state.step, state.config.steps)
    return state.config.optimizer.lr_at(state.step, state.config.steps)


def _frame_index(state: TrainState, video: Tensor) -> Tensor:
    """Return one frame number per clip of this rank: its share of those for the global batch."""
    clips, frames = video.shape[0], video.shape[2]
    rng = sample_rng(state.config.seed, state.step, 0)
    numbers = loss.random_frames(max(state.config.batch_size, clips * state.world.size), frames, rng)
    return numbers[state.world.rank :: state.world.size][:clips]


def _unsynced(module: torch.nn.Module | None, last: bool) -> AbstractContextManager[None]:
    """Return the context in which ranks exchange gradients in the last micro-batch alone."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def _averages(state: TrainState) -> tuple[Anchors | None, list[Tensor]]:
    """Return what a forward pass of the discriminator changes: LeCAM's anchors, a batch norm's running statistics."""
    if state.gan is None:
        return None, []
    return state.gan.anchors, [buffer.clone() for buffer in state.gan.discriminator.buffers()]


@torch.no_grad()
def _restore(state: TrainState, averages: tuple[Anchors | None, list[Tensor]]) -> None:
    """Put those averages back after a step that was skipped: one NaN would stay in them for good."""
    if state.gan is not None:
        state.gan.anchors, buffers = averages
        for buffer, before in zip(state.gan.discriminator.buffers(), buffers, strict=True):
            buffer.copy_(before)
