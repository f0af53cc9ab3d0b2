"""One training step of a tokenizer and its discriminator: one forward of the tokenizer, then both updates.

Both networks are updated at once, each against the other as it was, unless the config has them alternate. Gradients
with respect to the reconstructed pixels are linear in the losses, so each is taken once, there: the last layer's norms,
which the adaptive weight compares, follow from them, and their weighted sum is sent back through the tokenizer once.
The plain way runs the tokenizer twice and LPIPS and discriminator backward twice.

Micro-batches and ranks give the gradients of the whole batch. Where a loss is no mean over rows (`distributed`), ranks
exchange what it needs; several micro-batches are surveyed first, with another forward of the tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smalti import losses as loss
from smalti.data.source import mix
from smalti.devices import fast_kernels
from smalti.losses import Anchors, widen
from smalti.quantize.quantizer import watch_latents
from smalti.training.config import GANConfig, OptimizerConfig
from smalti.training.distributed import Part, Whole, cut
from smalti.training.optimizer import clip_gradient, set_lr, update, update_ema
from smalti.training.recorded import Measured
from smalti.training.tokenizer_figures import Begun, TokenizerStep, read
from smalti.training.tokenizer_state import GANState, TrainState


def step(state: TrainState, video: Tensor, places: Sequence[int] | None = None) -> TokenizerStep:
    """Train on one batch of this rank, `b 3 t h w` in [-1, 1]; advances `state`.

    A rank may have fewer rows than others, or none (b = 0): rows count alike, whichever rank has them. `places` are
    those of the rows in the global batch, r, r + W, ... if they are not given. Without a row on any rank nothing is
    learnt, and `rows` of the result is 0.
    """
    (result,) = read(state, [begin(state, video, places)])
    return result


def begin(state: TrainState, video: Tensor, places: Sequence[int] | None = None) -> Begun:
    """Train as `step` does and look at no figure: on a CUDA device nobody waits for the step. At most `late.MOST` steps
    are begun before `read` has their figures."""
    lr = _set_lrs(state)
    if video.shape[2] == 1 and state.config.still_frames > 1:
        video = video.expand(-1, -1, state.config.still_frames, -1, -1)
    parts = cut(state.config, state.step, state.world, video, places)
    if not parts:
        state.step += 1
        return Begun(state.step, lr)
    averages = _averages(state)
    with fast_kernels(state.config.fast_kernels):
        measured, ids = _add_gradients(state, parts)
        figures, restarted = _update(state, measured)
    _restore(state, averages, figures[-1])
    flat = torch.cat([part.flatten() for part in ids]) if ids else None
    return Begun(state.step, lr, parts[0].batch, tuple(measured), figures, flat, restarted)


def _add_gradients(state: TrainState, parts: Sequence[Part]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Add the whole batch's gradients to both networks; return the means of the losses, and the ids of this rank's
    rows, on the device."""
    world, gan = state.world, state.gan
    sums: dict[str, Tensor] = {}
    all_ids: list[Tensor] = []
    whole = survey(state, parts) if len(parts) > 1 else None
    if whole is not None and whole.logits is not None and gan is not None:
        gan.anchors = loss.update_lecam_ema(gan.anchors, *whole.logits)
    for part in parts:
        last = part is parts[-1]
        with _unsynced(state.ddp, last), _unsynced(None if gan is None else gan.ddp, last):
            measured, ids = accumulate(state, part, whole) if state.recorded is None else _replayed(state, part)
        if part.share:
            all_ids.append(ids)
        for name, value in measured.items():
            sums[name] = sums.get(name, torch.zeros((), device=world.device)) + value * part.share
    return dict(zip(sums, world.mean(torch.stack([*sums.values()])), strict=True)), all_ids


def _replayed(state: TrainState, part: Part) -> Measured:
    """Do as `accumulate` for the one part of a batch, recorded: its numbers lie on the device."""
    assert state.recorded is not None
    weights, device = _weights(state), part.video.device
    numbers = [torch.full((), weight, device=device) for weight in weights.values()]  # no copy, which would wait
    thresholds = () if part.hold_below is None else (part.hold_below,)

    def run(video: Tensor, frames: Tensor, *others: Tensor) -> Measured:
        numbers, hold_below = others[: len(weights)], others[len(weights)] if thresholds else None
        inside = part._replace(video=video, frames=frames, hold_below=hold_below)
        return accumulate(state, inside, weights=dict(zip(weights, numbers, strict=True)))

    return state.recorded.run(run, (part.video, part.frames.to(device, non_blocking=True), *numbers, *thresholds))


def accumulate(
    state: TrainState, part: Part, whole: Whole | None = None, weights: Mapping[str, float | Tensor] | None = None
) -> Measured:
    """Add one micro-batch's gradients, times its share of the batch, to both networks; return its losses and ids.

    Without `whole` it is all that this rank has of the batch, and ranks exchange what a loss needs. `weights` of the
    losses are those of the step, if they are not given.
    """
    config, video = state.config, part.video
    with torch.autocast(video.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        with watch_latents(state.tokenizer.quantizer) as latents:
            reconstruction = state.ddp(video, _whole_code(state, part, whole), part.hold_below, check=False)
        if state.codebook is not None:
            state.codebook.collect(latents[0], reconstruction.ids, part.places if part.share else (), state.step)
        # The graph is cut at the pixels: every loss is differentiated down to here, once.
        pixels = widen(reconstruction.video.detach()).requires_grad_()
        pixel_losses = _pixel_losses(state, pixels, part)
        weights = _weights(state) if weights is None else weights
        total = loss.weigh({**pixel_losses, **reconstruction.losses}, weights)
        (at_pixels,) = torch.autograd.grad(total, pixels, retain_graph=bool(reconstruction.losses))
        measured = {**pixel_losses, **reconstruction.losses, "total": total}
        gan = state.gan
        if gan is not None and gan.config.share(state.step) > 0:
            gan_losses, adversarial_at_pixels = _gan_gradients(state, gan, part, pixels, whole)
            weight = None if whole is None else whole.gan_weight
            if weight is None:
                weight = _gan_weight(state, gan.config, part, reconstruction.video, at_pixels, adversarial_at_pixels)
            at_pixels = at_pixels + weight * adversarial_at_pixels
            measured |= gan_losses | {"gan_weight": weight}
    outputs, gradients = [reconstruction.video], [(at_pixels * part.share).to(reconstruction.video.dtype)]
    for name, value in reconstruction.losses.items():  # these reach the encoder by another way than the pixels
        if value.requires_grad:  # not where it is frozen
            outputs, gradients = [*outputs, value], [*gradients, torch.ones_like(value) * (weights[name] * part.share)]
    torch.autograd.backward(outputs, gradients)
    measured["squared_error"] = (pixels.clamp(-1, 1) - video).square().mean()
    return {name: value.detach() for name, value in measured.items()}, reconstruction.ids


def survey(state: TrainState, parts: Sequence[Part]) -> Whole | None:
    """Find what the losses of a part need to know of the whole batch; None if they need nothing.

    The parts are seen once without an update: the tokenizer forward, and for the adaptive weight backward through
    LPIPS and discriminator to the pixels.
    """
    gan = state.gan if state.gan is not None and state.gan.config.share(state.step) > 0 else None
    adaptive = gan is not None and gan.config.adaptive
    lecam = gan is not None and gan.config.lecam > 0
    if not (adaptive or lecam or "batch_entropy" in state.config.weights):
        return None
    sums: dict[str, Tensor] = {}
    averages = _averages(state)
    for part in parts:
        for name, value in _survey_part(state, gan, part).items():
            sums[name] = sums[name] + value * part.share if name in sums else value * part.share
    _restore(state, averages, torch.ones((), device=state.world.device))
    means = {name: state.world.mean(value) for name, value in sums.items()}
    weight = None
    if adaptive and gan is not None:
        norms = [torch.linalg.vector_norm(means[name]) for name in ("reconstruction", "adversarial")]
        weight = loss.adaptive_weight(norms[0], norms[1], scale=gan.config.weight) * gan.config.share(state.step)
    return Whole(means.get("mean_code"), weight, (means["real"], means["fake"]) if lecam else None)


def _survey_part(state: TrainState, gan: GANState | None, part: Part) -> dict[str, Tensor]:
    """Return the means of one part: its soft code, its logits, its two gradients at the decoder's last layer."""
    means: dict[str, Tensor] = {}
    adaptive = gan is not None and gan.config.adaptive

    def keep(mean_code: Tensor) -> Tensor:
        means["mean_code"] = mean_code.detach()
        return mean_code

    half = state.config.precision == "bfloat16"
    with torch.autocast(part.video.device.type, torch.bfloat16, enabled=half), torch.set_grad_enabled(adaptive):
        reconstruction = state.tokenizer(part.video, keep, part.hold_below, check=False)
        if gan is None:
            return means
        pixels = widen(reconstruction.video.detach()).requires_grad_(adaptive)
        fake = gan.discriminator(gan.discriminator.samples(pixels, part.frames))
        if gan.config.lecam:
            with torch.no_grad():
                real = _score_real(state, gan, gan.discriminator, gan.discriminator.samples(part.video, part.frames))
            means |= {"real": widen(real.detach()).mean(), "fake": widen(fake.detach()).mean()}
        if adaptive:
            total = loss.weigh({**_pixel_losses(state, pixels, part), **reconstruction.losses}, _weights(state))
            adversarial = _gan_losses(gan.config)[0](fake)
            at_pixels = [torch.autograd.grad(value, pixels, retain_graph=True)[0] for value in (total, adversarial)]
            last = state.tokenizer.decoder.last_weight
            gradients = loss.last_layer_gradients(reconstruction.video, last, at_pixels[0], at_pixels[1])
            means |= dict(zip(("reconstruction", "adversarial"), gradients, strict=True))
    return means


def _whole_code(state: TrainState, part: Part, whole: Whole | None) -> Callable[[Tensor], Tensor] | None:
    """Return the map from a part's mean soft code to that of the whole batch, with the part's gradient."""
    if whole is not None and whole.mean_code is not None:
        code = whole.mean_code
        return lambda mean_code: code + (mean_code - mean_code.detach())
    if state.world.size > 1:
        return lambda mean_code: state.world.mean(mean_code * part.share) + (mean_code - mean_code.detach())
    return None


def _pixel_losses(state: TrainState, pixels: Tensor, part: Part) -> dict[str, Tensor]:
    """Return the losses between pixels: l1, l2, flat if weighted, lpips and logits if configured."""
    functions = {"l1": loss.l1, "l2": loss.l2, "flat": loss.flat}
    stride, last = state.tokenizer.strides[0], state.config.last_frame_weight
    each = None if last == 1 else loss.weigh_frames(part.video, stride, last)
    losses = {
        name: function(pixels, part.video, each) for name, function in functions.items() if name in state.config.weights
    }
    if state.lpips is not None:
        frames = part.frames if state.config.lpips_frames == "random" else None
        ours, theirs = (loss.select_frames(v, frames).squeeze(2) for v in (pixels, part.video))
        rngs = _dropout_rngs(state, part.places, len(ours)) if state.lpips.dropout else None
        losses["lpips"] = state.lpips(ours, theirs, rngs).mean()
    if state.logits is not None and state.config.logits is not None:
        frames = part.frames if state.config.logits.frames == "random" else None
        ours, theirs = (loss.select_frames(v, frames).squeeze(2) for v in (pixels, part.video))
        losses["logits"] = state.logits(ours, theirs).mean()
    return losses


def _dropout_rngs(state: TrainState, places: Sequence[int], images: int) -> list[torch.Generator]:
    """Return one generator per image of the clips at these places: the same in any micro-batch of any rank."""
    each = range(images // len(places))
    seeds = [mix(state.config.seed, state.step, 1, place, frame) >> 1 for place in places for frame in each]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _weights(state: TrainState) -> dict[str, float]:
    """Return the configured weights, with the entropies' boost of the first steps."""
    config = state.config
    boost = 1 + config.entropy_boost * max(0.0, 1 - state.step / config.entropy_boost_steps)
    return {name: w * (boost if name.endswith("_entropy") else 1) for name, w in config.weights.items()}


def _gan_gradients(
    state: TrainState, gan: GANState, part: Part, pixels: Tensor, whole: Whole | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Add the discriminator's gradients to it; return the losses and the adversarial gradient at the pixels.

    If the updates alternate, the discriminator is updated here, and that gradient is taken through the new one. If both
    are made at once, one backward through the fakes serves both as long as none is beyond the hinge.
    """
    settings, samples, share = gan.config, gan.discriminator.samples, part.share
    alternate = settings.order == "alternate"
    fake = gan.ddp(samples(pixels.detach() if alternate else pixels, part.frames))
    common = not alternate and share > 0 and _opposed(settings, fake)
    tokenizer_loss, discriminator_loss = _gan_losses(settings)
    adversarial = tokenizer_loss(fake)
    if not (alternate or common):
        (at_pixels,) = torch.autograd.grad(adversarial, pixels, retain_graph=True)
    factor = _penalty_factor(state, settings)
    real_samples = samples(part.video, part.frames).requires_grad_(factor > 0)
    real = _score_real(state, gan, gan.ddp, real_samples)
    measured = {"discriminator": discriminator_loss(real, fake)}
    objective = measured["discriminator"]
    if factor:
        norms = loss.input_gradient_norms(real, real_samples)
        penalties = {"r1": loss.r1_penalty, "gradient_norm": loss.gradient_penalty}
        measured["penalty"] = penalties[settings.penalty](norms)
        objective = objective + factor * settings.penalty_weight * measured["penalty"]
    if settings.lecam:
        if whole is None:
            means = [_over_ranks(state, part)(widen(logits.detach()).mean()) for logits in (real, fake)]
            gan.anchors = loss.update_lecam_ema(gan.anchors, means[0], means[1])
        assert gan.anchors is not None
        measured["lecam"] = loss.lecam(real, fake, gan.anchors)
        objective = objective + settings.lecam * measured["lecam"]
    parameters = list(gan.discriminator.parameters())
    torch.autograd.backward(objective * share, inputs=[*parameters, pixels] if common else parameters)
    if common:
        assert pixels.grad is not None
        at_pixels = pixels.grad * (-2 / share)
    elif alternate:
        _move(state, gan)
        adversarial = tokenizer_loss(gan.discriminator(samples(pixels, part.frames)))
        (at_pixels,) = torch.autograd.grad(adversarial, pixels)
    return measured | {"adversarial": adversarial}, at_pixels


def _gan_losses(settings: GANConfig) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Return the losses of the tokenizer and of the discriminator."""
    generators = {"hinge": loss.hinge_generator, "non_saturating": loss.non_saturating_generator}
    discriminators = {"hinge": loss.hinge_discriminator, "non_saturating": loss.non_saturating_discriminator}
    return generators[settings.losses[0]], discriminators[settings.losses[1]]


def _penalty_factor(state: TrainState, settings: GANConfig) -> int:
    """Return how many times as heavy the penalty is at this step, 0 where it is left out."""
    return loss.lazy_factor(state.step, settings.penalty_every) if settings.penalty != "none" else 0


def _score_real(state: TrainState, gan: GANState, network: nn.Module, samples: Tensor) -> Tensor:
    """Return the logits of real samples.

    A second derivative in bfloat16 is noise, so they are scored in float32 where there is a penalty.
    """
    half = state.config.precision == "bfloat16" and not _penalty_factor(state, gan.config)
    with torch.autocast(samples.device.type, torch.bfloat16, enabled=half):
        logits: Tensor = network(samples)
    return logits


def _opposed(settings: GANConfig, fake: Tensor) -> bool:
    """Return whether the discriminator's loss has -1/2 times the gradient of the tokenizer's at every fake.

    mean relu(1 + D) / 2 is (1 + mean D) / 2 where no fake is below -1, and the tokenizer's is -mean D.
    """
    return settings.losses == ("hinge", "hinge") and not settings.lecam and bool((fake > -1).all())


def _move(state: TrainState, gan: GANState) -> None:
    """Update the discriminator within the step, unless its gradient is not finite on any rank."""
    norm = clip_gradient(gan.discriminator, gan.config.optimizer.clip)
    update(gan.optimizer, _not_finite(state, norm))


def _gan_weight(
    state: TrainState, settings: GANConfig, part: Part, video: Tensor, at_pixels: Tensor, adversarial_at_pixels: Tensor
) -> Tensor:
    weight = at_pixels.new_tensor(settings.weight)
    if settings.adaptive:
        last, reduce = state.tokenizer.decoder.last_weight, _over_ranks(state, part)
        norms = loss.last_layer_norms(video, last, at_pixels, adversarial_at_pixels, reduce=reduce)
        weight = loss.adaptive_weight(norms.reconstruction, norms.adversarial, scale=settings.weight)
    return weight * settings.share(state.step)


def _over_ranks(state: TrainState, part: Part) -> Callable[[Tensor], Tensor]:
    """Return the map from a mean over the rows of one rank to that over all rows."""
    world = state.world
    return lambda mean: world.mean(mean * part.share) if world.size > 1 else mean


def _not_finite(state: TrainState, figures: Tensor) -> Tensor:
    """Return 1 where a figure is not finite on any rank, else 0."""
    return state.world.highest(1 - figures.isfinite().all().float())


def _update(state: TrainState, measured: Mapping[str, Tensor]) -> tuple[Tensor, int | None]:
    """Update both networks, or neither if something is not finite on any rank; return what was measured, the norms of
    the gradients and whether it was skipped, and the rows of a table of codes that began anew."""
    config, gan = state.config, state.gan
    trained: list[tuple[torch.nn.Module, torch.optim.Optimizer, OptimizerConfig]]
    trained = [(state.tokenizer, state.optimizer, config.optimizer)]
    if gan is not None and gan.config.order == "together" and gan.config.share(state.step) > 0:
        trained.append((gan.discriminator, gan.optimizer, gan.config.optimizer))
    norms = [clip_gradient(module, settings.clip) for module, _, settings in trained]
    figures = torch.stack([number.to(state.world.device) for number in (*measured.values(), *norms)])
    skip = _not_finite(state, figures)
    for _, optimizer, _ in trained:
        update(optimizer, skip)
    restarted = None
    # Which rows of a table begin anew is for the host to decide.
    late = state.begin_late() if state.codebook is None else None
    if late is not None:
        update_ema(state.averaged, state.tokenizer, late.ema_decay(skip))
    elif not skip:
        rows = None if state.codebook is None else state.codebook.update(state.world, state.optimizer)
        update_ema(state.averaged, state.tokenizer, config.ema_decay(state.updates))
        if state.codebook is not None and rows is not None:
            state.codebook.copy_rows(state.ema.quantizer, rows)
            restarted = len(rows)
        state.updates += 1
    elif state.codebook is not None:
        state.codebook.forget()
    state.step += 1
    return torch.cat([figures, skip[None]]), restarted


def _set_lrs(state: TrainState) -> float:
    """Set both learning rates of this step; return the tokenizer's."""
    optimizers = [(state.optimizer, state.config.optimizer)]
    if (gan := state.gan) is not None:
        optimizers.append((gan.optimizer, gan.config.optimizer))
    for optimizer, settings in optimizers:
        set_lr(optimizer, settings, settings.lr_at(state.step, state.config.steps))
    return state.config.optimizer.lr_at(state.step, state.config.steps)


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
def _restore(state: TrainState, averages: tuple[Anchors | None, list[Tensor]], skip: Tensor) -> None:
    """Put those averages back if `skip` is 1, after a step that was skipped: one NaN would stay in them for good."""
    gan, (anchors, buffers) = state.gan, averages
    if gan is None:
        return
    if gan.anchors is not None:
        if anchors is not None:
            gan.anchors = Anchors(*(torch.where(skip > 0, *pair) for pair in zip(anchors, gan.anchors, strict=True)))
        elif skip:  # the first step with LeCAM
            gan.anchors = None
    for buffer, before in zip(gan.discriminator.buffers(), buffers, strict=True):
        buffer.copy_(torch.where(skip > 0, before, buffer))
