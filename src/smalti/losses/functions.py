"""Loss functions of tensors: pixels and the frames they see, GAN losses on logits, and the one weighted sum of all.

All are computed in float32 or wider. Distances of pixels are means over all elements: with pixels in [-1, 1] an l1 is
twice, an l2 four times that of pixels in [0, 1]. A logit above 0 says "real".
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.errors import ConfigError
from smalti.text import nearest

FLAT_WINDOW, FLAT_DEVIATION = 15, 3 / 127.5
"""Side in pixels of the window around a pixel, and the deviation of the grey levels in it that halves the pixel's
weight: three of 255 grey levels, as in the power of flat blocks of `benchmarks.by_motion`."""

Frames = Literal["random", "all"]
"""`random`: one frame per clip, chosen by the caller's index (MagicMaster); `all`: every frame as a sample."""


def l1(
    recon: Float[Tensor, "b 3 t h w"],
    video: Float[Tensor, "b 3 t h w"],
    weights: Float[Tensor, "#b #3 #t #h #w"] | None = None,
) -> Float[Tensor, ""]:
    """mean |recon - video|, each error times its weight if there are weights."""
    return _mean((widen(recon) - widen(video)).abs(), weights)


def l2(
    recon: Float[Tensor, "b 3 t h w"],
    video: Float[Tensor, "b 3 t h w"],
    weights: Float[Tensor, "#b #3 #t #h #w"] | None = None,
) -> Float[Tensor, ""]:
    """mean (recon - video)^2, each error times its weight if there are weights."""
    return _mean((widen(recon) - widen(video)).square(), weights)


def flat(
    recon: Float[Tensor, "b 3 t h w"],
    video: Float[Tensor, "b 3 t h w"],
    weights: Float[Tensor, "#b #3 #t #h #w"] | None = None,
) -> Float[Tensor, ""]:
    """mean f (recon - video)^2, f = s^2 / (v + s^2): squared errors where the video is flat, hardly any elsewhere.

    v is the variance of the grey levels of the video in the 15 x 15 pixels around a pixel, as many as lie in the frame,
    and s = 3 / 127.5. There errors are seen soonest (a pattern of the token grid, what moved away and left something
    behind), while an `l2` of an image is nearly all at edges and in textures. No published source.
    """
    flatness = flat_share(video)
    return l2(recon, video, flatness if weights is None else flatness * weights)


def flat_share(video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 t h w"]:
    """Return f of `flat`, in (0, 1]: 1 where a 15 x 15 window has one grey level, 1/2 at a deviation of 3 of 255."""
    grey = widen(video.detach()).mean(1).flatten(0, 1).unsqueeze(1)

    def around(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, FLAT_WINDOW, 1, FLAT_WINDOW // 2, count_include_pad=False)

    variance = (around(grey.square()) - around(grey).square()).clamp(min=0)
    share = FLAT_DEVIATION**2 / (variance + FLAT_DEVIATION**2)
    return share.view(video.shape[0], 1, *video.shape[2:])


def _mean(errors: Tensor, weights: Tensor | None) -> Tensor:
    return errors.mean() if weights is None else (errors * weights).mean()


def weigh_frames(video: Float[Tensor, "b 3 t h w"], stride: int, last: float) -> Float[Tensor, "1 1 t 1 1"]:
    """Return a weight for each frame: `last` to 1 for the first frame and the last of every `stride` after it. Their
    mean is 1."""
    frames = torch.arange(video.shape[2], device=video.device)
    weights = torch.ones(len(frames), dtype=widen(video).dtype, device=video.device)
    weights.masked_fill_(frames % stride == 0, last)
    return (weights / weights.mean()).view(1, 1, -1, 1, 1)


def widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """bfloat16 and float16 as float32; float32 and float64 as they are. Losses are computed after it, because a mean
    over 10^6 elements needs more than the 8 bits of bfloat16.
    """
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def random_frames(clips: int, frames: int, rng: torch.Generator) -> Int[Tensor, " clips"]:
    """Return one uniform frame number in [0, frames) per clip, on the CPU: one per clip, in clip order."""
    return torch.randint(frames, (clips,), generator=rng)


def select_frames(video: Float[Tensor, "b 3 t h w"], index: Int[Tensor, " b"] | None) -> Float[Tensor, "n 3 1 h w"]:
    """Frames as one-frame videos. With an index, frame `index[i]` of clip i (n = b); with None, all frames in the
    order (clip, frame), n = b t. Equal for t = 1.

    The index is moved to the video's device. Real and reconstructed clips take the same index.
    """
    if index is None:
        return video.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    index = index.to(video.device)
    return video[torch.arange(video.shape[0], device=video.device), :, index].unsqueeze(2)


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """sum_i weights[i] * losses[i], a scalar. Raises ConfigError unless both have the same, non-empty set of names,
    so that a misspelt weight stops the run at its first step.
    """
    unweighted, unused = sorted(set(losses) - set(weights)), sorted(set(weights) - set(losses))
    if unweighted or unused:
        parts = [f"no weight for the loss {name!r}{nearest(name, unused, ', ')}" for name in unweighted]
        parts += [f"no loss for the weight {name!r}{nearest(name, unweighted, ', ')}" for name in unused]
        raise ConfigError(f"weights: {'; '.join(parts)} (losses: {', '.join(sorted(losses)) or 'none'})")
    if not losses:
        raise ConfigError("weights: there are no losses to weigh; name at least one loss and its weight")
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def hinge_discriminator(real: Float[Tensor, "*real"], fake: Float[Tensor, "*fake"]) -> Float[Tensor, ""]:
    """1/2 mean relu(1 - D(x)) + 1/2 mean relu(1 + D(x̂)). Zero once every |logit| >= 1 has the right sign."""
    return 0.5 * F.relu(1 - widen(real)).mean() + 0.5 * F.relu(1 + widen(fake)).mean()


def hinge_generator(fake: Float[Tensor, "*fake"]) -> Float[Tensor, ""]:
    """-mean D(x̂)."""
    return -widen(fake).mean()


def non_saturating_discriminator(real: Float[Tensor, "*real"], fake: Float[Tensor, "*fake"]) -> Float[Tensor, ""]:
    """mean softplus(-D(x)) + mean softplus(D(x̂)): the cross entropy in nats, 2 ln 2 when D = 0."""
    return F.softplus(-widen(real)).mean() + F.softplus(widen(fake)).mean()


def non_saturating_generator(fake: Float[Tensor, "*fake"]) -> Float[Tensor, ""]:
    """mean softplus(-D(x̂)) = -mean log sigmoid(D(x̂))."""
    return F.softplus(-widen(fake)).mean()


def input_gradient_norms(
    logits: Float[Tensor, "b *positions"], video: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, " b"]:
    """‖∂ΣD/∂x_b‖₂ per sample, differentiable once more. `video` must require grad and have led to `logits`.

    The logits of one sample are summed, not averaged. Where samples of a batch meet inside D (batch norm,
    minibatch deviation) the sum runs over the batch too, as in MagicMaster. Run D in float32 for this: a second
    derivative in bfloat16 is noise.
    """
    (gradient,) = torch.autograd.grad(widen(logits).sum(), video, create_graph=True)
    return torch.linalg.vector_norm(widen(gradient).flatten(1), dim=1)


def r1_penalty(norms: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """R1 (Mescheder et al. 2018, arXiv 1801.04406): mean_b ‖∂D/∂x_b‖², with no factor 1/2.

    StyleGAN2's gamma is twice this one's weight. A weight from pixels in [0, 1] is four times as large for our
    [-1, 1]: MAGVIT's cost of 10 is 40 here.
    """
    return norms.square().mean()


def gradient_penalty(norms: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """mean_b (‖∂D/∂x_b‖₂ - 1)² at real samples, without interpolation: MagicMaster's penalty, weight 1."""
    return (norms - 1).square().mean()


def lazy_factor(step: int, every: int) -> int:
    """Return the factor of a penalty that is computed only at steps divisible by `every`: `every` there, else 0.

    Its mean over steps is 1, so the penalty's weight does not depend on the interval.
    """
    if every < 1:
        raise ValueError(f"every = {every}, must be at least 1")
    return every if step % every == 0 else 0


class Anchors(NamedTuple):
    """Moving averages of the mean logits: the state of LeCAM, kept and saved by the caller."""

    real: Tensor
    fake: Tensor


def update_lecam_ema(
    anchors: Anchors | None, real: Float[Tensor, "*real"], fake: Float[Tensor, "*fake"], decay: float = 0.999
) -> Anchors:
    """decay * anchor + (1 - decay) * mean logit, detached, float32 or wider. None starts at the means of this batch:
    zeros would make LeCAM a penalty of the logits' size for the first 1 / (1 - decay) steps.

    With several ranks pass the means over all ranks as scalars; the anchors then agree on all of them.
    """
    means = Anchors(widen(real.detach()).mean(), widen(fake.detach()).mean())
    if anchors is None:
        return means
    return Anchors(torch.lerp(means.real, anchors.real, decay), torch.lerp(means.fake, anchors.fake, decay))


def lecam(real: Float[Tensor, "*real"], fake: Float[Tensor, "*fake"], anchors: Anchors) -> Float[Tensor, ""]:
    """mean relu(D(x) - anchor_fake)² + mean relu(anchor_real - D(x̂))² (Tseng et al. 2021, arXiv 2104.03310).

    A part of the discriminator's loss. MAGVIT-v2's weight is 0.001.
    """
    toward_fake = F.relu(widen(real) - anchors.fake).square().mean()
    toward_real = F.relu(anchors.real - widen(fake)).square().mean()
    return toward_fake + toward_real


def adaptive_weight(
    grad_reconstruction_norm: Float[Tensor, ""],
    grad_adversarial_norm: Float[Tensor, ""],
    scale: float = 0.75,
    limit: float = 1e4,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """scale * min(‖∇_w L_rec‖ / (‖∇_w L_adv‖ + eps), limit), detached; w is the last layer's weight (VQGAN, Esser et
    al. 2021, arXiv 2012.09841; the default scale is MagicMaster's).
    """
    ratio = grad_reconstruction_norm.detach() / (grad_adversarial_norm.detach() + eps)
    return scale * ratio.clamp(0, limit)


class LastLayerNorms(NamedTuple):
    """The two norms that `adaptive_weight` takes."""

    reconstruction: Tensor
    adversarial: Tensor


def last_layer_norms(
    recon: Float[Tensor, "b 3 t h w"],
    weight: Float[Tensor, "*weight"],
    reconstruction_grad: Float[Tensor, "b 3 t h w"],
    adversarial_grad: Float[Tensor, "b 3 t h w"],
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> LastLayerNorms:
    """‖∂L/∂weight‖₂ of two losses from their gradients at the pixels, as `last_layer_gradients` finds them.

    With several ranks `reduce` gives the mean of a gradient over them, so that all ranks find the norms of the whole
    batch.
    """
    gradients = last_layer_gradients(recon, weight, reconstruction_grad, adversarial_grad)
    return LastLayerNorms(*(torch.linalg.vector_norm(reduce(gradient)) for gradient in gradients))


def last_layer_gradients(
    recon: Float[Tensor, "b 3 t h w"],
    weight: Float[Tensor, "*weight"],
    reconstruction_grad: Float[Tensor, "b 3 t h w"],
    adversarial_grad: Float[Tensor, "b 3 t h w"],
) -> tuple[Float[Tensor, "*weight"], Float[Tensor, "*weight"]]:
    """Return ∂L/∂weight of two losses from their gradients at the pixels, g = ∂L/∂recon, by the chain rule.

    `recon` still has its graph, and keeps it. Only the path from `recon` back to `weight` is walked, so with the last
    layer's weight this costs two small products, where differentiating the losses themselves walks the
    perceptual network and the discriminator a second time.
    """

    def pulled(pixel_grad: Tensor) -> Tensor:
        gradients = torch.autograd.grad(recon, weight, grad_outputs=pixel_grad.to(recon.dtype), retain_graph=True)
        return widen(gradients[0])

    return pulled(reconstruction_grad), pulled(adversarial_grad)
