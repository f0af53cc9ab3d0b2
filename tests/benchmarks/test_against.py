"""The race with other projects: one optimizer for all, splits that never mix, the same operations where it says so."""

import math
import shutil
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from benchmarks import against
from benchmarks.peers.learner import Shared
from smalti import load
from smalti.comparison import Budget, ComparisonData, LearnerSource, is_held_out
from smalti.errors import InputError

SHARED = Shared(steps=2, size=32)


def images(folder, names, first=0):
    folder.mkdir()
    for seed, name in enumerate(names, first):
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 5, 5, generator=rng)
        pixels = torch.nn.functional.interpolate(coarse, size=(40, 40), mode="bilinear")[0]
        Image.fromarray((pixels * 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(folder / name)
    return folder


@pytest.fixture
def splits(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    assert 0 < sum(map(is_held_out, names)) < 12
    return images(tmp_path / "data", names), images(tmp_path / "test", ["a.png", "b.png"], 100)


def test_our_contender_for_images_is_the_network_that_ships():
    first = against.ours("images", 1000)[0]
    assert first.training("images", 1000).tokenizer == load("smalti/tiny-image").config


@pytest.mark.parametrize("medium", ["images", "videos"])
def test_every_contender_is_there_once_at_every_rate_with_one_optimizer(medium):
    rates = [3e-4, 1e-3, 1e-2]
    found = [source.name for source in against.entries(medium, SHARED, rates)]
    assert len(set(found)) == len(found)
    names = {name.rpartition(", rate ")[0] for name in found}
    assert set(found) == {against.at_rate(name, rate) for name in names for rate in rates}
    assert len(names) == 2 + {"images": 3, "videos": 2}[medium]
    learner = against.entries(medium, SHARED, [7e-4])[0].build(3)
    assert learner.config.optimizer == against.optimizer(7e-4, SHARED.steps)
    assert learner.config.seed == 3
    assert learner.config.steps == SHARED.steps


def test_a_test_split_has_no_image_of_the_others_under_any_name(splits):
    data, test = splits
    media = ComparisonData(data=data, size=32, limit=1)
    assert [key for key, _ in against.read_test_split(media, test)] == ["a.png", "b.png"]
    for path in sorted(data.iterdir()):  # learnt from, chosen on, or beyond the limit of what is chosen on
        shutil.copy(path, test / "z.png")
        with pytest.raises(InputError, match=rf"z\.png is {path.name}"):
            against.read_test_split(media, test)
    apart = images(test.parent / "apart", ["held.png"], 200)
    shutil.copy(apart / "held.png", test / "z.png")
    with pytest.raises(InputError, match=r"z\.png is held\.png"):
        against.read_test_split(media.replace({"heldout": apart}), test)


def test_a_test_split_changes_no_run_and_no_choice(splits, tmp_path):
    data, test = splits
    media = ComparisonData(data=data, size=32, limit=2)
    budget = Budget(amount=2.0, seeds=1, points=1, batch_size=2)
    only = ["smalti, FSQ 64,000, rate 0.003"]
    out, rates = tmp_path / "race", [1e-3, 3e-3]
    against.compete(media, budget, SHARED, out, rates, ["smalti, FSQ"])  # the search, of which one rate goes on
    _, before = against.compete(media, budget, SHARED, out, rates, only)
    points = (out / "points.jsonl").read_bytes()
    _, after = against.compete(media, budget, SHARED, out, rates, only, [test])
    assert (out / "points.jsonl").read_bytes() == points
    assert after[: len(before)] == before
    assert {row["split"] for row in before} == {"validation"}
    rest = after[len(before) :]
    assert {row["split"] for row in rest} == {"test"}
    assert [row["contender"] for row in rest] == [row["contender"] for row in before]
    scored = {row["contender"]: row for row in rest}
    assert scored["mean colour"]["psnr"] > scored["grey"]["psnr"]
    assert scored["x264, tune=psnr"]["bits_per_pixel"] > 0
    assert scored[only[0]]["seeds"] == 1
    assert scored[only[0]]["psnr"] != before[-1]["psnr"]
    # More seeds go on in the same folder, and the first stays as it was.
    _, two = against.compete(media, budget.replace({"seeds": 2}), SHARED, out, rates, only, [test])
    assert two[-1]["psnr_of_seeds"][0] == scored[only[0]]["psnr"]
    assert two[-1]["psnr"] == pytest.approx(sum(two[-1]["psnr_of_seeds"]) / 2)


class Spent(NamedTuple):
    flops: float
    psnr: float


class Run(NamedTuple):
    source: LearnerSource
    points: list[Spent]
    fault: str | None = None


def ran(name, *points, fault=None):
    return Run(LearnerSource(name, lambda seed: None), [Spent(*point) for point in points], fault)


def test_psnr_at_equal_operations_is_on_the_line_between_points():
    runs = [
        ran("cheap", (1.0, 10.0), (4.0, 16.0)),
        ran("cheap", (1.0, 12.0), (5.0, 18.0)),
        ran("dear", (2.0, 20.0), (6.0, 28.0)),
        ran("too dear", (4.5, 30.0), (9.0, 40.0)),
        ran("stopped", (0.5, 1.0), (1.0, 2.0), fault="not finite"),
        ran("not begun"),
    ]
    found = against.at_equal_flops(runs)
    assert found == {"cheap": (16.0 + 12.0 + 6.0 * 3 / 4) / 2, "dear": 24.0}
    assert against.at_equal_flops([]) == {}


@pytest.mark.parametrize("seed", range(3))
def test_x264_takes_as_many_bytes_as_the_tokens_at_most_or_is_at_its_coarsest(seed):
    rng = torch.Generator().manual_seed(seed)
    soft = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9, generator=rng), size=(64, 64), mode="bilinear")
    clip = (soft * 2 - 1)[:, :, None]
    rows = {row["contender"]: row for row in against.trivial_rows(ComparisonData(), [("one", clip)])}
    assert rows["x264, tune=psnr"]["bits_per_pixel"] <= math.log2(64_000) / 64
    assert rows["x264, tune=psnr"]["psnr"] > rows["16x16 means"]["psnr"] > rows["mean colour"]["psnr"]
