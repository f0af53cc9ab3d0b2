"""`smalti compare`: one command, a page; stopped and resumed; wrong names and budgets in one line."""

import json

import pytest

from smalti.comparison import read_points
from tests.cli.conftest import assert_one_line

SMALL = (
    *("compare", "--size", 32, "--steps", 2, "--seeds", 2, "--points", 1, "--limit", 2, "--batch", 2),
    *("--set", "tokenizer.width=8"),
)


def test_a_bench_leaves_a_page_a_report_and_points(smalti, tmp_path):
    out = tmp_path / "bench"
    command = (*SMALL, "--variant", "fsq64000", "--variant", "lfq14: optimizer.lr=1e-3", "--out", out)
    ended = smalti(*command)
    assert ended.code == 0, ended.err
    assert ended.out == f"{out / 'index.html'}: open this page to see it all\n"
    assert "fsq64000, seed 1, 2 steps" in ended.err
    points = read_points(out)
    assert [(p.contender, p.seed) for p in points] == [
        *(("fsq64000", 0), ("lfq14: optimizer.lr=1e-3", 0)),
        *(("fsq64000", 1), ("lfq14: optimizer.lr=1e-3", 1)),
    ]
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["contenders"]] == ["fsq64000", "lfq14: optimizer.lr=1e-3"]
    assert all(row["seeds"] == 2 and row["flops_per_step"] > 0 for row in report["contenders"])
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 1
    assert (out / "samples.png").is_file()
    assert smalti("info", out / "runs" / "fsq64000" / "0" / "tokenizer").code == 0
    assert_one_line(smalti(*command), 2, "--resume")
    assert_one_line(smalti(*command, "--resume", "--steps", 3), 2, "other contenders, steps, terms")
    again = smalti(*command, "--resume", "--json")
    assert json.loads(again.out) == report


def test_film_takes_part_too(smalti, tmp_path):
    out = tmp_path / "bench"
    film = ("--medium", "videos", "--frames", 5, "--seeds", 1, "--variant", "base", "--out", out)
    ended = smalti(*SMALL, *film)
    assert ended.code == 0, ended.err
    (point,) = read_points(out)
    assert point.tokens == 2 * 2 * 4 * 4


@pytest.mark.slow
def test_a_bench_goes_on_with_more_seeds_and_contenders_but_not_with_fewer(smalti, tmp_path):
    def bench(out, seeds, *names, more=()):
        chosen = [part for name in names for part in ("--variant", name)]
        return smalti(*SMALL, "--seeds", seeds, *chosen, "--out", tmp_path / out, *more)

    assert bench("grown", 1, "base").code == 0
    assert bench("grown", 2, "base", "fsq15360", more=["--resume"]).code == 0
    assert bench("whole", 2, "base", "fsq15360").code == 0
    grown, whole = (read_points(tmp_path / out) for out in ("grown", "whole"))
    assert len(grown) == 4
    assert [p.replace({"seconds": 0.0}) for p in grown] == [p.replace({"seconds": 0.0}) for p in whole]
    assert_one_line(bench("grown", 1, "base", "fsq15360", more=["--resume"]), 2, "other terms")
    assert_one_line(bench("grown", 2, "fsq15360", more=["--resume"]), 2, "other contenders")


def test_contenders_come_from_a_file(smalti, tmp_path):
    listed = tmp_path / "mine.yaml"
    listed.write_text("contenders:\n  - name: mine\n    set: [tokenizer.norm=frame]\n  - {name: plain, recipe: tiny}\n")
    ended = smalti(*SMALL, "--variants", listed, "--seeds", 1, "--out", tmp_path / "bench", "--json")
    assert [row["name"] for row in json.loads(ended.out)["contenders"]] == ["mine", "plain"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "give --variant"),
        (("--variant", "lfq81"), "did you mean 'lfq18'"),
        (("--variant", "base", "--seconds", 1, "--teraflops", 1), "one budget"),
        (("--variant", "base", "--set", "tokenizer.widht=1"), "tokenizer.widht"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_starts_nothing(smalti, tmp_path, arguments, part):
    assert_one_line(smalti(*SMALL, *arguments, "--out", tmp_path / "bench"), 2, part)
    assert not (tmp_path / "bench").exists()
