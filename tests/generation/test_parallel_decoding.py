"""Sampling: all is filled, what is given stays, counts are exact, and a sample is a function of its own key."""

import itertools
import math

import pytest
import torch

from smalti.errors import ConfigError, SmaltiError
from smalti.generation import (
    AutoregressiveConfig,
    Condition,
    GuidanceConfig,
    MaskedConfig,
    Prompt,
    SamplingConfig,
    TokenSamplingConfig,
    complete,
    empty_prompt,
    extend,
    prefix_prompt,
    sample,
    sample_autoregressive,
    sample_steps,
)
from smalti.generation.masked import halton_order, step_counts

SMALL = {"levels": (4, 3, 5, 2), "groups": ((0, 1), (2, 3)), "width": 24, "depth": 2, "heads": 2, "classes": 5}
GRID = (2, 3, 4)
SIZE = 120


def built(config, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build().to(dtype)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def masked(unit="token", part_layers=0, hints=False, dtype=torch.float64):
    return built(MaskedConfig(**SMALL, grid=GRID, unit=unit, part_layers=part_layers, hints=hints), dtype)


def prompt(count=8, share=0.3, seed=0, hinted=None):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(SIZE, (count, *GRID), generator=rng)
    known = torch.rand(count, *GRID, generator=rng) < share
    hints = None if hinted is None else torch.rand(count, *GRID, generator=rng) < hinted
    return Prompt(ids, known, hints, Condition(torch.arange(count) % 5))


def rows(p, wanted):
    hinted = None if p.hinted is None else p.hinted[wanted]
    return Prompt(p.ids[wanted], p.known[wanted], hinted, Condition(p.condition.labels[wanted]))


GUIDED = GuidanceConfig(scale=3.0, schedule="power_cosine")
EVERY_WAY = [
    SamplingConfig(steps=4, order=order, guidance=guidance, temperature=temperature)
    for order in ("confidence", "halton", "random")
    for guidance, temperature in ((GuidanceConfig(), 1.0), (GUIDED, 0.7))
]
each_way = pytest.mark.parametrize("config", EVERY_WAY, ids=lambda c: f"{c.order}-{c.guidance.scale}")
each_unit = pytest.mark.parametrize("unit", ["token", "part"])


@each_way
@each_unit
@pytest.mark.parametrize("part_layers", [0, 1])
def test_all_is_filled_what_is_known_stays_and_counts_are_those_of_the_schedule(config, unit, part_layers):
    model, p = masked(unit, part_layers), prompt()
    masks = torch.tensor(model.factorization.sizes)
    parts = 2 if unit == "part" else 1
    plans = [step_counts(parts * int((~p.known[b]).sum()), config.steps, config.schedule) for b in range(8)]
    before = p.known[..., None].expand(*p.ids.shape, 2)
    for step, (shown, filled) in enumerate(sample_steps(model, p, config)):
        new = (filled & ~before).flatten(1).sum(1) * parts // 2
        assert new.tolist() == [plan[step] if step < len(plan) else 0 for plan in plans]
        assert not (before & ~filled).any()
        assert torch.equal(shown == masks, ~filled)
        assert torch.equal(shown[p.known], model.factorization.split(p.ids)[p.known])
        if unit == "token":
            assert torch.equal(filled[..., 0], filled[..., 1])
        before = filled
    assert before.all()
    ids = sample(model, p, config)
    assert torch.equal(ids[p.known], p.ids[p.known])
    assert ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() < SIZE


@each_way
@each_unit
def test_a_sample_does_not_depend_on_its_batch(config, unit):
    model, p = masked(unit, dtype=torch.float32), prompt()
    whole = sample(model, p, config, seed=7)
    for b in range(8 if config.order == "confidence" else 1):
        alone = sample(model, rows(p, [b]), config, seed=7, samples=[b])
        assert torch.equal(alone[0], whole[b])
    shuffled = [3, 6, 0]
    assert torch.equal(sample(model, rows(p, shuffled), config, seed=7, samples=shuffled), whole[shuffled])
    assert not torch.equal(sample(model, p, config, seed=8), whole)
    same = empty_prompt(2, GRID, labels=torch.tensor([1, 1]))
    twins = sample(model, same, config, seed=7)
    assert not torch.equal(twins[0], twins[1])


@each_way
def test_global_randomness_plays_no_part_and_modes_change_nothing(config):
    model, p = masked(), prompt()
    torch.manual_seed(0)
    first = sample(model, p, config)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(sample(model.train(), p, config), first)
    assert torch.equal(torch.get_rng_state(), state)


def seen_rows(module):
    """Batch sizes (or rows) that pass through a module, as they come."""
    found = []
    module.register_forward_hook(lambda _, inputs, __: found.append(len(inputs[0])))
    return found


def test_guidance_of_scale_zero_is_the_conditional_model_and_computes_no_other_half():
    model, p = masked(), prompt()
    plain = sample(model, p, SamplingConfig(steps=4))
    passes = seen_rows(model.trunk)
    for schedule in ("constant", "power_cosine"):
        config = SamplingConfig(steps=4, guidance=GuidanceConfig(scale=0.0, schedule=schedule))
        assert torch.equal(sample(model, p, config), plain)
    assert passes == [8] * 8


def test_the_unconditional_half_is_computed_where_it_counts_alone():
    model, p = masked(), prompt(share=0.0)
    config = SamplingConfig(steps=10, guidance=GUIDED)
    passes = seen_rows(model.trunk)
    guided = sample(model, p, config)
    assert passes == [16 if GUIDED.at(k / 10) > 0 else 8 for k in range(10)]
    assert passes.count(8) == 4
    assert not torch.equal(guided, sample(model, p, SamplingConfig(steps=10)))


def test_heads_run_on_unknown_positions_alone():
    model, p = masked(), prompt(count=3)
    heads = seen_rows(model.vocabulary.dense)
    states = [p.known] + [filled[..., 0] for _, filled in sample_steps(model, p, SamplingConfig(steps=4))]
    wanted = [int((~state).sum()) for state in states[:-1]]
    assert heads == [n for n in wanted for _ in range(2)]


def test_guided_logits_are_those_of_two_passes_written_out():
    """Greedy, one step: the argmax of c + s (c - u), from whole passes with and without the class."""
    from smalti.generation import MaskedInput

    model, p = masked(), empty_prompt(4, GRID, labels=torch.arange(4))
    blank = model.blank(GRID, 4)
    everywhere = torch.ones(4, 24, dtype=torch.bool)
    with torch.no_grad():
        c, u = (model(MaskedInput(blank, condition), blank * 0, everywhere) for condition in (p.condition, Condition()))
    for scale in (0.0, 0.5, 9.0, 1e4):
        config = SamplingConfig(steps=1, temperature=0.0, noise=0.0, guidance=GuidanceConfig(scale=scale))
        wanted = torch.stack([(a + scale * (a - b)).argmax(1) for a, b in zip(c, u, strict=True)], -1)
        assert torch.equal(model.factorization.split(sample(model, p, config)).flatten(0, 3), wanted)


def test_what_is_all_known_comes_back_unchanged():
    model, p = masked(), prompt()
    p = p._replace(known=torch.ones_like(p.known))
    assert list(sample_steps(model, p, SamplingConfig())) == []
    ids = sample(model, p, SamplingConfig())
    assert torch.equal(ids, p.ids)
    assert ids is not p.ids


@each_unit
def test_more_steps_than_tokens_are_one_token_a_step(unit):
    model, p = masked(unit), prompt(count=2)
    p = p._replace(known=p.known | (torch.arange(24) < 16).view(GRID))
    entries = int((~p.known).flatten(1).sum(1).max()) * (2 if unit == "part" else 1)
    assert len(list(sample_steps(model, p, SamplingConfig(steps=1000)))) == entries
    whole = sample(model, p, SamplingConfig(steps=1000))
    assert torch.equal(whole, sample(model, p, SamplingConfig(steps=entries)))


def test_the_halton_order_is_kept():
    model = masked()
    p = prompt(count=2, share=0.4)
    order = halton_order(GRID).tolist()
    left = [[cell for cell in order if not p.known[b].flatten()[cell]] for b in range(2)]
    for _, filled in sample_steps(model, p, SamplingConfig(steps=6, order="halton")):
        for b in range(2):
            state = filled[b, ..., 0].flatten()
            done = [bool(state[cell]) for cell in left[b]]
            assert done == sorted(done, reverse=True)


def test_without_noise_the_surest_are_filled_first():
    """Greedy and without noise, each step fills those whose largest log probabilities have the largest sum."""
    from smalti.generation import MaskedInput

    model, p = masked(), empty_prompt(1, GRID)
    config = SamplingConfig(steps=4, temperature=0.0, noise=0.0)
    shown, filled = model.blank(GRID, 1), torch.zeros(1, 24, dtype=torch.bool)
    for progress in sample_steps(model, p, config):
        with torch.no_grad():
            logits = model(MaskedInput(shown), shown * 0, torch.ones(1, 24, dtype=torch.bool))
        sure = sum(x.log_softmax(1).amax(1) for x in logits)
        new = (progress.filled[..., 0].flatten(1) & ~filled)[0]
        rest = ~progress.filled[..., 0].flatten()
        assert not rest.any() or sure[new].min() >= sure[rest].max()
        shown, filled = progress.subtokens, progress.filled[..., 0].flatten(1)


def written_out(model, p, config, seed, b):
    """Parallel decoding of sample b alone, cell by cell: subtokens and what is filled after each step.

    Of step k of K, entry e has the score log p(value) + noise * (1 - (k + 1) / K) * g, with the log probability of the
    guided logits before the temperature and standard Gumbel noise g; the n_k highest of those still masked are filled.
    """
    from smalti.data.source import mix
    from smalti.generation import MaskedInput

    unit, sizes = model.config.unit, model.factorization.sizes
    known = p.known[b].flatten().tolist()
    true = model.factorization.split(p.ids[b]).flatten(0, 2).tolist()
    shown = [true[i] if known[i] else list(sizes) for i in range(24)]
    filled = [[known[i]] * 2 for i in range(24)]
    entries = [(i,) for i in range(24)] if unit == "token" else [(i, g) for i in range(24) for g in range(2)]
    open_entries = [e for e in entries if not known[e[0]]]
    plan = step_counts(len(open_entries), config.steps, config.schedule)
    for k, count in enumerate(plan):
        rng = torch.Generator().manual_seed(mix(seed, b, k) >> 1)
        values, jitters = torch.rand(2, 24, 2, generator=rng).double().tolist()
        guidance = config.guidance.scale if config.guidance.schedule == "constant" else None
        if guidance is None:
            guidance = config.guidance.scale * (1 - math.cos(math.pi * (k / len(plan)) ** 2.5)) / 2
            guidance = 0.0 if guidance < config.guidance.scale / 100 else guidance
        inputs = torch.tensor(shown).view(1, *GRID, 2)
        classes = (p.condition.take(torch.tensor([b])), Condition())
        with torch.no_grad():
            halves = [model.features(MaskedInput(inputs, condition))[0] for condition in classes]
        proposed, scores = [list(row) for row in shown], {}
        for i in range(24):
            log_p = [0.0, 0.0]
            for g in range(2):
                before = torch.tensor([proposed[i]])
                with torch.no_grad():
                    c, u = (model.vocabulary.logits_at(g, half[i : i + 1], before)[0] for half in halves)
                logits = c + guidance * (c - u)
                if not filled[i][g]:
                    steps = (logits / config.temperature).softmax(0).cumsum(0)
                    proposed[i][g] = int((steps <= values[i][g] * steps[-1]).sum())
                    log_p[g] = float(logits.log_softmax(0)[proposed[i][g]])
            gumbels = [-math.log(-math.log(x)) for x in jitters[i]]
            cooling = config.noise * (1 - (k + 1) / len(plan))
            if unit == "token":
                scores[(i,)] = sum(log_p) + cooling * max(gumbels)
            else:
                scores |= {(i, g): log_p[g] + cooling * gumbels[g] for g in range(2)}
        best = sorted((e for e in open_entries), key=lambda e: -scores[e])[:count]
        open_entries = [e for e in open_entries if e not in best]
        for i, *g in best:
            for part in g or (0, 1):
                shown[i][part], filled[i][part] = proposed[i][part], True
        yield torch.tensor(shown), torch.tensor(filled)


@each_unit
@pytest.mark.parametrize("noise", [0.5, 6.0])
@pytest.mark.parametrize("guidance", [GuidanceConfig(), GUIDED], ids=["free", "guided"])
def test_parallel_decoding_is_its_definition_cell_by_cell(unit, noise, guidance):
    model, p = masked(unit, part_layers=1), prompt(count=2)
    config = SamplingConfig(steps=5, noise=noise, temperature=0.8, guidance=guidance)
    steps = list(sample_steps(model, p, config, seed=3))
    for b in range(2):
        wanted = list(written_out(model, p, config, 3, b))
        for step, (subtokens, filled) in zip(steps, wanted, strict=True):
            assert torch.equal(step.filled[b].flatten(0, 2), filled)
            assert torch.equal(step.subtokens[b].flatten(0, 2), subtokens)


def test_a_subtoken_is_sampled_given_those_of_its_token_that_are_filled():
    """What comes in part 1 is drawn from the distribution after the part 0 that stands there already."""
    from smalti.generation import MaskedInput
    from smalti.generation.sampling import sample_logits, uniform_noise

    model, p, seen = masked("part", part_layers=1), prompt(), 0
    shown, filled, config = None, None, SamplingConfig(steps=8, order="random")
    for step, progress in enumerate(sample_steps(model, p, config, seed=3)):
        if shown is not None:
            late = (filled[..., 0] & ~filled[..., 1] & progress.filled[..., 1]).flatten(1)
            with torch.no_grad():
                features = model.features(MaskedInput(shown, p.condition))[late]
                logits = model.vocabulary.logits_at(1, features, shown.flatten(1, 3)[late])
            noise = uniform_noise(3, range(8), step, (2, 24, 2), torch.device("cpu"))[:, 0, :, 1]
            wanted = sample_logits(logits, noise[late], config)
            assert torch.equal(progress.subtokens.flatten(1, 3)[late][:, 1], wanted)
            seen += len(wanted)
        shown, filled = progress.subtokens, progress.filled
    assert seen > 20


def test_hints_are_shown_until_their_cell_is_filled_and_stand_nowhere_else():
    model, p = masked(hints=True), prompt(hinted=0.5)
    hinted = p.hinted & ~p.known
    masks = torch.tensor(model.factorization.sizes)
    parts = model.factorization.split(p.ids)
    for shown, filled in sample_steps(model, p, SamplingConfig(steps=5)):
        waiting = ~filled[..., 0]
        assert torch.equal(shown[waiting & hinted], parts[waiting & hinted])
        assert (shown[waiting & ~hinted] == masks).all()
    ids = sample(model, p, SamplingConfig(steps=5))
    assert torch.equal(ids[p.known], p.ids[p.known])
    other = p._replace(ids=torch.where(p.visible, p.ids, (p.ids + 1) % SIZE))
    assert torch.equal(sample(model, other, SamplingConfig(steps=5)), ids)  # ids elsewhere are not read
    moved = p._replace(ids=torch.where(hinted, (p.ids + 1) % SIZE, p.ids))
    assert not torch.equal(sample(model, moved, SamplingConfig(steps=5)), ids)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: empty_prompt(2, GRID, labels=torch.tensor([0, 5])), r"class 5 is outside \[0, 5\)"),
        (lambda: empty_prompt(2, GRID, labels=torch.tensor([-1, 0])), r"class -1 is outside \[0, 5\)"),
        (lambda: empty_prompt(2, GRID, labels=torch.tensor([0])), "2 samples need one each"),
        (lambda: empty_prompt(2, GRID, tasks=torch.tensor([0, 0])), "task: this model was trained without any"),
        (lambda: empty_prompt(2, (2, 3, 5)), "do not fit a model"),
        (lambda: prompt(hinted=0.5), "hints: true"),
        (lambda: prompt()._replace(known=torch.zeros(8, 2, 3, 3, dtype=torch.bool)), "prompt: known is 8 x 2 x 3 x 3"),
        (lambda: prefix_prompt(torch.zeros(1, 2, 3, 4).long(), GRID, Condition()), "prefix: 2 x 3 x 4"),
        (lambda: prefix_prompt(torch.zeros(1, 1, 3, 3).long(), GRID, Condition()), "prefix: 1 x 3 x 3"),
    ],
)
def test_a_prompt_that_does_not_fit_is_one_line(made, said):
    with pytest.raises(ConfigError, match=said) as error:
        sample(masked(), made(), SamplingConfig(steps=2))
    assert "\n" not in str(error.value)


def test_guidance_without_a_class_is_one_line():
    config = SamplingConfig(guidance=GuidanceConfig(scale=1.0))
    with pytest.raises(ConfigError, match="the prompt has no class"):
        sample(masked(), empty_prompt(1, GRID), config)
    free = built(MaskedConfig(**{**SMALL, "classes": 0}, grid=GRID))
    with pytest.raises(ConfigError, match="trained without classes"):
        sample(free, empty_prompt(1, GRID), config)
    with pytest.raises(ConfigError, match="give one for each"):
        sample(free, empty_prompt(1, GRID), SamplingConfig(), samples=[1, 2])


def test_logits_that_are_not_finite_are_one_line():
    model = masked()
    with torch.no_grad():
        model.vocabulary.biases[1][3] = torch.nan
    with pytest.raises(SmaltiError, match="not finite"):
        sample(model, empty_prompt(1, GRID), SamplingConfig(steps=2))


def test_ids_out_of_range_are_refused():
    p = prompt()
    with pytest.raises(ValueError, match=r"outside \[0, 120\)"):
        sample(masked(), p._replace(ids=p.ids + 500), SamplingConfig(steps=2))


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_windows_begin_with_the_end_of_the_one_before(kind):
    model = masked() if kind == "masked" else autoregressive()
    first = complete(model, empty_prompt(2, GRID), SamplingConfig(steps=3))
    windows = extend(model, first, Condition(), SamplingConfig(steps=3), keep=1)
    made = [first] + [next(windows) for _ in range(3)]
    for before, after in itertools.pairwise(made):
        assert torch.equal(after[:, :1], before[:, -1:])
        assert not torch.equal(after[:, 1:], before[:, 1:])
    renewed = extend(
        model, first, Condition(), SamplingConfig(steps=3), keep=1, reencode=lambda ids: (ids[:, -1:] + 1) % SIZE
    )
    assert torch.equal(next(renewed)[:, :1], (first[:, -1:] + 1) % SIZE)
    with pytest.raises(ConfigError, match=r"1 latent frames should be known \(found 2\)"):
        next(extend(model, first, Condition(), SamplingConfig(), keep=1, reencode=lambda ids: ids))


def autoregressive(part_layers=2):
    return built(AutoregressiveConfig(**SMALL, grid=GRID, part_layers=part_layers))


STRONG = GuidanceConfig(scale=1000.0, schedule="power_cosine")
"""Strong enough for each step of the schedule to change samples: a class moves logits by 0.005 here."""


@pytest.mark.parametrize("part_layers", [0, 2])
@pytest.mark.parametrize("guidance", [GuidanceConfig(), GuidanceConfig(scale=500.0), STRONG])
def test_an_autoregressive_sample_is_that_of_uncached_passes(part_layers, guidance):
    """Token by token, each from a whole pass over what stands before it, with both halves written out."""
    from smalti.generation.sampling import sample_logits, uniform_noise

    model, config = autoregressive(part_layers), TokenSamplingConfig(temperature=0.8, top_k=7, guidance=guidance)
    grid = (1, 3, 4)
    p = empty_prompt(3, grid, labels=torch.tensor([0, 4, 2]))
    ids = sample_autoregressive(model, p, config, seed=5)
    parts = torch.zeros(3, 12, 2, dtype=torch.int64)
    with torch.no_grad():
        for i in range(12):
            c, u = (model.features(parts[:, :i], grid, condition)[:, -1] for condition in (p.condition, Condition()))
            uniform = uniform_noise(5, [0, 1, 2], i, (2,), torch.device("cpu"))
            for g in range(2):
                a, b = (model.vocabulary.logits_at(g, x, parts[:, i]) for x in (c, u))
                parts[:, i, g] = sample_logits(a + guidance.at(i / 12) * (a - b), uniform[:, g], config)
    assert torch.equal(model.factorization.join(parts).view(3, *grid), ids)
    free = config.replace({"guidance": GuidanceConfig()})
    assert torch.equal(ids, sample_autoregressive(model, p, free, seed=5)) == (guidance.scale == 0)


def test_an_autoregressive_sample_does_not_depend_on_its_batch_and_keeps_its_beginning():
    model, config = autoregressive(), TokenSamplingConfig()
    p = prompt()
    p = p._replace(known=(torch.arange(24) < 9).view(GRID).expand_as(p.ids))
    whole = sample_autoregressive(model, p, config, seed=2)
    assert torch.equal(whole[p.known], p.ids[p.known])
    for b in (0, 5):
        assert torch.equal(sample_autoregressive(model, rows(p, [b]), config, seed=2, samples=[b])[0], whole[b])
    everything = p._replace(known=torch.ones_like(p.known))
    assert torch.equal(sample_autoregressive(model, everything, config), p.ids)


@pytest.mark.parametrize("guidance", [GuidanceConfig(), STRONG])
def test_samples_that_begin_alike_read_their_beginning_once_and_are_as_alone(guidance):
    model, config = autoregressive(), TokenSamplingConfig(guidance=guidance)
    p = prompt()
    beginnings, classes = torch.tensor([3, 1, 3, 3, 1, 1]), torch.tensor([2, 2, 2, 4, 2, 2])
    p = rows(p, beginnings.tolist())._replace(condition=Condition(classes))
    p = p._replace(known=(torch.arange(24) < 9).view(GRID).expand_as(p.ids), hinted=None)
    read = []
    with model.trunk.register_forward_pre_hook(lambda trunk, inputs: read.append(tuple(inputs[0].shape[:2]))):
        together = sample_autoregressive(model, p, config, seed=2)
    # (3, 2), (1, 2) and (3, 4); without a class 3 and 1.
    is_guided = guidance.scale > 0
    assert read[0] == (3 + 2 * is_guided, 10)
    assert set(read[1:]) == {(6 + 6 * is_guided, 1)}
    for b in range(6):
        assert torch.equal(sample_autoregressive(model, rows(p, [b]), config, seed=2, samples=[b])[0], together[b])


def test_an_autoregressive_model_fills_no_holes():
    with pytest.raises(ConfigError, match="continues the first tokens"):
        sample_autoregressive(autoregressive(), prompt(), TokenSamplingConfig())


def test_a_continued_sample_counts_its_tokens_from_the_first_and_its_progress_from_the_first_new_one():
    from smalti.generation.sampling import sample_logits, uniform_noise

    model, config = autoregressive(), TokenSamplingConfig(temperature=0.8, guidance=STRONG)
    grid, known = (1, 3, 4), 5
    p = empty_prompt(2, grid, labels=torch.tensor([0, 4]))
    p = p._replace(ids=p.ids + 7, known=(torch.arange(12) < known).view(1, *grid).expand(2, *grid))
    ids = sample_autoregressive(model, p, config, seed=5)
    parts = model.factorization.split(p.ids).flatten(1, 3).clone()
    with torch.no_grad():
        for i in range(known, 12):
            c, u = (model.features(parts[:, :i], grid, condition)[:, -1] for condition in (p.condition, Condition()))
            uniform = uniform_noise(5, [0, 1], i, (2,), torch.device("cpu"))
            scale = STRONG.at((i - known) / (12 - known))
            for g in range(2):
                a, b = (model.vocabulary.logits_at(g, x, parts[:, i]) for x in (c, u))
                parts[:, i, g] = sample_logits(a + scale * (a - b), uniform[:, g], config)
    assert torch.equal(model.factorization.join(parts).view(2, *grid), ids)
