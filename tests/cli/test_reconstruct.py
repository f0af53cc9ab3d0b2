"""`smalti reconstruct` and the functions behind it: any size and length, whole files, nothing lost in silence."""

import json
import math
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data import open_video, read_image, video_writer, write_video
from smalti.data.video_writer import write_png
from smalti.errors import BadTensor, ConfigError
from smalti.families import load
from smalti.pipeline.reconstruct import MediaView, reconstruct, reconstruct_file
from smalti.tokenizer.frames import (
    TILED_ABOVE,
    choose_tile,
    ids_to_image,
    images_to_ids,
    reconstruct_frames,
    round_trip,
)
from smalti.video import crop_to, to_uint8, to_video
from tests import programs
from tests.cli.conftest import FPS, assert_one_line, moving, save


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 30), (33, 47)])
def test_a_picture_of_any_size_keeps_it(image_tokenizer, tmp_path, height, width):
    pixels = moving(1, 40, 50)[0][:height, :width]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tokenizer = load(image_tokenizer)
    alone = reconstruct_file(tokenizer, tmp_path / "a.png", tmp_path / "alone.png")
    both = reconstruct_file(tokenizer, tmp_path / "a.png", tmp_path / "both.png", side_by_side=True)
    made, pair = read_image(alone.path), read_image(both.path)
    assert torch.equal(pair, torch.cat([torch.from_numpy(pixels), made], 1))
    assert (alone.height, alone.width, alone.frames, alone.fps) == (height, width, 1, None)
    assert alone.tokens == math.ceil(height / 2) * math.ceil(width / 2)
    assert alone.bits == pytest.approx(alone.tokens * math.log2(tokenizer.codebook_size))
    assert alone.bits_per_pixel == pytest.approx(alone.bits / (height * width))
    error = np.mean((pixels.astype(float) - made.numpy()) ** 2)
    assert alone.psnr == pytest.approx(10 * math.log10(255**2 / error))


@pytest.mark.parametrize("size", [(30, 1041), (1030, 50)])
def test_a_large_picture_in_tiles_has_the_tokens_and_pixels_of_the_whole(tmp_path, size):
    tokenizer = load(save(tmp_path / "t", strides=((1, 4),), patch=2)).double()
    rng = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, 1, *size, generator=rng, dtype=torch.float64) * 2 - 1
    made, ids = round_trip(tokenizer, video)
    with torch.inference_mode():
        ids_in_tiles = tokenizer.encode(video, tile=choose_tile(tokenizer))
        made_in_tiles = crop_to(tokenizer.decode(ids_in_tiles, tile=choose_tile(tokenizer)), (1, *size))
    assert torch.equal(ids, ids_in_tiles)
    assert torch.allclose(made, made_in_tiles, atol=1e-9)


@pytest.mark.parametrize("size", [(2003, 2001), pytest.param((1000, 4096), marks=pytest.mark.slow)])
def test_large_images_are_cut_into_tiles_before_they_become_floats(tmp_path, size):
    tokenizer = load(save(tmp_path / "t", strides=((1, 2),), patch=8)).double()
    assert 2 * choose_tile(tokenizer) < size[1]  # three of them in a row
    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert size[0] * size[1] > TILED_ABOVE
    ids = images_to_ids(tokenizer, pixels[None])
    assert torch.equal(ids, tokenizer.encode(to_video(pixels).double()))
    beside = torch.zeros(size[0], 2 * size[1], 3, dtype=torch.uint8)
    image = ids_to_image(tokenizer, ids, size, into=beside[:, size[1] :])
    assert torch.equal(image, to_uint8(tokenizer.decode(ids, size=(1, *size)))[0, 0])
    assert torch.equal(image, beside[:, size[1] :])
    assert not beside[:, : size[1]].any()
    with pytest.raises(BadTensor, match=r"ids are .* pixels, not "):
        ids_to_image(tokenizer, ids, (size[0] + tokenizer.strides[1], size[1]))


@pytest.mark.parametrize(
    ("band", "size"),
    [
        *((40_000, size) for size in [(230, 190), (3, 15_000), (15_000, 3)]),
        *(pytest.param(None, size, marks=pytest.mark.slow) for size in [(2300, 1901), (3, 1_500_000), (1_500_000, 3)]),
    ],
)
def test_a_large_png_that_is_written_in_bands_is_the_image_in_the_size_that_pillow_has(
    tmp_path, monkeypatch, band, size
):
    if band is not None:  # else that of the package, a hundred times larger
        monkeypatch.setattr(video_writer, "_BAND", band)
    assert size[0] * size[1] > video_writer._BAND
    steps = np.random.default_rng(0).integers(0, 3, (*size, 3), np.uint8)
    pixels = np.cumsum(steps, axis=int(size[0] < size[1]), dtype=np.uint8)  # like a gradient: filters matter
    for shown in (torch.from_numpy(pixels), torch.from_numpy(pixels)[:, ::2]):
        write_png(tmp_path / "bands.png", shown)
        with Image.open(tmp_path / "bands.png") as image:
            assert np.array_equal(np.asarray(image), shown.numpy())
    Image.fromarray(shown.numpy()).save(tmp_path / "whole.png")
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("bands", "whole")]
    assert sizes[0] < 1.02 * sizes[1]


@pytest.mark.parametrize("size", [(32, 46), (33, 47)])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_video_keeps_its_rate_length_and_size(kind, size, image_tokenizer, video_tokenizer, tmp_path):
    write_video(tmp_path / "film.mp4", list(moving(24, *size)), FPS)
    tokenizer = load(image_tokenizer if kind == "image" else video_tokenizer)
    seen = []
    result = reconstruct_file(
        tokenizer, tmp_path / "film.mp4", tmp_path / "made.mp4", side_by_side=True, progress=lambda *at: seen.append(at)
    )
    assert seen == [(i, 24) for i in range(1, 25)]
    assert result.tokens == (24 if kind == "image" else 13) * math.ceil(size[0] / 2) * math.ceil(size[1] / 2)
    with open_video(result.path) as reader, open_video(tmp_path / "film.mp4") as source:
        assert (len(reader), reader.size) == (24, (size[0], 2 * size[1]))
        assert reader.fps == pytest.approx(FPS, rel=1e-6)
        for frame, original in zip(reader.frames(), source.frames(), strict=True):
            left = frame[:, : size[1]].float()
            assert (left - original.float()).square().mean() < 60  # H.264 once more: above 30 dB


@pytest.mark.parametrize(
    ("frames", "fps", "count"), [((3, 11), None, 8), ((5, None), None, 8), (None, 6.0, 4), ((0, 6), 6.0, 2)]
)
def test_a_part_of_a_video_is_the_video_of_those_frames(video_tokenizer, tmp_path, frames, fps, count):
    pixels = moving(13, 40, 60)
    write_video(tmp_path / "whole.mp4", pixels, FPS, crf=0)
    with open_video(tmp_path / "whole.mp4") as reader:
        stored = list(reader.frames())
        times = [time - 1e-9 for time in reader.times]
    first, end = frames or (0, None)
    numbers = list(range(13))
    if fps is not None:
        numbers = [
            min(range(13), key=lambda i: abs(times[i] - n / fps)) for n in range(int(times[-1] * fps + 1e-6) + 1)
        ]
    numbers = [n for n in numbers if first <= n < (13 if end is None else end)]
    assert len(numbers) == count
    size = (24, 32)
    result = reconstruct(
        video_tokenizer,
        [tmp_path / "whole.mp4"],
        tmp_path / "out",
        frames=frames,
        fps=fps,
        size=size,
        side_by_side=False,
    ).done[0]
    assert (result.frames, result.height, result.width) == (count, *size)
    assert result.fps == pytest.approx(fps or FPS)
    crop = MediaView.of(size=size).crop((40, 60))
    chosen = [torch.from_numpy(crop.apply(stored[n].numpy())) for n in numbers]
    again = list(reconstruct_frames(load(video_tokenizer), chosen))
    errors = [(a.double() - b.double()).square().mean() for a, b, _ in again]
    assert result.psnr == pytest.approx(float(np.mean([10 * math.log10(255**2 / e) for e in errors])), abs=1e-6)


def test_a_part_that_no_video_has_is_named(smalti, video_tokenizer, film, tmp_path):
    ended = smalti("reconstruct", video_tokenizer, film, "--frames", "900:", "--out", tmp_path / "out")
    assert ended.code == 3
    assert "has 24 frames, none of 900:" in ended.err
    assert files(tmp_path / "out") == []
    for wrong in (
        "--frames=4:4",
        "--frames=x",
        "--frames=5:2",
        "--frames=-3:",
        "--size=a",
        "--fps=0",
        "--fps=inf",
        "--fps=nan",
    ):
        ended = smalti("reconstruct", video_tokenizer, film, wrong)
        assert_one_line(ended, 2, wrong[2:].split("=")[0])
        assert ":None" not in ended.err


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100, None])
@pytest.mark.parametrize("frames", [1, 2, 9, 24])
def test_no_chunking_changes_a_token_or_a_frame(video_tokenizer, chunk, frames):
    tokenizer = load(video_tokenizer)
    video = [torch.from_numpy(frame) for frame in moving(frames, 18, 46)]
    triples = list(reconstruct_frames(tokenizer, iter(video), chunk=chunk))
    made, ids = round_trip(tokenizer, to_video(torch.stack(video)))
    assert triples[-1][2] == ids.numel()
    assert all(torch.equal(frame, original) for (frame, *_), original in zip(triples, video, strict=True))
    difference = torch.stack([again for _, again, _ in triples]).int() - to_uint8(made)[0].int()
    assert difference.abs().max() <= 1  # the order of a float32 sum may differ: at most one level


def test_a_stream_of_no_frames_has_none(video_tokenizer):
    assert list(reconstruct_frames(load(video_tokenizer), [])) == []


def test_the_command_names_what_it_made(smalti, video_tokenizer, film, pictures, tmp_path):
    ended = smalti("reconstruct", video_tokenizer, film, pictures, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    assert len(ended.out.splitlines()) == 3
    assert "square.mp4: 46x32, 24 frames at 23.98/s" in ended.out
    assert files(tmp_path / "out") == ["astronaut.png", "band_practice.png", "square.mp4"]
    again = smalti("reconstruct", video_tokenizer, film, pictures, "--out", tmp_path / "o2", "--only", "--json")
    rows = json.loads(again.out)
    assert (rows["listed"], rows["bad"], again.err) == (3, [], "")
    for row in rows["done"]:
        alone, both = Path(row["path"]), tmp_path / "out" / Path(row["path"]).name
        if row["fps"] is None:
            assert read_image(alone).shape == (row["height"], row["width"], 3)
            assert read_image(both).shape == (row["height"], 2 * row["width"], 3)


def test_a_bad_picture_among_good_ones_is_named_counted_and_gives_code_3(smalti, image_tokenizer, mixed, tmp_path):
    ended = smalti("reconstruct", image_tokenizer, mixed, "--out", tmp_path / "out", "--json")
    assert ended.code == 3
    named, counted = ended.err.splitlines()
    assert named.startswith(f"left out: {mixed / 'cut.jpg'}: ")
    assert counted == "error: 1 of 3 files could not be used and are left out; the rest is done"
    data = json.loads(ended.out)
    assert (data["listed"], len(data["done"]), [fault["code"] for fault in data["bad"]]) == (3, 2, ["truncated"])
    assert files(tmp_path / "out") == ["astronaut.png", "band_practice.png"]


def test_a_bad_video_leaves_no_half_file(smalti, video_tokenizer, film, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:-500])
    ended = smalti("reconstruct", video_tokenizer, tmp_path / "cut.mp4", "--out", tmp_path / "out")
    assert ended.code == 3
    assert "cut.mp4" in ended.err
    assert not (tmp_path / "out").exists() or files(tmp_path / "out") == []


def test_a_tokenizer_that_is_not_causal_takes_pictures_and_refuses_video(
    smalti, clip_tokenizer, film, pictures, tmp_path
):
    assert smalti("reconstruct", clip_tokenizer, pictures, "--out", tmp_path / "out").code == 0
    assert_one_line(smalti("reconstruct", clip_tokenizer, film, "--out", tmp_path / "out"), 2, "not causal")
    with pytest.raises(ConfigError, match="not causal"):
        next(reconstruct_frames(load(clip_tokenizer), []))
    cut = smalti("reconstruct", clip_tokenizer, film, "--out", tmp_path / "cut", "--clip", "5", "--json")
    assert cut.code == 0
    with open_video(film) as reader:
        assert json.loads(cut.out)["done"][0]["frames"] == len(reader)


@pytest.mark.parametrize("frames", [1, 5, 12])
def test_with_clip_every_few_frames_are_a_video_of_their_own(clip_tokenizer, frames):
    tokenizer = load(clip_tokenizer)
    video = torch.from_numpy(moving(frames, 24, 32))
    triples = list(reconstruct_frames(tokenizer, iter(video), clip=5))
    alone = [round_trip(tokenizer, to_video(part)) for part in video.split(5)]
    assert torch.equal(
        torch.stack([frame for _, frame, _ in triples]), torch.cat([to_uint8(part)[0] for part, _ in alone])
    )
    assert triples[-1][2] == sum(ids.numel() for _, ids in alone)


def test_no_file_is_written_over_unasked(smalti, image_tokenizer, pictures, tmp_path):
    astronaut = pictures / "astronaut.jpg"
    command = ("reconstruct", image_tokenizer, astronaut, "--out", tmp_path / "out")
    assert smalti(*command).code == 0
    assert_one_line(smalti(*command), 2, "astronaut.png", "--overwrite")
    assert smalti(*command, "--overwrite").code == 0


def test_no_input_is_ever_written_over(smalti, image_tokenizer, tmp_path):
    Image.fromarray(moving(1, 20, 20)[0]).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    ended = smalti("reconstruct", image_tokenizer, tmp_path / "a.png", "--out", tmp_path, "--overwrite")
    assert_one_line(ended, 2, "is an input")
    assert (tmp_path / "a.png").read_bytes() == before


def test_two_inputs_of_one_name_are_refused_before_any_work(smalti, image_tokenizer, pictures, tmp_path):
    shutil.copy(pictures / "astronaut.jpg", pictures / "astronaut.jpeg")
    ended = smalti("reconstruct", image_tokenizer, pictures, "--out", tmp_path / "out")
    assert_one_line(ended, 2, "astronaut.jpeg", "astronaut.jpg", "both")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_found_is_code_3(smalti, image_tokenizer, pictures, tmp_path):
    out = ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert_one_line(smalti("reconstruct", tmp_path / "none", pictures, *out), 3, tmp_path / "none")
    assert_one_line(smalti("reconstruct", image_tokenizer, tmp_path / "none.jpg", *out), 3, tmp_path / "none.jpg")
    assert_one_line(smalti("reconstruct", image_tokenizer, tmp_path / "empty", *out), 3, tmp_path / "empty")
    assert_one_line(smalti("reconstruct", tmp_path / "empty", pictures, *out), 3, tmp_path / "empty", "neither")


def test_damaged_weights_are_code_4(smalti, image_tokenizer, pictures, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(image_tokenizer, broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-5] ^= 4
    (broken / "model.safetensors").write_bytes(data)
    assert_one_line(smalti("reconstruct", broken, pictures, "--out", tmp_path / "out"), 4, broken)
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert_one_line(smalti("reconstruct", broken, pictures, "--out", tmp_path / "out"), 4, "model.safetensors")


def test_a_device_that_is_absent_is_code_5(smalti, image_tokenizer, pictures, tmp_path):
    absent = "mps" if torch.cuda.is_available() else "cuda"
    out = ("--out", tmp_path / "out", "--device", absent)
    assert_one_line(smalti("reconstruct", image_tokenizer, pictures, *out), 5, f"--device {absent}")


def test_a_stop_in_the_middle_is_code_130_and_leaves_nothing(video_tokenizer, tmp_path):
    write_video(tmp_path / "long.mp4", list(moving(240, 240, 320)), 25, crf=40)
    out = tmp_path / "out"
    process = programs.Program("-m", "smalti", "reconstruct", video_tokenizer, tmp_path / "long.mp4", "--out", out)
    deadline = time.monotonic() + 30
    while not out.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    ended = process.wait(30)
    assert ended.returncode == 130
    assert ended.stderr.count("\n") <= 1
    assert files(out) == []
