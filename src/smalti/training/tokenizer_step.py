"""One training step of a tokenizer and its adversary: one forward of the tokenizer, then both updates.

The two players move at once, each against the other as it was, unless the config has them alternate: parts of a batch
can then be accumulated and give the gradients of the whole. Gradients with respect to the reconstructed pixels are
linear in the losses, so each is taken once, there: the last layer's norms, which the adaptive weight compares, follow
from them, and their weighted sum is sent back through the tokenizer once. The plain way runs the tokenizer twice and
LPIPS and discriminator backward twice.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from smalti import losses as loss
from smalti.data.shuffle import sample_rng
from smalti.losses import Anchors
from smalti.losses.pixel import widen
from smalti.metrics.codebook import Usage
from smalti.training.config import AdversaryConfig, OptimizerConfig
from smalti.training.distributed import update_ema
from smalti.training.tokenizer_state import Opponent, TrainState


class Measured(NamedTuple):
    """What a step was, for the log; means over ranks and accumulated parts."""

    step: int
    losses: Mapping[str, float]
    """Unweighted, by name; with an adversary also `adversarial`, `discriminator`, `penalty`, `lecam`."""
    total: float
    """The weighted sum that the tokenizer descended, without the adversary."""
    rate: float
    gradient: float
    """Norm of the tokenizer's gradient before clipping."""
    adversary_weight: float
    psnr: float
    """Of the training batch, in dB, on floats."""
    usage: Usage
    """Of this batch's ids on this rank."""
    skipped: bool
    """Whether the update was left out because a loss or gradient was not finite."""

    @property
    def note(self) -> str:
        """The loss and the PSNR."""
        return f"loss {self.total:.4f} psnr {self.psnr:.2f}"


def step(state: TrainState, video: Tensor) -> Measured:
    """Train on one batch of this rank, `b 3 t h w` in [-1, 1]; advances `state`."""
    config, world = state.config, state.world
    # Ranks must make as many parts as each other, and a bad file can leave one of them with fewer rows.
    count = world.least(min(config.accumulate, len(video))) if config.accumulate > 1 else 1
    parts, frames = video.tensor_split(count), _frame_index(state, video).tensor_split(count)
    sums: dict[str, Tensor] = {}
    usage = Usage(state.tokenizer.levels)
    rates = _set_rates(state)
    averages = _averages(state)
    for i, (part, index) in enumerate(zip(parts, frames, strict=True)):
        last = i == len(parts) - 1
        with _unsynced(state.shared, last), _unsynced(None if state.opponent is None else state.opponent.shared, last):
            measured, ids = accumulate(state, part.to(world.device), index, len(part) / len(video))
        usage.update(ids.cpu())
        for name, value in measured.items():
            sums[name] = sums.get(name, torch.zeros((), device=world.device)) + value * (len(part) / len(video))
    means = {name: float(value) for name, value in zip(sums, world.mean(torch.stack([*sums.values()])), strict=True)}
    gradient, skipped = _update(state, all(map(math.isfinite, means.values())))
    if skipped:
        _restore(state, averages)
    return Measured(
        step=state.step,
        losses={n: v for n, v in means.items() if n not in ("total", "adversary_weight", "squared_error")},
        total=means["total"],
        rate=rates,
        gradient=gradient,
        adversary_weight=means.get("adversary_weight", 0.0),
        psnr=-10 * math.log10(means["squared_error"] / 4) if means["squared_error"] > 0 else math.nan,
        usage=usage,
        skipped=skipped,
    )


def accumulate(state: TrainState, video: Tensor, index: Tensor, share: float) -> tuple[dict[str, Tensor], Tensor]:
    """Add one part's gradients, times its share of the batch, to both players; its losses and ids."""
    config = state.config
    with torch.autocast(video.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        reconstruction = state.shared(video)
        # The graph is cut at the pixels: every loss is differentiated down to here, once.
        pixels = widen(reconstruction.video.detach()).requires_grad_()
        pixel_losses = _pixel_losses(state, pixels, video, index)
        weights = _weights(state)
        total = loss.weigh({**pixel_losses, **reconstruction.losses}, weights)
        (at_pixels,) = torch.autograd.grad(total, pixels, retain_graph=bool(reconstruction.losses))
        measured = {**pixel_losses, **reconstruction.losses, "total": total}
        opponent = state.opponent
        if opponent is not None and opponent.config.share(state.step) > 0:
            played, adversarial_at_pixels = _play(state, opponent, video, pixels, index, share)
            weight = _adversary_weight(state, opponent.config, reconstruction.video, at_pixels, adversarial_at_pixels)
            at_pixels = at_pixels + weight * adversarial_at_pixels
            measured |= played | {"adversary_weight": weight}
    outputs, gradients = [reconstruction.video], [(at_pixels * share).to(reconstruction.video.dtype)]
    for name, value in reconstruction.losses.items():  # these reach the encoder by another way than the pixels
        outputs, gradients = [*outputs, value], [*gradients, torch.full_like(value, weights[name] * share)]
    torch.autograd.backward(outputs, gradients)
    measured["squared_error"] = (pixels.clamp(-1, 1) - video).square().mean()
    return {name: value.detach() for name, value in measured.items()}, reconstruction.ids


def _pixel_losses(state: TrainState, pixels: Tensor, video: Tensor, index: Tensor) -> dict[str, Tensor]:
    """The losses between pixels: l1 and l2 where they are weighted, lpips where it is configured."""
    wanted = {"l1": loss.l1, "l2": loss.l2}
    found = {name: function(pixels, video) for name, function in wanted.items() if name in state.config.weights}
    if state.lpips is not None:
        chosen = index if state.config.lpips_frames == "random" else None
        ours, theirs = (loss.select_frames(v, chosen).squeeze(2) for v in (pixels, video))
        rng = sample_rng(state.config.seed, state.step, 1) if state.lpips.dropout else None
        found["lpips"] = state.lpips(ours, theirs, rng).mean()
    return found


def _weights(state: TrainState) -> dict[str, float]:
    """The configured weights, with the entropies' boost of the first steps."""
    config = state.config
    boost = 1 + config.entropy_boost * max(0.0, 1 - state.step / config.entropy_boost_steps)
    return {name: w * (boost if name.endswith("_entropy") else 1) for name, w in config.weights.items()}


def _play(
    state: TrainState, opponent: Opponent, video: Tensor, pixels: Tensor, index: Tensor, share: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The discriminator's gradients added to it; the losses, and the tokenizer's adversarial gradient at the pixels.

    Where the players alternate, the discriminator has moved, and that gradient is taken through the new one. Where both
    move at once, one backward through the fakes serves both as long as none is beyond the hinge.
    """
    adversary, samples = opponent.config, opponent.discriminator.samples
    alternate = adversary.order == "alternate"
    fake = opponent.shared(samples(pixels.detach() if alternate else pixels, index))
    common = not alternate and _opposed(adversary, fake)
    tokenizer_loss, discriminator_loss = {
        "hinge": (loss.hinge_generator, loss.hinge_discriminator),
        "non_saturating": (loss.non_saturating_generator, loss.non_saturating_discriminator),
    }[adversary.loss]
    adversarial = tokenizer_loss(fake)
    if not (alternate or common):
        (at_pixels,) = torch.autograd.grad(adversarial, pixels, retain_graph=True)
    factor = loss.lazy(state.step, adversary.penalty_every) if adversary.penalty != "none" else 0
    real_samples = samples(video, index).requires_grad_(factor > 0)
    # A second derivative in bfloat16 is noise, so the real samples are scored in float32 where there is a penalty.
    half = state.config.precision == "bfloat16" and not factor
    with torch.autocast(video.device.type, torch.bfloat16, enabled=half):
        real = opponent.shared(real_samples)
    measured = {"discriminator": discriminator_loss(real, fake)}
    objective = measured["discriminator"]
    if factor:
        norms = loss.input_gradient_norms(real, real_samples)
        penalties = {"zero_centred": loss.zero_centred, "one_centred": loss.one_centred}
        measured["penalty"] = penalties[adversary.penalty](norms)
        objective = objective + factor * adversary.penalty_weight * measured["penalty"]
    if adversary.lecam:
        means = [state.world.mean(logits.float().mean()) for logits in (real, fake)]
        opponent.anchors = loss.follow(opponent.anchors, means[0], means[1])
        measured["lecam"] = loss.lecam(real, fake, opponent.anchors)
        objective = objective + adversary.lecam * measured["lecam"]
    parameters = list(opponent.discriminator.parameters())
    torch.autograd.backward(objective * share, inputs=[*parameters, pixels] if common else parameters)
    if common:
        assert pixels.grad is not None
        at_pixels = pixels.grad * (-2 / share)
    elif alternate:
        _move(state, opponent)
        adversarial = tokenizer_loss(opponent.discriminator(samples(pixels, index)))
        (at_pixels,) = torch.autograd.grad(adversarial, pixels)
    return measured | {"adversarial": adversarial}, at_pixels


def _opposed(adversary: AdversaryConfig, fake: Tensor) -> bool:
    """Whether the discriminator's loss has -1/2 times the gradient of the tokenizer's at every fake.

    mean relu(1 + D) / 2 is (1 + mean D) / 2 where no fake is below -1, and the tokenizer's is -mean D.
    """
    return adversary.loss == "hinge" and not adversary.lecam and bool((fake > -1).all())


def _move(state: TrainState, opponent: Opponent) -> None:
    """The discriminator's update, within the step; left out where its gradient is not finite on any rank."""
    norm = _clipped(opponent.discriminator, opponent.config.optimizer.clip)
    if not state.world.any(not bool(torch.isfinite(norm))):
        opponent.optimizer.step()
    opponent.optimizer.zero_grad(set_to_none=True)


def _adversary_weight(
    state: TrainState, adversary: AdversaryConfig, video: Tensor, at_pixels: Tensor, adversarial_at_pixels: Tensor
) -> Tensor:
    weight = torch.tensor(adversary.weight, device=video.device)
    if adversary.adaptive:
        last = state.tokenizer.decoder.last_weight
        norms = loss.last_layer_norms(video, last, at_pixels, adversarial_at_pixels, reduce=state.world.mean)
        weight = loss.adaptive_weight(norms.reconstruction, norms.adversarial, scale=adversary.weight)
    return weight * adversary.share(state.step)


def _update(state: TrainState, finite: bool) -> tuple[float, bool]:
    """Both optimizers' steps, unless something is not finite on any rank; then neither moves."""
    config, opponent = state.config, state.opponent
    players: list[tuple[torch.nn.Module, torch.optim.Optimizer, OptimizerConfig]]
    players = [(state.tokenizer, state.optimizer, config.optimizer)]
    if opponent is not None and opponent.config.order == "together" and opponent.config.share(state.step) > 0:
        players.append((opponent.discriminator, opponent.optimizer, opponent.config.optimizer))
    norms = [_clipped(module, settings.clip) for module, _, settings in players]
    skipped = state.world.any(not (finite and all(bool(torch.isfinite(norm)) for norm in norms)))
    for _, optimizer, _ in players:
        if not skipped:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not skipped:
        update_ema(state.average, state.tokenizer, config.ema_decay(state.updates))
        state.updates += 1
    state.step += 1
    return float(norms[0]), skipped


def _clipped(module: torch.nn.Module, clip: float | None) -> Tensor:
    """The norm of the whole gradient, which is cut to `clip`, or left as it is."""
    if clip:
        return torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def _set_rates(state: TrainState) -> float:
    """Set both learning rates of this step; gives the tokenizer's."""
    optimizers = [(state.optimizer, state.config.optimizer)]
    if (opponent := state.opponent) is not None:
        optimizers.append((opponent.optimizer, opponent.config.optimizer))
    for optimizer, settings in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(state.step, state.config.steps)
    return state.config.optimizer.rate(state.step, state.config.steps)


def _frame_index(state: TrainState, video: Tensor) -> Tensor:
    """One frame number per clip of this rank: its share of those drawn for the global batch."""
    clips, frames = video.shape[0], video.shape[2]
    rng = sample_rng(state.config.seed, state.step, 0)
    drawn = loss.random_frames(max(state.config.batch_size, clips * state.world.size), frames, rng)
    return drawn[state.world.rank :: state.world.size][:clips]


def _unsynced(module: torch.nn.Module | None, last: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients in the last part alone."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def _averages(state: TrainState) -> tuple[Anchors | None, list[Tensor]]:
    """What a forward pass of the adversary moves: LeCAM's anchors, and a batch norm's running statistics."""
    if state.opponent is None:
        return None, []
    return state.opponent.anchors, [buffer.clone() for buffer in state.opponent.discriminator.buffers()]


@torch.no_grad()
def _restore(state: TrainState, averages: tuple[Anchors | None, list[Tensor]]) -> None:
    """Put them back after a step that was skipped: one NaN would stay in them for good."""
    if state.opponent is not None:
        state.opponent.anchors, buffers = averages
        for buffer, before in zip(state.opponent.discriminator.buffers(), buffers, strict=True):
            buffer.copy_(before)
