"""The pictures of docs/learning.md: every contender and seed is drawn, with the ceiling of its sample."""

import json

import pytest

from benchmarks.draw_curves import LABELS, draw
from smalti.comparison import Point
from smalti.metrics.codebook import expected_distinct, expected_perplexity


@pytest.fixture
def bench(tmp_path):
    row = dict.fromkeys(Point.model_fields, 1) | {"tokens": 500, "codebook_size": 4096}
    row["expected_distinct"] = expected_distinct(4096, 500)
    rows = [
        {**row, "contender": name, "seed": seed, "share": share, "steps": int(100 * share), "seconds": 9 * share}
        | {"distinct": int(10 * share) + seed}
        | dict.fromkeys(("psnr", "lpips", "frechet", "perplexity"), 10 * share + seed)
        for name in ("fsq", "lfq")
        for seed in (0, 1)
        for share in (0.5, 1.0)
    ]
    (tmp_path / "points.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def test_a_line_for_each_contender_and_seed_in_the_order_of_the_run(bench):
    figure = draw(bench, list(LABELS), "steps", [])
    for axis, score in zip(figure.axes, LABELS, strict=True):
        drawn = [line for line in axis.lines if line.get_marker() == "o"]
        assert [list(line.get_xdata()) for line in drawn] == [[50.0, 100.0]] * 4
        assert sorted(list(line.get_ydata()) for line in drawn) == [[5.0, 10.0]] * 2 + [[6.0, 11.0]] * 2
        ceilings = [float(line.get_ydata()[0]) for line in axis.lines if line.get_linestyle() == "--"]
        most = {"distinct": expected_distinct(4096, 500), "perplexity": expected_perplexity(4096, 500)}
        assert ceilings == pytest.approx([most[score]] * 2 if score in most else [])


def test_only_the_contenders_asked_for_are_drawn(bench):
    (axis,) = draw(bench, ["psnr"], "seconds", ["lfq"]).axes
    assert [list(line.get_xdata()) for line in axis.lines] == [[4.5, 9.0]] * 2
