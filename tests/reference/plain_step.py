"""The plain way of a training step: two forwards of the tokenizer, two passes through LPIPS and the discriminator."""

import torch
from torch import Tensor

from smalti import losses as loss
from smalti.training.distributed import World
from smalti.training.tokenizer_state import TrainState

ALONE = World(0, 1, torch.device("cpu"))


def plain_gradients(state: TrainState, video: Tensor, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the tokenizer and of the discriminator as MagicMaster and most of the field take them.

    The tokenizer runs once without gradient for the discriminator and once with, for itself; the adaptive weight
    differentiates the reconstruction and the adversarial loss down to the last layer, and the sum is differentiated
    once more.
    """
    gan = state.gan
    assert gan is not None
    settings, samples, discriminator = gan.config, gan.discriminator.samples, gan.discriminator
    with torch.no_grad():
        fake = state.tokenizer(video).video
    hinge = settings.loss == "hinge"
    hinge_for_tokenizer = (settings.tokenizer_loss or settings.loss) == "hinge"
    real = samples(video, index).requires_grad_()
    fakes, reals = discriminator(samples(fake, index)), discriminator(real)
    lost = (loss.hinge_discriminator if hinge else loss.non_saturating_discriminator)(reals, fakes)
    if settings.penalty != "none":
        penalty = loss.r1_penalty if settings.penalty == "r1" else loss.gradient_penalty
        lost = lost + settings.penalty_weight * penalty(loss.input_gradient_norms(reals, real))
    if settings.lecam:
        lost = lost + settings.lecam * loss.lecam(reals, fakes, loss.update_lecam_ema(gan.anchors, reals, fakes))
    of_discriminator = torch.autograd.grad(lost, list(discriminator.parameters()))
    reconstruction = state.tokenizer(video)
    named = {"l1": loss.l1(reconstruction.video, video), "l2": loss.l2(reconstruction.video, video)}
    named = {name: value for name, value in named.items() if name in state.config.weights}
    if state.lpips is not None:
        named["lpips"] = state.lpips(
            *(loss.select_frames(v, None).squeeze(2) for v in (reconstruction.video, video))
        ).mean()
    if state.logits is not None:
        frames = (loss.select_frames(v, None).squeeze(2) for v in (reconstruction.video, video))
        named["logits"] = state.logits(*frames).mean()
    total = loss.weigh(named | dict(reconstruction.losses), state.config.weights)
    adversarial = (loss.hinge_generator if hinge_for_tokenizer else loss.non_saturating_generator)(
        discriminator(samples(reconstruction.video, index))
    )
    weight: float | Tensor = settings.weight
    if settings.adaptive:
        last = state.tokenizer.decoder.last_weight
        norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (total, adversarial)]
        weight = loss.adaptive_weight(norms[0], norms[1], scale=settings.weight)
    of_tokenizer = torch.autograd.grad(total + weight * adversarial, list(state.tokenizer.parameters()))
    return list(of_tokenizer), list(of_discriminator)
