"""The transformers: sizes, attention against its formula, rotations, what sees what, and the cache."""

import math

import pytest
import torch
from pydantic import ValidationError

from smalti.errors import ConfigError
from smalti.generation import AutoregressiveConfig, Condition, MaskedConfig, MaskedInput
from smalti.generation.blocks import SIZES, Attention, TransformerBlock, drop, grid_positions, rope
from smalti.nn.causal import Stream

LFQ18 = (2,) * 18
SMALL = {"levels": (4, 3, 5, 2), "groups": ((0, 1), (2, 3)), "width": 24, "depth": 2, "heads": 2}


def built(config, seed=0):
    """A float64 model whose every parameter is random, so that nothing is silent."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = config.build().double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_ids(config, count=2, seed=0):
    return torch.randint(config.factorization().codebook_size, (count, *config.grid), generator=rng(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def expected(c, masked):
    """Of the whole model, from its equations."""
    d, parts = c.width, c.factorization().sizes
    block = (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + 4 * d + (2 * d // c.heads if c.qk_norm else 0)
    tables = sum((size + masked) * d + size for size in parts)
    head = d * d + d + 2 * d + c.part_layers * block + (2 * d if c.part_layers else 0)
    places_ = math.prod(c.grid) * d if c.position == "learned" else 0
    prefix = len(c.tasks) * d + ((c.classes + 1) * d if c.classes or not masked else 0)
    return c.depth * block + tables + head + places_ + prefix + 2 * d + (d if masked and c.hints else 0)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        *((size, {}) for size in SIZES),
        ("S", {"position": "rotary"}),
        ("S", {"qk_norm": False, "classes": 101}),
        ("S", {"part_layers": 2}),
    ],
)
def test_parameters_are_counted_by_the_formula(size, changes):
    masked = MaskedConfig(levels=LFQ18, grid=(5, 16, 16), hints=True, tasks=("generation", "prediction"))
    for config in (masked, AutoregressiveConfig(levels=LFQ18, grid=(5, 16, 16), classes=7)):
        config = config.replace(changes).sized(size)
        assert parameters(config) == expected(config, masked=config.kind == "masked")


def test_size_l_has_the_published_number_of_parameters():
    """305.7 M for two tables of 512, 16 x 16 places and 1,000 classes; 573 M with one table of 2^18."""
    config = MaskedConfig(levels=LFQ18, grid=(1, 16, 16), classes=1000).sized("L")
    assert round(parameters(config) / 1e6, 1) == 305.7
    flat = config.replace({"groups": (tuple(range(18)),)})
    assert round(parameters(flat) / 1e6) == 573


def test_attention_is_the_formula():
    """softmax(q k^T / sqrt(d)) v for every head, with root-mean-square norms of q and k, in float64."""
    config = MaskedConfig(**SMALL, grid=(1, 3, 3))
    attention = built(config).trunk.blocks[0].attention
    assert isinstance(attention, Attention)
    x = torch.randn(2, 9, 24, generator=rng(), dtype=torch.float64)
    for causal in (False, True):
        turn = rope(grid_positions((1, 3, 3)), 12)
        q, k, v = (x @ attention.query_key_value.weight.T + attention.query_key_value.bias).split(24, -1)
        heads = []
        for head in range(2):
            columns = slice(12 * head, 12 * head + 12)
            q1, k1 = (
                y[..., columns] / (y[..., columns].square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
                for y, norm in ((q, attention.query_norm), (k, attention.key_norm))
            )
            q1, k1 = (turned(y, turn) for y in (q1, k1))
            scores = q1 @ k1.transpose(1, 2) / math.sqrt(12)
            if causal:
                scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[..., columns])
        wanted = torch.cat(heads, -1) @ attention.out.weight.T + attention.out.bias
        assert torch.allclose(attention(x, turn, causal), wanted, rtol=1e-12, atol=1e-12)


def turned(x, turn):
    """As complex numbers."""
    pairs = torch.complex(x[..., :6], x[..., 6:]) * torch.complex(turn.cos, turn.sin)
    return torch.cat([pairs.real, pairs.imag], -1)


@pytest.mark.parametrize("channels", [2, 6, 8, 64, 80])
def test_rotated_products_depend_on_the_difference_of_places_alone(channels):
    q, k = torch.randn(2, 1, 1, 1, channels, generator=rng(), dtype=torch.float64)
    here, there = torch.tensor([[2, 3, 5]]), torch.tensor([[1, 7, 4]])
    products = []
    for shift in ([0, 0, 0], [4, 0, 0], [0, 9, 0], [0, 0, 3], [100, 1000, 10]):
        a, b = (rope(at + torch.tensor(shift), channels) for at in (here, there))
        products.append((a(q) * b(k)).sum())
    assert torch.allclose(torch.stack(products), products[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [12, 64])
def test_every_axis_turns_its_own_pairs_and_lengths_are_kept(channels):
    x = torch.randn(1, 1, 1, channels, generator=rng(), dtype=torch.float64)
    still = rope(torch.tensor([[0, 0, 0]]), channels)
    assert torch.equal(still(x), x)
    moved = []
    for axis in range(3):
        turn = rope(torch.eye(3, dtype=torch.int64)[axis : axis + 1], channels)
        assert torch.allclose(turn(x).norm(), x.norm(), rtol=1e-12)
        moved.append((turn(x) != x).view(2, -1).any(0))
    assert torch.equal(torch.stack(moved).sum(0), torch.ones(channels // 2, dtype=torch.int64))


@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("part_layers", [0, 1])
def test_logits_do_not_depend_on_what_is_masked_or_later(position, part_layers):
    """The masked model does not see what stands under a mask; the parts of a token see those before them alone."""
    config = MaskedConfig(**SMALL, grid=(2, 2, 3), position=position, part_layers=part_layers, classes=3)
    model, ids = built(config), some_ids(config)
    parts = model.factorization.split(ids)
    masked = torch.rand(parts.shape, generator=rng(1)) < 0.6
    masks = torch.tensor(model.factorization.sizes)
    seen = MaskedInput(torch.where(masked, masks, parts), Condition(torch.tensor([0, 2])))
    rows = torch.ones(2, 12, dtype=torch.bool)
    other = torch.where(masked, model.factorization.split(some_ids(config, seed=5)), parts)
    a, b = model(seen, parts, rows), model(seen, other, rows)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1]) == (part_layers == 0)


def test_every_cell_sees_every_other():
    config = MaskedConfig(**SMALL, grid=(2, 2, 2))
    model = built(config)
    parts = model.factorization.split(some_ids(config, 1))
    before = model.features(MaskedInput(parts))
    for cell in range(8):
        changed = parts.clone().flatten(1, 3)
        changed[:, cell, 0] = (changed[:, cell, 0] + 1) % 12
        moved = (model.features(MaskedInput(changed.view_as(parts))) != before).any(-1)
        assert moved.all()


def test_heads_on_some_rows_are_those_of_all():
    config = MaskedConfig(**SMALL, grid=(1, 3, 3), part_layers=1)
    model, ids = built(config), some_ids(config)
    parts = model.factorization.split(ids)
    rows = torch.rand(2, 9, generator=rng(2)) < 0.4
    everywhere = torch.ones_like(rows)
    for some, all_ in zip(
        model(MaskedInput(parts), parts, rows), model(MaskedInput(parts), parts, everywhere), strict=True
    ):
        assert torch.allclose(some, all_[rows.flatten()], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part_layers", [0, 2])
def test_one_part_at_a_time_gives_the_logits_of_all_at_once(part_layers):
    config = MaskedConfig(**SMALL, grid=(1, 3, 3), part_layers=part_layers)
    vocabulary = built(config).vocabulary
    features = torch.randn(7, 24, generator=rng(), dtype=torch.float64)
    parts = torch.stack([torch.randint(size, (7,), generator=rng(3)) for size in vocabulary.sizes], 1)
    for g, logits in enumerate(vocabulary.logits(features, parts)):
        assert torch.allclose(vocabulary.logits_at(g, features, parts), logits, rtol=1e-12, atol=1e-12)
        assert logits.shape == (7, vocabulary.sizes[g])


def test_logits_are_the_formula_of_the_head():
    """norm(gelu(W f + b)) E_g^T + c_g, over the rows of the table that are no mask."""
    vocabulary = built(MaskedConfig(**SMALL, grid=(1, 2, 2))).vocabulary
    features = torch.randn(5, 24, generator=rng(), dtype=torch.float64)
    hidden = features @ vocabulary.dense.weight.T + vocabulary.dense.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    norm = vocabulary.norm
    hidden = torch.nn.functional.layer_norm(hidden, (24,), norm.weight, norm.bias, 1e-5)
    for g, size in enumerate(vocabulary.sizes):
        wanted = hidden @ vocabulary.tables[g].weight[:size].T + vocabulary.biases[g]
        found = vocabulary.logits_at(g, features, torch.zeros(5, g, dtype=torch.int64))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_heads_are_tied_to_tables_and_never_give_the_mask():
    config = MaskedConfig(**SMALL, grid=(1, 2, 2))
    vocabulary = built(config).vocabulary
    logits = vocabulary.logits(torch.randn(3, 24, generator=rng(), dtype=torch.float64), torch.zeros(3, 2).long())
    assert [x.shape[1] for x in logits] == [12, 10]
    assert [table.weight.shape[0] for table in vocabulary.tables] == [13, 11]
    (gradient,) = torch.autograd.grad(logits[0].sum(), vocabulary.tables[0].weight)
    assert gradient[:12].abs().min() > 0
    assert (gradient[12] == 0).all()


def test_a_hinted_cell_is_told_from_a_known_one():
    config = MaskedConfig(**SMALL, grid=(1, 2, 2), hints=True)
    model = built(config)
    parts = model.factorization.split(some_ids(config, 1))
    known = model.features(MaskedInput(parts))
    none = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    assert torch.equal(model.features(MaskedInput(parts, hinted=none)), known)
    for cell in range(4):
        hinted = none.clone()
        hinted.view(4)[cell] = True
        assert (model.features(MaskedInput(parts, hinted=hinted)) != known).any(-1).all()


def test_without_a_class_all_classes_give_the_same():
    config = MaskedConfig(**SMALL, grid=(1, 2, 2), classes=5)
    model = built(config)
    parts = model.blank((1, 2, 2), 2)
    absent = model.features(MaskedInput(parts))
    assert torch.equal(absent, model.features(MaskedInput(parts, Condition(torch.tensor([5, 5])))))
    assert not torch.equal(absent, model.features(MaskedInput(parts, Condition(torch.tensor([1, 4])))))


def test_a_fresh_model_knows_nothing():
    """Its loss is a little above sum_g ln V_g, 12.48 nats for two parts of nine bits: logits ~ N(0, 0.6^2)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedConfig(levels=LFQ18, grid=(1, 4, 4), width=128, depth=2, heads=2).build()
    parts = model.factorization.split(torch.randint(2**18, (4, 1, 4, 4), generator=rng()))
    logits = model(MaskedInput(model.blank((1, 4, 4), 4)), parts, torch.ones(4, 16, dtype=torch.bool))
    flat = parts.flatten(0, 3)
    nats = sum(torch.nn.functional.cross_entropy(x, flat[:, g]).item() for g, x in enumerate(logits))
    assert 0 < nats - 18 * math.log(2) < 2 * 0.64**2 / 2 + 0.1


@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("cuts", [[12], [1] * 12, [5, 1, 6], [3, 3, 3, 3]])
def test_any_cut_of_a_sequence_gives_the_features_of_the_whole(position, cuts):
    config = AutoregressiveConfig(**SMALL, grid=(2, 2, 3), position=position, classes=4)
    model = built(config)
    condition = Condition(torch.tensor([1, 3]))
    parts = model.factorization.split(some_ids(config)).flatten(1, 3)
    with torch.no_grad():
        whole = model.features(parts, config.grid, condition)
        stream, first, pieces = Stream(), 0, []
        for size in cuts:
            chunk = parts[:, first : first + size]
            pieces.append(model.features(chunk, config.grid, condition, first=first, stream=stream))
            first += size
    assert whole.shape == (2, 13, 24)
    assert torch.allclose(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)


def test_a_sequence_may_start_with_nothing_but_its_class():
    config = AutoregressiveConfig(**SMALL, grid=(1, 2, 2), classes=4, tasks=("generation",))
    model = built(config)
    condition = Condition(torch.tensor([1]), torch.tensor([0]))
    parts = model.factorization.split(some_ids(config, 1)).flatten(1, 3)
    stream = Stream()
    with torch.no_grad():
        start = model.features(parts[:, :0], config.grid, condition, stream=stream)
        rest = model.features(parts, config.grid, condition, first=0, stream=stream)
        whole = model.features(parts, config.grid, condition)
    assert start.shape == (1, 1, 24)
    assert torch.allclose(torch.cat([start, rest], 1), whole, rtol=1e-12, atol=1e-12)


def test_later_tokens_never_reach_earlier_ones():
    config = AutoregressiveConfig(**SMALL, grid=(1, 3, 3))
    model = built(config)
    parts = model.factorization.split(some_ids(config, 1)).flatten(1, 3)
    before = model.features(parts, config.grid, Condition())
    for cell in range(9):
        changed = parts.clone()
        changed[:, cell, 1] = (changed[:, cell, 1] + 1) % 10
        moved = (model.features(changed, config.grid, Condition()) != before).any(-1)[0]
        assert moved.tolist() == [i > cell for i in range(10)]


def test_dropout_is_on_where_a_generator_is_given_and_follows_it():
    x = torch.ones(1000, 100, dtype=torch.float64)
    assert drop(x, 0.25, None) is x
    dropped = drop(x, 0.25, rng(1))
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(dropped.mean().item() - 1) < 0.01
    assert torch.equal(dropped, drop(x, 0.25, rng(1)))
    block = TransformerBlock(MaskedConfig(**SMALL, grid=(1, 2, 2)))
    y = torch.randn(1, 4, 24, generator=rng())
    assert torch.equal(block.train()(y), block.eval()(y))


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_is_its_two_sums_written_out(causal):
    """x + attention(norm x), then that + narrow(gelu(widen(norm x))): each branch is added to what it is given."""
    block = built(MaskedConfig(**SMALL, grid=(1, 2, 3))).trunk.blocks[0]
    x = torch.randn(2, 6, 24, generator=rng(), dtype=torch.float64)

    def norm(layer, values):
        return torch.nn.functional.layer_norm(values, (24,), layer.weight, layer.bias, 1e-5)

    y = x + block.attention(norm(block.norm1, x), None, causal)
    wide = norm(block.norm2, y) @ block.widen.weight.T + block.widen.bias
    wanted = y + wide * (1 + torch.erf(wide / math.sqrt(2))) / 2 @ block.narrow.weight.T + block.narrow.bias
    torch.testing.assert_close(block(x, None, causal), wanted, rtol=0, atol=1e-12)


def test_the_branches_of_a_block_are_dropped_each_by_itself():
    """Without attention's weights the block is x + drop(a constant), whose kept entries are scaled."""
    config = MaskedConfig(**SMALL, grid=(1, 2, 3), dropout=0.25)
    block = built(config).trunk.blocks[0]
    with torch.no_grad():
        block.attention.out.weight.zero_()
        block.attention.out.bias.fill_(3.0)
        block.narrow.weight.zero_()
        block.narrow.bias.fill_(5.0)
    x = torch.randn(2, 6, 24, generator=rng(), dtype=torch.float64)
    added = (block(x, rng=rng(1)) - x).flatten()
    sums = torch.tensor([0, 3 / 0.75, 5 / 0.75, 8 / 0.75], dtype=torch.float64)
    assert set((added[:, None] - sums).abs().argmin(1).tolist()) == {0, 1, 2, 3}
    assert (added[:, None] - sums).abs().amin(1).max() < 1e-12


@pytest.mark.parametrize(("width", "depth", "heads"), [(64, 1, 2), (256, 6, 4), (400, 12, 4)])
def test_fresh_weights_have_the_deviations_of_the_formula(width, depth, heads):
    """N(0, 0.64^2 / width) cut at two deviations, over sqrt(2 depth) where a branch ends; biases 0, norms 1."""
    config = MaskedConfig(levels=LFQ18, grid=(1, 4, 4), width=width, depth=depth, heads=heads)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build()
    cut = 0.8796  # the deviation of a standard normal within [-2, 2]
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        if "bias" in name:
            assert not values.any(), name
        elif "norm" in name:
            assert (values == 1).all(), name
        else:
            std = (
                0.64
                / math.sqrt(width)
                / (math.sqrt(2 * depth) if name.endswith(("out.weight", "narrow.weight")) else 1)
            )
            assert values.abs().max() <= 2 * std * (1 + 1e-6), name
            assert abs(values.square().mean().sqrt() / (cut * std) - 1) < 4 / math.sqrt(2 * len(values)), name


def test_rotary_models_take_any_grid_and_learned_ones_fewer_frames_alone():
    rotary = built(MaskedConfig(**SMALL, grid=(2, 2, 2), position="rotary"))
    assert rotary.features(MaskedInput(rotary.blank((3, 5, 4), 1))).shape == (1, 60, 24)
    learned = built(MaskedConfig(**SMALL, grid=(2, 2, 2)))
    assert learned.features(MaskedInput(learned.blank((1, 2, 2), 1))).shape == (1, 4, 24)
    for grid in ((3, 2, 2), (2, 2, 3), (2, 1, 2)):
        with pytest.raises(ConfigError, match="2 x 2 x 2; position: rotary"):
            learned.features(MaskedInput(learned.blank(grid, 1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"groups": ((0, 1), (2,))}, "exactly once"),
        ({"grid": (0, 4, 4)}, "grid must be at least 1"),
        ({"heads": 5}, "even multiple of heads"),
        ({"width": 6, "heads": 2}, "even multiple"),
        ({"tasks": ("generation", "generation")}, "must differ"),
        ({"dropout": 1.0}, "less than 1"),
        ({"classes": -1}, "greater than or equal to 0"),
        ({"levels": (2,) * 63, "groups": None}, "2\\^62"),
    ],
)
def test_a_wrong_config_is_refused(changes, said):
    with pytest.raises((ConfigError, ValidationError), match=said):
        MaskedConfig(**SMALL, grid=(1, 2, 2)).replace(changes)


@pytest.mark.parametrize("channels", [12, 20, 64])
def test_angles_are_the_formula_axis_by_axis(channels):
    """Position * 10000^(-j / m): a third of the pairs for h, a third for w, the rest first, for t."""
    positions, pairs = grid_positions((2, 3, 4)), channels // 2
    counts = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    table = rope(positions, channels)
    for n, place in enumerate(positions.tolist()):
        angles = [x * 10_000 ** (-j / m) for x, m in zip(place, counts, strict=True) for j in range(m)]
        wanted = torch.tensor(angles, dtype=torch.float64)
        torch.testing.assert_close(table.cos[n], wanted.cos(), rtol=0, atol=1e-12)
        torch.testing.assert_close(table.sin[n], wanted.sin(), rtol=0, atol=1e-12)
