"""Distributions with a known answer over a factorized vocabulary, learned to their true probabilities."""

import math

import pytest
import torch

from smalti.generation import (
    AutoregressiveConfig,
    Condition,
    GuidanceConfig,
    LossConfig,
    MaskedConfig,
    MaskedInput,
    SamplingConfig,
    TokenSamplingConfig,
    autoregressive_loss,
    empty_prompt,
    masked_loss,
    sample,
    sample_autoregressive,
)

TINY = {"levels": (2, 3, 2), "groups": ((0, 1), (2,)), "width": 32, "depth": 1, "heads": 4, "dropout": 0.0}
RATE = 5e-3
GRID = (1, 1, 3)
SEQUENCES = torch.tensor([[0, 7, 3], [0, 11, 4], [5, 7, 4], [9, 1, 9], [9, 2, 3], [11, 11, 11]])
"""Of ids below 12, in six sequences of three. No part of any token is independent of the others."""
TIMES = torch.tensor([[8, 4, 3, 1, 2, 2], [1, 1, 2, 8, 6, 2]])
"""How often each occurs among 20, in class 0 and in class 1."""
TRUE = TIMES / 20
EPOCH = SEQUENCES.repeat(2, 1).repeat_interleave(TIMES.flatten(), 0).view(40, 1, 1, 3)


def trained(config, loss, steps):
    """The batch is the whole distribution four times over; masks and dropped classes are random."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    ids, labels = EPOCH.repeat(4, 1, 1, 1), torch.arange(2).repeat_interleave(20).repeat(4)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss(model, ids, labels, rng).backward()
        optimizer.step()
    return model


def shares_of(ids):
    """The share of each sequence among samples, and of any other at the end."""
    same = (ids.view(-1, 1, 3) == SEQUENCES).all(2).float().mean(0)
    return torch.cat([same, 1 - same.sum(0, keepdim=True)])


def distance(found, wanted):
    """Total variation; of `wanted` nothing is outside the sequences."""
    return 0.5 * ((found[:6] - wanted).abs().sum() + found[6]).item()


def masked_loss_of(model, ids, labels, rng):
    prompt = empty_prompt(len(ids), GRID, labels=labels)
    return masked_loss(model, ids, prompt, LossConfig(smoothing=0.0, class_drop=0.2), rng).mean


def autoregressive_loss_of(model, ids, labels, rng):
    return autoregressive_loss(model, ids, Condition(labels), LossConfig(smoothing=0.0, class_drop=0.2), rng).mean


@pytest.fixture(scope="module")
def masked():
    return trained(MaskedConfig(**TINY, grid=GRID, classes=2, part_layers=1), masked_loss_of, steps=300)


@pytest.fixture(scope="module")
def autoregressive():
    return trained(AutoregressiveConfig(**TINY, grid=GRID, classes=2, part_layers=1), autoregressive_loss_of, steps=150)


@torch.no_grad()
def test_the_masked_model_learns_the_true_marginals(masked):
    """With nothing known, p(token i) is its marginal; in a class, and without one that of the mixture."""
    blank = masked.blank(GRID, 1)
    for condition, mixture in (
        (Condition(torch.tensor([0])), TRUE[0]),
        (Condition(torch.tensor([1])), TRUE[1]),
        (Condition(), TRUE.mean(0)),
    ):
        feature = masked.features(MaskedInput(blank, condition))[0]
        every = masked.factorization.split(torch.arange(12))
        for i in range(3):
            repeated = feature[i].expand(12, -1)
            logits = masked.vocabulary.logits(repeated, every)
            p = sum(x.log_softmax(1).gather(1, every[:, g, None])[:, 0] for g, x in enumerate(logits)).exp()
            marginal = torch.zeros(12).index_add(0, SEQUENCES[:, i], mixture)
            assert 0.5 * (p - marginal).abs().sum() < 0.06


def test_the_masked_model_samples_the_true_joint_distribution(masked):
    """One token a step in random order is a draw from the joint distribution."""
    for label in (0, 1):
        prompt = empty_prompt(2000, GRID, labels=torch.full((2000,), label))
        ids = sample(masked, prompt, SamplingConfig(steps=3, order="random"))
        assert distance(shares_of(ids), TRUE[label]) < 0.1


@torch.no_grad()
def test_the_autoregressive_model_learns_the_true_joint_distribution(autoregressive):
    parts = autoregressive.factorization.split(SEQUENCES).view(6, *GRID, 2)
    for condition, wanted in (
        (Condition(torch.zeros(6).long()), TRUE[0]),
        (Condition(torch.ones(6).long()), TRUE[1]),
        (Condition(), TRUE.mean(0)),
    ):
        logits = autoregressive(parts, condition)
        flat = parts.flatten(0, 3)
        log_p = sum(x.log_softmax(1).gather(1, flat[:, g, None]) for g, x in enumerate(logits))
        p = log_p.view(6, 3).sum(1).exp()
        assert distance(torch.cat([p, 1 - p.sum(0, keepdim=True)]), wanted) < 0.04


def test_the_autoregressive_model_samples_the_true_joint_distribution(autoregressive):
    prompt = empty_prompt(2000, GRID, labels=torch.ones(2000).long())
    ids = sample_autoregressive(autoregressive, prompt, TokenSamplingConfig())
    assert distance(shares_of(ids), TRUE[1]) < 0.05


def test_guidance_moves_towards_what_tells_the_class_from_the_others(masked, autoregressive):
    """In class 1 the fourth sequence is 8 times as likely as in class 0, and gains; the first, 8 times less, loses."""
    prompt = empty_prompt(1000, GRID, labels=torch.ones(1000).long())
    guidance = GuidanceConfig(scale=2.0)
    drawn = sample(masked, prompt, SamplingConfig(steps=3, order="random", guidance=guidance))
    for ids in (drawn, sample_autoregressive(autoregressive, prompt, TokenSamplingConfig(guidance=guidance))):
        found = shares_of(ids)
        assert found[3] > 0.5
        assert found[0] < 0.02


def test_known_tokens_are_continued_as_the_distribution_says(masked):
    """After 9 in the first place, class 0: (9, 1, 9) once and (9, 2, 3) twice."""
    prompt = empty_prompt(2000, GRID, labels=torch.zeros(2000).long())
    prompt.ids[..., 0], prompt.known[..., 0] = 9, True
    found = shares_of(sample(masked, prompt, SamplingConfig(steps=2)))
    assert abs(found[4].item() - 2 / 3) < 0.07
    assert found[3] + found[4] > 0.9


@pytest.mark.parametrize(("part_layers", "valid", "nats"), [(0, 0.5, 2 * math.log(2)), (1, 1.0, math.log(2))])
def test_subtokens_that_depend_on_each_other_need_part_layers(part_layers, valid, nats):
    """Two bits that are equal: drawn at once they agree half of the time, one after the other always."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MaskedConfig(**TINY, grid=(1, 1, 1), part_layers=part_layers)
        model = config.replace({"levels": (2, 2), "groups": ((0,), (1,)), "width": 16}).build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        ids = 3 * torch.randint(2, (64, 1, 1, 1), generator=rng)
        loss = masked_loss(model, ids, empty_prompt(64, (1, 1, 1)), LossConfig(smoothing=0.0), rng).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(loss.item() - nats) < 0.06
    drawn = sample(model, empty_prompt(1000, (1, 1, 1)), SamplingConfig(steps=1))
    assert abs(((drawn == 0) | (drawn == 3)).float().mean().item() - valid) < 0.05
    assert 0.4 < (drawn % 2).float().mean() < 0.6


def test_a_model_learns_a_few_clips_by_heart():
    """Cross-entropy below 0.01 nats a token at every validation share but the last, where all clips look alike."""
    from smalti.generation import validate

    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(12, (4, 2, 2, 2), generator=rng)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedConfig(**TINY, grid=(2, 2, 2), classes=4).build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    prompt = empty_prompt(4, (2, 2, 2), labels=torch.arange(4))
    for _ in range(150):
        optimizer.zero_grad()
        masked_loss(model, ids, prompt, LossConfig(smoothing=0.0, class_drop=0.0), rng).mean.backward()
        optimizer.step()
    found = validate(model, ids, prompt, range(4))
    assert all(x.nats_per_token < 0.05 for x in found.values())
    assert torch.equal(sample(model, prompt, SamplingConfig(steps=3, temperature=0.0)), ids)
