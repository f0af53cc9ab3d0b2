"""Contenders at an equal budget: parts that never mix, equal batches, exact resumption, honest spreads."""

import hashlib
import math
import re
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smalti.comparison import (
    Budget,
    ComparisonData,
    Evaluator,
    LearnerSource,
    LearnerStep,
    TokenizerLearner,
    Variant,
    compare_variants,
    find_variants,
    is_held_out,
    load_parts,
    variant_groups,
)
from smalti.comparison.flops import count_flops
from smalti.comparison.summary import compare_means, summarise_runs
from smalti.comparison.variants import PLAIN
from smalti.errors import ConfigError, InputError
from smalti.metrics import Usage
from smalti.tokenizer import Tokenizer

CPU = torch.device("cpu")
SMALL = ("tokenizer.width=8", "tokenizer.quantizer.levels=[8, 8]")
STEPS = 4


def entry(name="base", *changes):
    config = Variant(name=name, set=(*SMALL, *changes)).training("images", STEPS)
    return LearnerSource(name, lambda seed: TokenizerLearner(config.replace({"seed": seed}), CPU))


@pytest.fixture(scope="module")
def material():
    return load_parts(ComparisonData(size=16, limit=2))


def run(material, out, *entries, **terms):
    settings = {"amount": float(STEPS), "seeds": 1, "points": 2, "batch_size": 2} | terms
    return compare_variants(
        entries or (entry(),), material, Budget(**settings), Evaluator(material.heldout), out, device=CPU
    )


def figures(run):
    return [point.model_copy(update={"seconds": 0.0, "contender": ""}) for point in run.points]


@given(st.lists(st.text(min_size=1), unique=True), st.text(min_size=1))
def test_whether_a_file_is_held_out_depends_on_its_name_alone(names, more):
    before = {name: is_held_out(name) for name in names}
    assert before == {name: is_held_out(name) for name in (more, *names) if name in before}


def test_one_name_in_five_is_held_out():
    share = statistics.mean(is_held_out(f"folder/{number}.jpg") for number in range(5000))
    assert abs(share - 51 / 256) < 4 * math.sqrt(0.2 * 0.8 / 5000)


def test_no_file_is_learnt_from_and_measured_on(tmp_path):
    from PIL import Image

    for number in range(40):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    found = load_parts(ComparisonData(data=tmp_path, size=16))
    trained = {found.train.key(index) for index in range(len(found.train))}
    measured = [key for key, _ in found.heldout]
    assert not trained & set(measured)
    assert len(trained) + len(measured) == 40
    assert all(map(is_held_out, measured))
    first = load_parts(ComparisonData(data=tmp_path, size=16, limit=2)).heldout
    assert [key for key, _ in first] == sorted(measured, key=lambda k: hashlib.sha256(k.encode()).digest())[:2]


def test_a_set_that_leaves_one_part_empty_or_shares_names_is_refused(tmp_path):
    from PIL import Image

    name = next(f"{n}.png" for n in range(99) if not is_held_out(f"{n}.png"))
    Image.new("RGB", (20, 20)).save(tmp_path / name)
    with pytest.raises(InputError, match="none to hold back"):
        load_parts(ComparisonData(data=tmp_path, size=16))
    with pytest.raises(InputError, match=f"{name} and 0 more are in"):
        load_parts(ComparisonData(data=tmp_path, heldout=tmp_path, size=16))


def test_equal_contenders_learn_equally_to_the_last_bit(material, tmp_path):
    one, other = run(material, tmp_path, entry("one"), entry("other"))
    assert figures(one) == figures(other)
    assert [point.steps for point in one.points] == [2, 4]
    assert one.points[-1].learnt_tokens == 2 * 2 * 4


def test_seeds_differ_in_weights_and_batches(material, tmp_path):
    runs = run(material, tmp_path, seeds=2)
    assert figures(runs[0]) != figures(runs[1])


@pytest.mark.parametrize("changes", [(), ("gan.discriminator={kind: patch, width: 4}", "gan.lecam=0.1")])
def test_a_race_that_was_stopped_goes_on_with_the_bits_of_an_undisturbed_one(material, tmp_path, changes):
    class Stop(Exception):
        pass

    def stop(share, run, point):
        if share > 0.7:
            raise Stop

    entries = (entry("a", *changes), entry("b"))
    terms, judge = Budget(amount=float(STEPS), seeds=1, points=2, batch_size=2), Evaluator(material.heldout)
    with pytest.raises(Stop):
        compare_variants(entries, material, terms, judge, tmp_path / "stopped", device=CPU, on_advance=stop)
    assert len((tmp_path / "stopped" / "points.jsonl").read_text().splitlines()) == 2
    again = run(material, tmp_path / "stopped", *entries)
    whole = run(material, tmp_path / "whole", *entries)
    assert [figures(r) for r in again] == [figures(r) for r in whole]
    for a, b in zip(again, whole, strict=True):
        assert a.learner.state.ema.fingerprint == b.learner.state.ema.fingerprint


def test_a_budget_of_operations_ends_with_the_step_that_spends_it(material, tmp_path):
    (by_steps,) = run(material, tmp_path / "steps")
    a_step = by_steps.flops / by_steps.steps
    (found,) = run(material, tmp_path / "flops", budget="teraflops", amount=2.5 * a_step / 1e12)
    assert found.steps == 3
    assert found.flops == pytest.approx(3 * a_step)


def test_a_budget_of_seconds_counts_steps_alone(material, tmp_path):
    (found,) = run(material, tmp_path, budget="seconds", amount=0.3)
    assert found.spent(Budget(budget="seconds", amount=0.3)) >= 1
    assert found.seconds - found.seconds / found.steps < 0.3 + 0.2


class Wild:
    """A true learner of nothing, that falls apart after some steps."""

    levels, parameters = (2, 2), 0

    def __init__(self, last):
        self.steps, self.last = 0, last

    def step(self, video, share):
        self.steps += 1
        return LearnerStep(1.0, 1.0, Usage(self.levels))

    def kind(self, share):
        return None

    def round_trip(self, video):
        made = video * (math.nan if self.steps > self.last else 0.5)
        return made, torch.zeros(1, 1, 2, 2, dtype=torch.int64)

    def save(self, folder):
        (folder / "wild").write_text(str(self.steps))

    def load(self, folder):
        self.steps = int((folder / "wild").read_text())


def test_a_contender_that_falls_apart_is_named_and_the_others_go_on(material, tmp_path):
    runs = run(material, tmp_path, entry("fine"), LearnerSource("wild", lambda seed: Wild(3)))
    rows = {row.name: row for row in summarise_runs(runs)}
    assert rows["wild"].faults == ("seed 0: a reconstruction was not finite after 4 steps",)
    assert rows["fine"].seeds == 1
    assert rows["fine"].steps == STEPS
    assert rows["wild"].effects == {}


def test_two_contenders_of_one_name_are_refused(material, tmp_path):
    with pytest.raises(ConfigError, match="a-b"):
        run(material, tmp_path, entry("a b"), entry("a-b"))


@given(st.lists(st.lists(st.floats(-50, 50), min_size=2, max_size=5), min_size=1, max_size=5))
def test_differences_and_their_errors_are_those_of_the_book(groups):
    found = compare_means({str(number): group for number, group in enumerate(groups)})
    freedom = sum(len(group) - 1 for group in groups)
    pooled = sum(statistics.variance(group) * (len(group) - 1) for group in groups) / freedom
    for effect, group in zip(found.values(), groups, strict=True):
        assert effect.mean == pytest.approx(statistics.mean(group), abs=1e-9)
        assert effect.spread == pytest.approx(statistics.stdev(group), abs=1e-6)
        assert effect.difference == pytest.approx(statistics.mean(group) - statistics.mean(groups[0]), abs=1e-9)
        assert effect.error == pytest.approx(math.sqrt(pooled * (1 / len(group) + 1 / len(groups[0]))), abs=1e-6)


def test_one_seed_has_no_spread():
    found = compare_means({"a": [1.0], "b": [2.0], "absent": []})
    assert list(found) == ["a", "b"]
    assert found["b"].difference == 1.0
    assert found["b"].spread is found["b"].error is None


@pytest.mark.parametrize(("rows", "columns", "inner"), [(3, 5, 7), (16, 1, 4)])
def test_operations_of_a_product_and_its_gradients(rows, columns, inner):
    a, b = torch.rand(rows, inner, requires_grad=True), torch.rand(inner, columns, requires_grad=True)
    assert count_flops(lambda: a @ b) == 2 * rows * columns * inner
    assert count_flops(lambda: (a @ b).sum().backward()) == 3 * 2 * rows * columns * inner


def test_operations_are_those_that_torch_counts():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten(1))
    x = torch.rand(2, 3, 12, 12)
    with FlopCounterMode(display=False) as counter:
        network(x).square().sum().backward()
    assert count_flops(lambda: network(x).square().sum().backward()) == counter.get_total_flops()


@pytest.mark.parametrize("medium", ["images", "videos"])
def test_every_contender_that_is_ready_is_a_valid_config(medium):
    groups = variant_groups(medium, 100)
    names = [one.name for members in groups.values() for one in members]
    assert len(set(names)) == len(names)
    for one in (PLAIN, *(one for members in groups.values() for one in members)):
        config = one.training(medium, 100)
        with torch.device("meta"):
            tokenizer = Tokenizer(config.tokenizer)
        assert tokenizer.strides == ((1, 8, 8) if medium == "images" else (4, 8, 8)), one.name
        assert set(config.tokenizer.quantizer.losses) <= set(config.weights), one.name
        if (parts := re.fullmatch(r"(vq|lfq|fsq|dsq)(\d+)(-\w+)*", one.name)) is not None:
            codes = int(parts[2]) if parts[1] != "lfq" else 2 ** int(parts[2])
            assert tokenizer.codebook_size == codes


def test_contenders_are_named_by_group_by_recipe_or_with_changes():
    groups = variant_groups("images", 100)
    assert [one.name for one in find_variants("norms", groups)] == ["base", "norm-frame"]
    (changed,) = find_variants("norm-frame:  tokenizer.width=64", groups)
    assert changed.name == "norm-frame: tokenizer.width=64"
    assert changed.set == ("tokenizer.norm=frame", "tokenizer.width=64")
    assert find_variants("demo-image", groups)[0].recipe == "demo-image"
    for wrong, part in (("lfq81", "did you mean 'lfq18'"), ("base:", "nothing after"), ("base: 'a", "quotation")):
        with pytest.raises(ConfigError, match=part):
            find_variants(wrong, groups)
    with pytest.raises(ConfigError, match=r"base: `set`: tokenizer.widht"):
        Variant(name="base", set=("tokenizer.widht=3",)).training("images", 10)
