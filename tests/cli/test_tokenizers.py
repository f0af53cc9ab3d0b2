"""`smalti info`, `smalti inflate`, and how a tokenizer is found."""

import json
import math
import shutil

import pytest
import torch

from smalti.families import load
from smalti.families.names import find_tokenizer
from smalti.recipes import find
from smalti.tokenizer import Tokenizer
from tests.cli.conftest import assert_one_line


def test_info_says_what_a_tokenizer_is(smalti, video_tokenizer):
    about, tokenizer = json.loads(smalti("info", video_tokenizer, "--json").out), load(video_tokenizer)
    assert about["strides"] == {"time": 2, "rows": 2, "columns": 2}
    assert about["levels"] == list(tokenizer.levels)
    assert about["codebook_size"] == tokenizer.codebook_size
    assert about["bits_per_pixel"] == pytest.approx(math.log2(tokenizer.codebook_size) / 8)
    assert about["parameters"]["all"] == sum(p.numel() for p in tokenizer.parameters())
    assert about["fingerprint"] == tokenizer.fingerprint
    assert (about["kind"], about["is_causal"], about["is_tile_exact"]) == ("video", True, True)
    assert about["weights_bytes"] == sum(t.nbytes for t in tokenizer.state_dict().values())
    text = smalti("info", video_tokenizer).out
    assert f"{tokenizer.codebook_size:,}" in text
    assert tokenizer.fingerprint in text


def test_info_says_what_is_not_exact(smalti, clip_tokenizer):
    about = json.loads(smalti("info", clip_tokenizer, "--json").out)
    assert (about["is_causal"], about["is_tile_exact"]) == (False, False)


def test_the_newest_checkpoint_of_a_run_is_found_and_the_finished_tokenizer_before_it(
    smalti, image_tokenizer, video_tokenizer, tmp_path
):
    run = tmp_path / "run"
    for step, tokenizer in ((9, video_tokenizer), (10, image_tokenizer)):
        shutil.copytree(tokenizer, run / f"step-{step:08d}" / "tokenizer")
    (run / "config.yaml").write_text("")
    (run / "log.jsonl").write_text('{"step": 10, "total": 0.5}\n{"step": 11, "tot')
    assert find_tokenizer(str(run)) == run / "step-00000010" / "tokenizer"
    about = json.loads(smalti("info", run, "--json").out)
    last = {"step": 10, "total": 0.5}
    facts = {"step": 10, "checkpoint": "step-00000010", "last": last}
    assert about["run"].pop("fault").startswith(f"{run / 'config.yaml'}: ")
    assert about["run"] == facts
    assert f"{run / 'config.yaml'}: " in smalti("info", run).out.replace("\n", "")
    (run / "config.yaml").write_text(find("tiny", tiny=True).override(["steps=20"]).to_yaml())
    assert json.loads(smalti("info", run, "--json").out)["run"] == {**facts, "steps": 20}
    assert about["kind"] == "image"
    shutil.copytree(video_tokenizer, run / "tokenizer")
    assert json.loads(smalti("info", run, "--json").out)["kind"] == "video"


def test_a_tokenizer_that_is_not_there_is_code_3(smalti, tmp_path):
    assert_one_line(smalti("info", tmp_path / "none"), 3, "no such file or folder")
    assert_one_line(smalti("info", tmp_path), 3, "neither a tokenizer")


def test_a_config_of_something_else_is_code_4(smalti, image_tokenizer, tmp_path):
    shutil.copytree(image_tokenizer, tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text('{"model_type": "bert"}')
    assert_one_line(smalti("info", tmp_path / "t"), 4, "config.json")


def test_inflate_makes_a_video_tokenizer(smalti, image_tokenizer, tmp_path):
    command = ("inflate", image_tokenizer, "--out", tmp_path / "video", "--time-strides", "2", "--past", "full")
    ended = smalti(*command)
    assert (ended.code, ended.err) == (0, "")
    about = json.loads(smalti("info", tmp_path / "video", "--json").out)
    assert about["strides"] == {"time": 2, "rows": 2, "columns": 2}
    assert (about["config"]["time_kernel"], about["config"]["past_kernel"]) == (3, "full")
    assert_one_line(smalti(*command), 2, "already exists")


def test_inflate_refuses_wrong_strides(smalti, image_tokenizer, video_tokenizer, tmp_path):
    out = ("--out", tmp_path / "video", "--time-strides")
    assert_one_line(smalti("inflate", image_tokenizer, *out, "2,x"), 2, "2,x")
    assert_one_line(smalti("inflate", image_tokenizer, *out, "2,2"), 2, "1 time strides")
    assert_one_line(smalti("inflate", video_tokenizer, *out, "2"), 2, "video tokenizer already")
    assert_one_line(smalti("inflate", image_tokenizer, "--out", tmp_path / "q", "--quarters"), 2, "conditional-cnn")
    assert_one_line(smalti("inflate", image_tokenizer, *out, "2", "--quarters"), 2, "give one of --time-strides")
    assert_one_line(smalti("inflate", image_tokenizer, *out[:-1]), 2, "give one of --time-strides")
    way = ("--conditional", "2", "--norm", "frame")
    assert_one_line(smalti("inflate", image_tokenizer, *out[:-1], *way), 2, "--conditional: past kernels and norms")
    assert not (tmp_path / "video").exists()


def test_quarters_are_switched_on_without_another_weight(smalti, image_tokenizer, tmp_path):
    made = smalti("inflate", image_tokenizer, "--out", tmp_path / "plain", "--conditional", "2")
    assert made.code == 0, made.err
    made = smalti("inflate", tmp_path / "plain", "--out", tmp_path / "quarters", "--quarters")
    assert made.code == 0, made.err
    plain, quarters = (Tokenizer.load(tmp_path / name) for name in ("plain", "quarters"))
    assert quarters.config == plain.config.replace({"quarters": True})
    assert quarters.codebook_size == 5 * plain.codebook_size
    own = quarters.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in plain.state_dict().items())
