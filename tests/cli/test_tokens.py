"""`smalti tokenize`, `decode`, `export`, and `info` of a token set."""

import json

import pytest

from smalti.data import open_video, read_image
from tests.cli.conftest import assert_one_line


@pytest.fixture
def tokens(smalti, image_tokenizer, pictures, tmp_path):
    ended = smalti("tokenize", image_tokenizer, pictures, "--out", tmp_path / "set", "--size", "32x48", "--workers", 0)
    assert ended.code == 0, ended
    assert "2 ok + 0 bad + 0 skipped = 2 listed; 2 rows" in ended.out
    return tmp_path / "set"


def test_pictures_go_to_a_set_and_back_to_png(smalti, tokens, tmp_path):
    ended = smalti("decode", tokens, "--out", tmp_path / "seen")
    assert ended.code == 0, ended
    assert ended.out.count("48x32") == 2
    assert [read_image(path).shape for path in sorted((tmp_path / "seen").iterdir())] == [(32, 48, 3)] * 2
    assert_one_line(smalti("decode", tokens, "--out", tmp_path / "seen"), 2, "already exists; pass --overwrite")
    assert smalti("decode", tokens, "--out", tmp_path / "seen", "--overwrite").code == 0


def test_film_keeps_its_rate_and_length(smalti, video_tokenizer, film, tmp_path):
    ended = smalti("tokenize", video_tokenizer, film, "--out", tmp_path / "set", "--workers", 0, "--json")
    told = json.loads(ended.out)
    assert (told["frames"], told["rows"], told["finished"]) == (24, 1, True)
    assert smalti("decode", tmp_path / "set", "--out", tmp_path / "seen", "--key", film.name).code == 0
    with open_video(film) as before, open_video(tmp_path / "seen" / film.name) as after:
        assert (len(after), after.size) == (len(before), before.size)
        assert after.fps == pytest.approx(before.fps)


def test_the_same_command_again_changes_nothing_and_another_one_is_refused(
    smalti, image_tokenizer, pictures, tokens, tmp_path
):
    before = {path.name: path.stat().st_mtime_ns for path in (tokens / "data").iterdir()}
    same = ("tokenize", image_tokenizer, pictures, "--out", tokens, "--workers", 0)
    assert smalti(*same, "--size", "32x48").code == 0
    assert smalti(*same, "--resume").code == 0
    assert_one_line(smalti(*same, "--resume", "--precision", "bfloat16"), 2, "begun with precision None (now bfloat16)")
    assert {path.name: path.stat().st_mtime_ns for path in (tokens / "data").iterdir()} == before
    assert_one_line(smalti(*same, "--size", 64), 2, "begun with size [32, 48] (now 64)")
    (pictures / "new.png").write_bytes(b"new")
    assert_one_line(smalti(*same, "--size", "32x48"), 3, "new.png is new")


def test_bad_files_are_named_and_the_rest_is_done(smalti, image_tokenizer, mixed, tmp_path):
    ended = smalti("tokenize", image_tokenizer, mixed, "--out", tmp_path / "set", "--workers", 0)
    assert ended.code == 3
    assert "2 ok + 1 bad + 0 skipped = 3 listed" in ended.out
    assert "left out: cut.jpg: ends before its last pixel" in ended.err
    assert ended.err.endswith("error: 1 of 3 are left out (1 truncated); the rest is done\n")


def test_parts_of_the_work_make_the_set_together(smalti, image_tokenizer, pictures, tmp_path, monkeypatch):
    command = ("tokenize", image_tokenizer, pictures, "--out", tmp_path / "set", "--workers", 0)
    small = ("--set", "options.shard_files=1")
    assert "2 inputs in 2 shards" in smalti(*command, *small, "--plan-only").out
    assert "1 of 2 shards are done" in smalti(*command, *small, "--shard", "1/2").out
    assert_one_line(smalti("decode", tmp_path / "set", "--out", tmp_path / "x"), 3, "is not finished")
    about = json.loads(smalti("info", tmp_path / "set", "--json").out)
    assert (about["finished"], about["shards"], about["planned_shards"]) == (False, 1, 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 ok" in smalti(*command, *small, "--shard", "auto").out


def test_info_says_what_a_set_is(smalti, tokens):
    ended = smalti("info", tokens, "--json")
    about = json.loads(ended.out)
    assert (about["rows"], about["tokens"], about["finished"]) == (2, 2 * 16 * 24, True)
    assert about["options"]["size"] == [32, 48]
    assert "codebook bits" in smalti("info", tokens).out


def test_the_ids_of_a_set_are_written_as_npy(smalti, tokens, tmp_path):
    ended = smalti("decode", tokens, "--to", "npy", "--out", tmp_path / "npy", "--json")
    assert len(json.loads(ended.out)["done"]) == 2
    assert json.loads((tmp_path / "npy" / "metadata.json").read_text())["shape"] == [2, 1, 16, 24]
    assert_one_line(smalti("decode", tokens, "--to", "npy", "--out", tmp_path / "npy"), 2, "already exists")
    assert_one_line(smalti("export", tokens, "--out", tmp_path / "x"), 2, "smalti decode SET --to npy")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--size", "wide"], "--size wide: expected"),
        (["--shard", "3/2"], "--shard 3/2: parts are numbered from 0 to 1"),
        (["--shard", "half"], "--shard half: expected part/parts"),
        (["--shard", "auto"], "--shard auto: neither torchrun nor Slurm"),
        (["--overlap", "2"], "set clip too"),
        (["--size", "32", "--set", "options.size=16"], "--size: set options.size says another"),
        (["--precision", "float16"], "'float16' is not one of 'float32', 'bfloat16'. (see smalti tokenize --help)"),
        (["--set", "options.nope=1"], "options.nope"),
        (["--set", "inputs.kind=nope"], "inputs"),
    ],
)
def test_wrong_options_are_one_line(smalti, image_tokenizer, pictures, tmp_path, monkeypatch, arguments, part):
    for name in ("RANK", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    command = ("tokenize", image_tokenizer, pictures, "--out", tmp_path / "set", "--workers", 0)
    assert_one_line(smalti(*command, *arguments), 2, part)


def test_another_tokenizer_cannot_decode(smalti, tokens, video_tokenizer, tmp_path):
    ended = smalti("decode", tokens, "--out", tmp_path / "seen", "--tokenizer", video_tokenizer)
    assert_one_line(ended, 4, "made by a tokenizer with strides")


def test_film_needs_clips_where_a_tokenizer_is_not_causal(smalti, clip_tokenizer, film, tmp_path):
    command = ("tokenize", clip_tokenizer, film, "--workers", 0)
    assert_one_line(smalti(*command, "--out", tmp_path / "a"), 2, "cut it into clips")
    assert "5 rows" in smalti(*command, "--out", tmp_path / "b", "--clip", 5).out
    assert smalti("decode", tmp_path / "b", "--out", tmp_path / "seen").code == 0


def test_a_set_is_scored_against_its_originals(smalti, tokens, pictures):
    report = json.loads(smalti("eval", tokens, "--data", pictures, "--json").out)
    assert (report["clips"], report["codebook"]["tokens"]) == (2, 2 * 16 * 24)
    title = " ".join(smalti("eval", tokens, "--data", pictures, "--limit", 1).out.split("┏")[0].split())
    assert title == "protocol smalti: 1 of 2 clips, 1 frames; each scaled and cut to 32 x 48"
    sorted(pictures.iterdir())[0].unlink()
    ended = smalti("eval", tokens, "--data", pictures, "--json")
    assert ended.code == 3
    assert json.loads(ended.out)["clips"] == 1
