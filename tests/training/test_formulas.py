"""Five steps of both networks, every formula written out again: schedules, boosts, penalties, clipping, AdamW, EMA."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from smalti.discriminators import PatchConfig
from smalti.training.config import GANConfig, OptimizerConfig
from smalti.training.tokenizer_step import step
from tests.training.test_cut import clips, config_of, start

STEPS = 5
TOKENIZER = OptimizerConfig(lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, warmup=2, final=0.1, clip=0.5)
DISCRIMINATOR = OptimizerConfig(
    lr=5e-3, betas=(0.5, 0.9), weight_decay=0.2, warmup=3, schedule="constant", clip=1.5
)  # fmt: skip
WEIGHTS = {"l1": 0.7, "l2": 1.3, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25}
COSINE = [0.1 + 0.9 * (1 + math.cos(math.pi * n / 3)) / 2 for n in range(3)]
RATES = [0.5e-2, 1e-2, *(1e-2 * share for share in COSINE)]
"""Of the tokenizer: two steps of warm-up, then the cosine over the other three."""
DISCRIMINATOR_RATES = [5e-3 / 3, 10e-3 / 3, 5e-3, 5e-3, 5e-3]
BOOSTS = [3.0, 1 + 2 * 2 / 3, 1 + 2 / 3, 1.0, 1.0]
"""1 + b, down to 1 over three steps, for b = 2."""
SHARES = [0.0, 0.5, 1.0, 1.0, 1.0]
"""Of the adversarial weight: from step 1 on, over two steps."""
FACTORS = [2, 0, 2, 0, 2]
"""Of the penalty of every second step."""
DECAYS = [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]
"""Of the EMA weights: (1 + n) / (10 + n), at most 0.3."""
LOSSES = {"hinge": (lambda d: F.relu(1 - d).mean() / 2, lambda d: F.relu(1 + d).mean() / 2, lambda d: -d.mean()),
          "non_saturating": tuple(lambda d, s=s: F.softplus(s * d).mean() for s in (-1, 1, -1))}  # fmt: skip
"""Losses of real and of fake logits for the discriminator, and of fake ones for the tokenizer."""


def optimizer_of(module, settings):
    """AdamW with decay on what has two axes or more: this model has no embeddings and no learned positions."""
    parameters = [*module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=settings.betas)


def move(module, optimizer, gradients, rate, limit):
    """One step of AdamW, with the whole gradient cut to a norm of at most `limit`; says whether it was cut."""
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient * min(1.0, limit / (norm + 1e-6))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm > limit


def plain_run(state, config):
    """The same run by plain passes; returns whether each step's gradients were clipped."""
    tokenizer, judge, gan = state.tokenizer, state.gan.discriminator, config.gan
    optimizers = optimizer_of(tokenizer, TOKENIZER), optimizer_of(judge, DISCRIMINATOR)
    anchors, cut = None, []
    real_loss, fake_loss, fooled = LOSSES[gan.loss]
    for n in range(STEPS):
        video = clips(4, seed=n)
        found = tokenizer(video)
        losses = {"l1": (found.video - video).abs().mean(), "l2": ((found.video - video) ** 2).mean(), **found.losses}
        boosts = {name: BOOSTS[n] if name in ("token_entropy", "batch_entropy") else 1.0 for name in WEIGHTS}
        total = sum(boosts[name] * weight * losses[name] for name, weight in WEIGHTS.items())
        of_judge = None
        if SHARES[n]:
            adversarial = fooled(judge(judge.samples(found.video)))
            last = tokenizer.decoder.last_weight
            norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (total, adversarial)]
            weight = gan.weight * min(norms[0] / (norms[1] + 1e-4), 1e4) * SHARES[n]
            total = total + weight * adversarial
            real = judge.samples(video).requires_grad_()
            d_real, d_fake = judge(real), judge(judge.samples(found.video.detach()))
            lost = real_loss(d_real) + fake_loss(d_fake)
            (slope,) = torch.autograd.grad(d_real.sum(), real, create_graph=True)
            lost = lost + FACTORS[n] * 2.0 * (slope**2).flatten(1).sum(1).mean()
            means = [d.detach().mean() for d in (d_real, d_fake)]
            anchors = means if anchors is None else [0.999 * a + 0.001 * m for a, m in zip(anchors, means, strict=True)]
            lecam = (F.relu(d_real - anchors[1]) ** 2).mean() + (F.relu(anchors[0] - d_fake) ** 2).mean()
            of_judge = torch.autograd.grad(lost + 0.3 * lecam, [*judge.parameters()])
        of_tokenizer = torch.autograd.grad(total, [*tokenizer.parameters()])
        cut.append(move(tokenizer, optimizers[0], of_tokenizer, RATES[n], TOKENIZER.clip))
        if of_judge is not None:
            cut.append(move(judge, optimizers[1], of_judge, DISCRIMINATOR_RATES[n], DISCRIMINATOR.clip))
        with torch.no_grad():
            for average, live in zip(state.ema.parameters(), tokenizer.parameters(), strict=True):
                average.copy_(DECAYS[n] * average + (1 - DECAYS[n]) * live)
    return cut, anchors


@pytest.mark.parametrize("loss", LOSSES)
def test_five_steps_are_those_of_the_formulas_written_out(loss):
    gan = GANConfig(
        discriminator=PatchConfig(width=4, frames="all"), loss=loss, weight=0.75, adaptive=True, start=1, ramp=2,
        penalty="r1", penalty_weight=2.0, penalty_every=2, lecam=0.3, optimizer=DISCRIMINATOR,
    )  # fmt: skip
    changes = {"gan": gan, "steps": STEPS, "batch_size": 4, "optimizer": TOKENIZER, "ema": 0.3, "weights": WEIGHTS}
    boost = {"entropy_boost": 2.0, "entropy_boost_steps": 3}
    config = config_of("lfq", "none", "fixed").replace(changes | boost)
    state = start(config)
    with torch.no_grad():
        for average in state.ema.parameters():
            average.mul_(0.5)  # so that it has somewhere to go from the first step on
    plain = copy.deepcopy(state)
    cut, anchors = plain_run(plain, config)
    assert any(cut)
    for n in range(STEPS):
        measured = step(state, clips(4, seed=n))
        assert math.isclose(measured.lr, RATES[n])
    for kind in ("tokenizer", "ema"):
        for (name, ours), theirs in zip(
            getattr(state, kind).named_parameters(), getattr(plain, kind).parameters(), strict=True
        ):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-8), f"{kind}.{name}"
    for (name, ours), theirs in zip(
        state.gan.discriminator.named_parameters(), plain.gan.discriminator.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-8), name
    assert torch.allclose(torch.stack([*state.gan.anchors]), torch.stack(anchors), rtol=1e-9)
