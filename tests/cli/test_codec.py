"""`smalti compress` and `smalti decompress`: exact ids, parts equal to the whole, and no damaged file is ever read."""

import json
import math
import os
import random
import shutil

import pytest
import torch
from PIL import Image

from smalti.codec import codec
from smalti.codec.codec import compress_file, decompress_file, read_frames, read_info, stream_frames
from smalti.codec.entropy import encode_ids
from smalti.codec.format import Reader, Writer
from smalti.codec.prior import Prior, shipped_prior
from smalti.data import open_video, read_image, write_video
from smalti.data.bundled import photos
from smalti.errors import IntegrityError, SmaltiError
from smalti.families import load
from smalti.families.names import SHIPPED_NAMES
from smalti.tokenizer import frames
from smalti.video import to_uint8, to_video
from tests import programs
from tests.cli.conftest import FPS, assert_one_line, moving, save

MODELS = ("uniform", "static", "adaptive")


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """A video of 14 frames (no legal length), 18 x 22 pixels, 23.976 per second."""
    path = tmp_path_factory.mktemp("film") / "square.mp4"
    write_video(path, list(moving(14, 18, 22)), FPS)
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two latent frames, so that a short film has several."""
    monkeypatch.setattr(codec, "BLOCK_TOKENS", 9 * 11 * 2)


@pytest.fixture
def coded(video_tokenizer, film, tmp_path, small_blocks):
    path = tmp_path / "film.smt"
    compress_file(load(video_tokenizer), film, path)
    return path


def frames_of(path):
    with open_video(path) as reader:
        return torch.stack(list(reader.frames()))


def all_of(tokenizer, path, first=0, end=None):
    return torch.stack(list(read_frames(tokenizer, path, first, end)))


@pytest.mark.parametrize("model", MODELS)
def test_a_picture_comes_back_as_its_tokens_decode(image_tokenizer, tmp_path, model):
    tokenizer, source = load(image_tokenizer), photos("heldout") / "owl.jpg"
    done = compress_file(tokenizer, source, tmp_path / "owl.smt", model=model)
    back = decompress_file(tokenizer, done.path, tmp_path / "owl.png")
    video = to_video(read_image(source))
    with torch.inference_mode():
        ids = tokenizer.encode(video)
        wanted = to_uint8(tokenizer.decode(ids, size=video.shape[2:]))[0, 0]
    assert torch.equal(read_image(back.path), wanted)
    assert (done.tokens, done.frames, done.fps, back.frames, back.fps) == (ids.numel(), 1, None, 1, None)
    assert done.bytes == (tmp_path / "owl.smt").stat().st_size
    assert done.ratio == pytest.approx(source.stat().st_size / done.bytes)
    assert done.bits_per_pixel == pytest.approx(8 * done.bytes / video[0, 0].numel())
    assert done.uniform_bytes == pytest.approx(ids.numel() * math.log2(tokenizer.codebook_size) / 8)
    assert done.ideal_bytes <= done.bytes <= 1.01 * done.ideal_bytes + 400


def test_a_large_picture_goes_tile_by_tile(tmp_path, monkeypatch):
    tokenizer = load(save(tmp_path / "t", strides=((1, 4),), patch=2)).double()
    compress_file(tokenizer, photos("heldout") / "owl.jpg", tmp_path / "whole.smt")
    monkeypatch.setattr(frames, "TILED_ABOVE", 1000)
    monkeypatch.setattr(frames, "choose_tile", lambda tokenizer: 160)
    compress_file(tokenizer, photos("heldout") / "owl.jpg", tmp_path / "tiles.smt")
    assert (tmp_path / "tiles.smt").read_bytes() == (tmp_path / "whole.smt").read_bytes()
    in_tiles = all_of(tokenizer, tmp_path / "tiles.smt")
    monkeypatch.undo()
    assert torch.equal(in_tiles, all_of(tokenizer, tmp_path / "tiles.smt"))


@pytest.mark.parametrize("group", [None, 1, 5, 100])
@pytest.mark.parametrize("kind", ["image", "video", "clip"])
def test_a_video_has_the_ids_and_pixels_of_its_groups(
    kind, group, image_tokenizer, video_tokenizer, clip_tokenizer, film, tmp_path, small_blocks
):
    tokenizer = load({"image": image_tokenizer, "video": video_tokenizer, "clip": clip_tokenizer}[kind]).double()
    if kind == "clip" and group is None:
        return  # refused: see test_a_tokenizer_that_is_not_causal_needs_groups
    seen = []
    path = tmp_path / "a.smt"
    done = compress_file(tokenizer, film, path, group=group, progress=lambda *at: seen.append(at))
    assert seen == [(i, 14) for i in range(1, 15)]
    video, tokens, wanted = to_video(frames_of(film)).double(), 0, []
    with torch.inference_mode():
        for part in video.split(group or 14, 2):
            ids = tokenizer.encode(part)
            tokens += ids.numel()
            wanted.append(to_uint8(tokenizer.decode(ids, size=part.shape[2:]))[0])
    assert (done.frames, done.tokens) == (14, tokens)
    made = all_of(tokenizer, path)
    assert (made.int() - torch.cat(wanted).int()).abs().max() <= 1  # a half level may round either way
    with path.open("rb") as file:
        assert torch.equal(torch.stack(list(stream_frames(tokenizer, file, "pipe"))), made)
    facts = read_info(path)
    assert (facts.frames, facts.tokens, facts.bytes) == (14, tokens, done.bytes)


@pytest.mark.parametrize("group", [None, 5])
def test_a_part_has_the_bits_of_the_whole(group, video_tokenizer, film, tmp_path, small_blocks):
    tokenizer = load(video_tokenizer)
    compress_file(tokenizer, film, tmp_path / "a.smt", group=group)
    whole = all_of(tokenizer, tmp_path / "a.smt")
    for first, end in ((0, 1), (3, 4), (4, 9), (5, 6), (5, 10), (9, 14), (13, 14)):
        assert torch.equal(all_of(tokenizer, tmp_path / "a.smt", first, end), whole[first:end])
    assert torch.equal(all_of(tokenizer, tmp_path / "a.smt", 12), whole[12:])


def test_with_groups_only_the_blocks_that_are_needed_are_read(video_tokenizer, film, tmp_path, small_blocks):
    tokenizer, path = load(video_tokenizer), tmp_path / "a.smt"
    compress_file(tokenizer, film, path, group=5)
    whole = all_of(tokenizer, path)
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        for entry in Reader(file, "a").table():
            if not 5 <= entry.start < 10:
                data[entry.offset + 12] ^= 1
    path.write_bytes(data)
    assert torch.equal(all_of(tokenizer, path, 6, 9), whole[6:9])
    with pytest.raises(IntegrityError, match="block of frame 0"):
        all_of(tokenizer, path)


def test_the_command_makes_a_film_of_the_same_length_rate_and_size(smalti, video_tokenizer, film, tmp_path):
    made = smalti("compress", film, tmp_path / "a.smt", "--tokenizer", video_tokenizer)
    assert (made.code, made.err) == (0, "")
    assert "22x18, 14 frames at 23.98/s" in made.out
    assert all(word in made.out for word in ("tokens", "bytes", "ideal", "uniform", "bits per pixel", "of the source"))
    back = smalti("decompress", tmp_path / "a.smt", tmp_path / "b.mp4", "--tokenizer", video_tokenizer)
    assert (back.code, back.err) == (0, "")
    assert "22x18, frames 0:14 at 23.98/s" in back.out
    with open_video(tmp_path / "b.mp4") as reader:
        assert (len(reader), reader.size) == (14, (18, 22))
        assert reader.fps == pytest.approx(FPS, rel=1e-6)
    write_video(tmp_path / "c.mp4", read_frames(load(video_tokenizer), tmp_path / "a.smt"), FPS, crf=12)
    assert torch.equal(frames_of(tmp_path / "b.mp4"), frames_of(tmp_path / "c.mp4"))
    about_it = json.loads(smalti("info", tmp_path / "a.smt", "--json").out)
    assert (about_it["frames"], about_it["kind"], about_it["rate"]) == (14, "video", "24000/1001")


@pytest.mark.parametrize(("text", "count"), [("3:9", 6), ("10:", 4), (":5", 5)])
def test_a_range_of_frames(smalti, video_tokenizer, coded, tmp_path, text, count):
    command = ("decompress", coded, tmp_path / "b.mp4", "--tokenizer", video_tokenizer, "--frames", text, "--json")
    ended = smalti(*command)
    assert (ended.code, json.loads(ended.out)["frames"]) == (0, count)
    assert len(frames_of(tmp_path / "b.mp4")) == count


@pytest.mark.parametrize("text", ["10:30", "9:9", "30:", "x:2", "5", "-1:3"])
def test_frames_that_are_not_there_are_refused(smalti, video_tokenizer, coded, tmp_path, text):
    ended = smalti("decompress", coded, tmp_path / "b.mp4", "--tokenizer", video_tokenizer, "--frames", text)
    assert_one_line(ended, 2, text)
    assert not (tmp_path / "b.mp4").exists()


def test_a_tokenizer_that_is_not_causal_needs_groups(smalti, clip_tokenizer, film, tmp_path):
    command = ("compress", film, tmp_path / "a.smt", "--tokenizer", clip_tokenizer)
    assert_one_line(smalti(*command), 2, "not causal", "--group")
    assert smalti(*command, "--group", "5").code == 0


def test_names_are_checked_before_any_work(smalti, video_tokenizer, film, coded, tmp_path):
    how = ("--tokenizer", video_tokenizer)
    before = coded.read_bytes()
    photo = photos("heldout") / "owl.jpg"
    assert_one_line(smalti("compress", film, coded, *how), 2, coded, "--overwrite")
    assert_one_line(smalti("compress", film, film, *how, "--overwrite"), 2, film, "is an input")
    assert_one_line(smalti("compress", film, tmp_path / "a.zip", *how), 2, "a.zip", ".smt")
    assert_one_line(smalti("compress", photo, tmp_path / "a.smt", *how, "--group", "4"), 2, "--group")
    assert_one_line(smalti("decompress", coded, tmp_path / "a.png", *how), 2, "a.png", ".mp4")
    assert_one_line(smalti("compress", tmp_path / "none.mp4", tmp_path / "a.smt", *how), 3, "none.mp4")
    assert_one_line(smalti("decompress", tmp_path / "none.smt", tmp_path / "a.mp4", *how), 3, "none.smt")
    assert coded.read_bytes() == before
    assert smalti("compress", film, coded, *how, "--overwrite").code == 0


def test_a_foreign_tokenizer_is_refused(smalti, image_tokenizer, coded, tmp_path):
    ended = smalti("decompress", coded, tmp_path / "b.mp4", "--tokenizer", image_tokenizer)
    assert_one_line(ended, 4, coded, load(image_tokenizer).fingerprint[:12])
    assert not (tmp_path / "b.mp4").exists()


def rewritten(path, changes, data=None):
    """The file with another head, under true digests."""
    with path.open("rb") as file:
        reader = Reader(file, str(path))
        head, blocks = reader.head, list(reader.blocks())
    with path.open("wb") as file:
        writer = Writer(file, head.replace(changes))
        for block in blocks:
            writer.add(block.frames, data or block.data)
        writer.close()


def test_other_levels_strides_and_ids_out_of_range_are_refused(smalti, video_tokenizer, coded, tmp_path):
    how = (tmp_path / "b.mp4", "--tokenizer", video_tokenizer)
    original = coded.read_bytes()
    for changes, part in (({"levels": (8, 8, 8, 5, 5, 4)}, "levels"), ({"strides": (2, 1, 2)}, "strides")):
        rewritten(coded, changes)
        assert_one_line(smalti("decompress", coded, *how), 4, coded, part)
        coded.write_bytes(original)
    rewritten(coded, {}, data=b"\x07" + bytes(8))
    assert_one_line(smalti("decompress", coded, *how), 4, coded, "cannot be decoded")
    rewritten(coded, {}, data=b"")
    assert_one_line(smalti("decompress", coded, *how), 4, coded, "cannot be decoded")
    assert not (tmp_path / "b.mp4").exists()


def test_a_digit_beyond_its_levels_names_the_file(tmp_path):
    """Levels of 257 are coded as 17 x 16 symbols, which leaves room for ids that no tokenizer makes."""
    tokenizer = load(save(tmp_path / "t", strides=((1, 2),), quantizer={"kind": "fsq", "levels": (257, 5)}))
    path = tmp_path / "a.smt"
    compress_file(tokenizer, photos("heldout") / "owl.jpg", path)
    rows, columns = read_info(path).head.grid
    wrong = torch.full((1, rows, columns), 271).numpy()
    rewritten(path, {}, data=encode_ids(wrong, (272, 5), "uniform").data)
    with pytest.raises(IntegrityError, match=r"a\.smt: .* digit 271 is outside \[0, 257\)"):
        all_of(tokenizer, path)


def streamed(path):
    with path.open("rb") as file:
        if not list(Reader(file, str(path)).blocks()):
            raise AssertionError("a file has blocks")


def damaged(data, rng):
    """One flipped bit, cut, or swap of two pieces, and what it is."""
    kind = rng.choice(("flip", "cut", "swap"))
    if kind == "flip":
        i = rng.randrange(len(data))
        return kind, data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :]
    if kind == "cut":
        a, b = sorted(rng.choices(range(len(data) + 1), k=2))
        return kind, data[:a] + data[b:] if rng.random() < 0.5 else data[:a]
    size = rng.randint(1, len(data) // 4)
    a, b = sorted(rng.sample(range(0, len(data) - size, size), k=2))
    return kind, data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


@pytest.mark.parametrize("kind", ["picture", "video", "prior"])
def test_every_flipped_bit_cut_or_swap_in_200_trials_is_refused_with_the_files_name(
    kind, image_tokenizer, video_tokenizer, film, tmp_path, small_blocks
):
    names = {"picture": image_tokenizer, "video": video_tokenizer, "prior": "smalti/tiny-image"}
    tokenizer, path = load(names[kind]), tmp_path / "a.smt"
    if kind != "video":
        Image.fromarray(moving(1, 40, 50)[0]).save(tmp_path / "a.png")
        compress_file(tokenizer, tmp_path / "a.png", path)
    else:
        compress_file(tokenizer, film, path, group=5)
    data, rng, trials = path.read_bytes(), random.Random(0), 0
    while trials < 200:
        what, changed = damaged(data, rng)
        if changed == data:
            continue
        trials += 1
        path.write_bytes(changed)
        for read in (lambda: list(read_frames(tokenizer, path)), lambda: streamed(path)):
            with pytest.raises(SmaltiError) as caught:
                read()
            assert str(path) in str(caught.value), what
            assert caught.value.exit_code == 4 or not changed, what


def test_a_kill_while_writing_leaves_the_old_file_or_none(video_tokenizer, film, coded, tmp_path):
    before, target = coded.read_bytes(), tmp_path / "out" / "new.smt"
    for path in (coded, target):
        command = ["-m", "smalti", "compress", film, path, "--tokenizer", video_tokenizer, "--overwrite"]
        ended = programs.run(*command, env={**os.environ, "SMALTI_FAULT": "codec:after-block"})
        assert ended.returncode == -9
    assert coded.read_bytes() == before
    assert not target.exists()
    compress_file(load(video_tokenizer), film, target)  # clears away what the dead one left
    assert [p.name for p in target.parent.iterdir()] == ["new.smt"]


@pytest.fixture
def own_prior(smalti, image_tokenizer, tmp_path):
    """A prior for the image tokenizer, from a token set, by the command line."""
    out, small = tmp_path / "own.safetensors", ("--size", "32", "--workers", "0")
    assert smalti("tokenize", image_tokenizer, photos("heldout"), "--out", tmp_path / "set", *small).code == 0
    ended = smalti("prior", tmp_path / "set", "--out", out, "--steps", "3", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["tokenizer"] == load(image_tokenizer).fingerprint
    return out


def test_a_file_that_names_a_prior_needs_it(smalti, image_tokenizer, video_tokenizer, own_prior, tmp_path):
    owl, path, back = photos("heldout") / "owl.jpg", tmp_path / "a.smt", tmp_path / "a.png"
    how = ("--tokenizer", image_tokenizer)
    assert smalti("compress", owl, path, *how, "--prior", own_prior).code == 0
    digest = Prior.load(own_prior).digest
    assert f"prior {digest}" in " ".join(smalti("info", path).out.split())
    assert_one_line(smalti("decompress", path, back, *how), 4, path, digest, "none is given")
    assert not back.exists()
    assert smalti("decompress", path, back, *how, "--prior", own_prior).code == 0
    assert smalti("compress", owl, tmp_path / "b.smt", *how).code == 0  # without: as ever, the same pixels
    assert smalti("decompress", tmp_path / "b.smt", tmp_path / "b.png", *how).code == 0
    assert torch.equal(read_image(back), read_image(tmp_path / "b.png"))
    other = ("compress", owl, tmp_path / "c.smt", "--tokenizer")
    assert_one_line(smalti(*other, image_tokenizer, "--model", "prior"), 2, "smalti prior")
    assert_one_line(smalti(*other, image_tokenizer, "--model", "static", "--prior", own_prior), 2, "static")
    assert_one_line(smalti(*other, video_tokenizer, "--prior", own_prior), 2, "another", "smalti prior")
    assert_one_line(smalti(*other, image_tokenizer, "--prior", owl), 4, owl)
    assert_one_line(smalti("prior", tmp_path / "set", "--out", own_prior), 2, own_prior, "--overwrite")
    assert_one_line(smalti("prior", tmp_path / "set", "--out", tmp_path / "a.zip"), 2, ".safetensors")


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_a_shipped_tokenizer_codes_with_its_prior(name, film, tmp_path):
    tokenizer, path = load(name), tmp_path / "a.smt"
    done = compress_file(tokenizer, film, path)
    old = compress_file(tokenizer, film, tmp_path / "old.smt", model="adaptive")
    prior = shipped_prior(tokenizer.fingerprint)
    assert (read_info(path).head.prior, read_info(tmp_path / "old.smt").head.prior) == (prior.digest, None)
    assert done.bytes < old.bytes - 100
    assert torch.equal(all_of(tokenizer, path), all_of(tokenizer, tmp_path / "old.smt"))
    with path.open("rb") as file:
        assert torch.equal(torch.stack(list(stream_frames(tokenizer, file, "pipe"))), all_of(tokenizer, path))
    rewritten(path, {"prior": "0" * 16})
    with pytest.raises(IntegrityError, match=r"a\.smt: coded with the prior 0000"):
        all_of(tokenizer, path)


def test_a_bad_source_leaves_nothing(smalti, video_tokenizer, film, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:-500])
    target = tmp_path / "out" / "a.smt"
    assert_one_line(smalti("compress", tmp_path / "cut.mp4", target, "--tokenizer", video_tokenizer), 3, "cut.mp4")
    assert not target.parent.exists() or not list(target.parent.iterdir())


def test_equal_sources_make_equal_files(video_tokenizer, film, coded, tmp_path):
    shutil.copy(film, tmp_path / "again.mp4")
    compress_file(load(video_tokenizer), tmp_path / "again.mp4", tmp_path / "again.smt")
    assert (tmp_path / "again.smt").read_bytes() == coded.read_bytes()


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("size", [(2, 2), (17, 33)])
def test_short_films_of_any_size_keep_both(video_tokenizer, tmp_path, frames, size):
    tokenizer = load(video_tokenizer)
    write_video(tmp_path / "a.mp4", list(moving(frames, 40, 50)[:, : size[0], : size[1]]), 25)
    compress_file(tokenizer, tmp_path / "a.mp4", tmp_path / "a.smt")
    assert all_of(tokenizer, tmp_path / "a.smt").shape == (frames, *size, 3)


def test_goals_that_are_not_reached_write_nothing(smalti, tmp_path):
    small, command = tmp_path / "small.png", ("compress", tmp_path / "small.png", tmp_path / "a.smt", "--tokenizer")
    Image.fromarray(read_image(photos("heldout") / "owl.jpg")[100:132, 200:232].numpy()).save(small)
    shipped = (*command, SHIPPED_NAMES[0])
    assert_one_line(smalti(*shipped, "--psnr", 60), 2, "60 dB were not reached; the best file has")
    assert_one_line(smalti(*shipped, "--bits", 0.001), 2, "0.001 per pixel were not reached; the smallest file has")
    assert_one_line(smalti(*shipped, "--psnr", 20, "--bits", 1), 2, "give one of them")
    assert_one_line(smalti(*shipped, "--lambda", 1, "--model", "adaptive"), 2, "leave it out")
    assert_one_line(smalti(*shipped, "--lambda", -1), 2, "lambda")
    assert_one_line(smalti(*shipped, "--lambda", "inf"), 2, "--lambda")
    assert_one_line(smalti(*shipped, "--lambda", 1e13), 2, "is above 1e+12")
    assert_one_line(smalti(*shipped, "--psnr", "nan"), 2, "psnr")
    assert [path.name for path in tmp_path.iterdir()] == ["small.png"]


def test_a_search_says_its_quality_and_its_price(smalti, tmp_path):
    small, out = tmp_path / "small.png", tmp_path / "a.smt"
    Image.fromarray(read_image(photos("heldout") / "owl.jpg")[100:132, 200:232].numpy()).save(small)
    command = ("compress", small, out, "--tokenizer", SHIPPED_NAMES[0], "--overwrite", "--lambda", 1600)
    line = smalti(*command).out
    facts = json.loads(smalti(*command, "--json").out)
    assert facts["price"] == 1600
    assert f"{facts['psnr']:.2f} dB at --lambda 1600" in line
