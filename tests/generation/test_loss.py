"""The loss against its closed form, over masked entries alone, and validation that is the same every time."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from smalti.errors import ConfigError
from smalti.generation import (
    AutoregressiveConfig,
    Condition,
    LossConfig,
    MaskedConfig,
    Prompt,
    autoregressive_loss,
    empty_prompt,
    masked_loss,
    validate,
)

SMALL = {"levels": (4, 3, 5, 2), "groups": ((0, 1), (2, 3)), "width": 24, "depth": 1, "heads": 2, "classes": 5}
GRID = (2, 3, 4)
PLAIN = LossConfig(smoothing=0.0, class_drop=0.0)


def built(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build().double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def masked(**changes):
    return built(MaskedConfig(**SMALL, grid=GRID, dropout=0.0).replace(changes))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def case(count=4):
    ids = torch.randint(120, (count, *GRID), generator=rng(1))
    return ids, empty_prompt(count, GRID, labels=torch.arange(count) % 5)


def seen_by(model):
    """The `MaskedInput` and the rows of every forward pass, as they come."""
    found = []
    model.register_forward_hook(lambda _, inputs, __: found.append((inputs[0], inputs[2])))
    return found


each_unit = pytest.mark.parametrize("unit", ["token", "part"])


@each_unit
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("visible", [0.0, 0.1, 1.0])
def test_the_loss_is_its_closed_form_over_masked_entries(unit, smoothing, visible):
    """sum_masked CE + visible * sum_others CE, where CE = (1 - s) * -log p(x) + s * mean_v -log p(v)."""
    model = masked(unit=unit)
    ids, prompt = case()
    known = torch.rand(ids.shape, generator=rng(3)) < 0.25
    prompt = prompt._replace(known=known, ids=ids)
    passes = seen_by(model)
    found = masked_loss(model, ids, prompt, LossConfig(smoothing=smoothing, class_drop=0.0, visible=visible), rng())
    seen, _ = passes[0]
    hidden = (seen.subtokens == torch.tensor(model.factorization.sizes)).flatten(1, 3)
    assert not (hidden & known.flatten(1)[..., None]).any()
    if unit == "token":
        assert torch.equal(hidden[..., 0], hidden[..., 1])
    parts = model.factorization.split(ids)
    everywhere = torch.ones(4, 24, dtype=torch.bool)
    total, nats, right = 0.0, [], []
    for g, logits in enumerate(model(seen, parts, everywhere)):
        log_p = logits.log_softmax(1).unflatten(0, (4, 24))
        plain = -log_p.gather(2, parts.flatten(1, 3)[..., g, None])[..., 0]
        smooth = (1 - smoothing) * plain - smoothing * log_p.mean(2)
        other = ~hidden[..., g] & ~known.flatten(1)
        total += smooth[hidden[..., g]].sum() + visible * smooth[other].sum()
        nats.append(plain[hidden[..., g]].sum())
        right.append((log_p.argmax(2) == parts.flatten(1, 3)[..., g])[hidden[..., g]].sum())
    assert torch.equal(found.right, torch.stack(right))
    assert torch.allclose(found.total, total, rtol=1e-12)
    assert torch.allclose(found.nats, torch.stack(nats), rtol=1e-12)
    assert torch.equal(found.entries, hidden.sum((0, 1)))
    assert torch.allclose(found.mean, total * 2 / hidden.sum(), rtol=1e-12)


def test_smoothing_is_that_of_torch():
    model = masked()
    ids, prompt = case()
    passes = seen_by(model)
    found = masked_loss(model, ids, prompt, LossConfig(smoothing=0.3, class_drop=0.0), rng())
    seen, rows = passes[0]
    parts = model.factorization.split(ids)
    wanted = sum(
        F.cross_entropy(x, parts.flatten(1, 3)[rows][:, g], label_smoothing=0.3, reduction="sum")
        for g, x in enumerate(model(seen, parts, rows))
    )
    assert torch.allclose(found.total, wanted, rtol=1e-12)


@each_unit
def test_each_sample_has_a_share_of_its_own(unit):
    model = masked(unit=unit)
    ids, prompt = case(64)
    passes = seen_by(model)
    masked_loss(model, ids, prompt, PLAIN, rng())
    masks = torch.tensor(model.factorization.sizes)
    counts = (passes[0][0].subtokens == masks).flatten(1).sum(1)
    assert len(counts.unique()) > 10
    assert counts.min() >= 1


def test_heads_run_where_the_loss_is():
    model = masked()
    ids, prompt = case()
    passes = seen_by(model)
    masked_loss(model, ids, prompt, PLAIN, rng())
    seen, rows = passes[0]
    assert torch.equal(rows, (seen.subtokens[..., 0] == 12).flatten(1))


def test_tokens_under_masks_do_not_reach_the_loss_but_as_targets():
    """The gradient with respect to embeddings of visible tokens is there; of a value that is masked everywhere, it is
    that of the tied head alone, which the mask's own row has not."""
    model = masked()
    ids, prompt = case(1)
    loss = masked_loss(model, ids, prompt, PLAIN, rng(4))
    loss.mean.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.vocabulary.tables[0].weight.grad[12].abs().max() > 0


def test_hints_stand_in_masked_cells_alone():
    model = masked(hints=True)
    ids, prompt = case()
    draft = (ids + 1) % 120
    hinted = torch.rand(ids.shape, generator=rng(5)) < 0.5
    prompt = Prompt(draft, torch.zeros_like(hinted), hinted, prompt.condition)
    passes = seen_by(model)
    found = masked_loss(model, ids, prompt, PLAIN, rng())
    seen, rows = passes[0]
    true, drafted = model.factorization.split(ids), model.factorization.split(draft)
    rows = rows.view(ids.shape)
    assert torch.equal(seen.hinted, hinted & rows)
    assert torch.equal(seen.subtokens[~rows], true[~rows])
    assert torch.equal(seen.subtokens[rows & hinted], drafted[rows & hinted])
    assert (seen.subtokens[rows & ~hinted] == torch.tensor([12, 10])).all()
    assert found.entries.sum() == 2 * rows.sum()


def test_classes_are_dropped_as_often_as_the_config_says():
    model = masked()
    ids, prompt = case(400)
    passes = seen_by(model)
    for share in (0.0, 0.3, 1.0):
        masked_loss(model, ids, prompt, LossConfig(class_drop=share), rng())
        labels = passes.pop()[0].condition.labels
        assert abs((labels == 5).float().mean().item() - share) < 0.06
        assert torch.equal(labels[labels < 5], prompt.condition.labels[labels < 5])


def test_a_loss_is_a_function_of_its_generator():
    model = masked(dropout=0.2)
    ids, prompt = case()
    once, again, other = (masked_loss(model, ids, prompt, LossConfig(), rng(seed)).total for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_sums_of_parts_of_a_batch_are_those_of_the_whole():
    model = masked()
    ids, prompt = case(6)
    whole = validate(model, ids, prompt, range(6))
    pieces = []
    for b in ([0, 1], [2], [3, 4, 5]):
        condition = Condition(prompt.condition.labels[b])
        pieces.append(validate(model, ids[b], Prompt(prompt.ids[b], prompt.known[b], None, condition), b))
    for share, found in whole.items():
        assert torch.allclose(found.nats, sum(p[share].nats for p in pieces), rtol=1e-12)
        assert torch.equal(found.entries, sum(p[share].entries for p in pieces))
        assert torch.equal(found.right, sum(p[share].right for p in pieces))


@each_unit
def test_validation_masks_are_exact_fixed_and_nested(unit):
    model = masked(unit=unit, dropout=0.5)
    ids, prompt = case()
    passes = seen_by(model)
    first = validate(model, ids, prompt, [3, 1, 4, 2])
    assert list(first) == [0.25, 0.5, 0.75, 1.0]
    hidden = [seen.subtokens == torch.tensor(model.factorization.sizes) for seen, _ in passes]
    entries = 24 if unit == "token" else 48
    for share, mask in zip(first, hidden, strict=True):
        assert (mask.flatten(1).sum(1) == share * entries * 48 // entries).all()
    assert all(not (small & ~large).any() for small, large in itertools.pairwise(hidden))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(hidden[1], 2))  # each sample has its own
    validate(model, ids, prompt, [4, 2, 3, 1])
    shuffled = passes[5][0].subtokens == torch.tensor(model.factorization.sizes)
    assert torch.equal(shuffled, hidden[1][[2, 3, 0, 1]])
    torch.manual_seed(5)
    again = validate(model, ids, prompt, [3, 1, 4, 2])
    assert all(torch.equal(first[share].nats, again[share].nats) for share in first)
    assert not first[0.5].total.requires_grad


def test_nats_per_token_is_the_sum_over_parts():
    found = validate(masked(), *case(), range(4))[1.0]
    assert torch.allclose(found.nats_per_token, found.nats.sum() / (4 * 24), rtol=1e-12)
    assert torch.allclose(found.mean, found.nats_per_token, rtol=1e-12)


@pytest.mark.parametrize("part_layers", [0, 2])
def test_the_autoregressive_loss_is_the_log_probability_of_the_ids(part_layers):
    """Token by token and part by part, from separate passes."""
    model = built(AutoregressiveConfig(**SMALL, grid=(1, 2, 3), part_layers=part_layers, dropout=0.0))
    ids = torch.randint(120, (2, 1, 2, 3), generator=rng(1))
    condition = Condition(torch.tensor([4, 0]))
    found = autoregressive_loss(model, ids, condition, PLAIN, None)
    parts = model.factorization.split(ids).flatten(1, 3)
    nats = torch.zeros(2, dtype=torch.float64)
    for i in range(6):
        feature = model.features(parts[:, :i], (1, 2, 3), condition)[:, -1]
        for g in range(2):
            log_p = model.vocabulary.logits_at(g, feature, parts[:, i]).log_softmax(1)
            nats[g] -= log_p.gather(1, parts[:, i, g, None]).sum()
    assert torch.allclose(found.nats, nats, rtol=1e-12)
    assert torch.allclose(found.total, nats.sum(), rtol=1e-12)
    assert found.entries.tolist() == [12, 12]
    with pytest.raises(ConfigError, match="class 9 is outside"):
        autoregressive_loss(model, ids, Condition(torch.tensor([4, 9])), PLAIN, None)


def test_autocast_leaves_the_sums_in_float32():
    model = masked().float()
    ids, prompt = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = masked_loss(model, ids, prompt, LossConfig(), rng())
    assert found.total.dtype == torch.float32
    assert math.isfinite(found.total.item())
