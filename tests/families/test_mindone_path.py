"""mindone's path as its users go it, by commands, on film and photographs laid out as ImageNet and UCF-101 are."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks import media
from smalti.cli.main import run
from smalti.data import bundled, open_video, read_clip, read_image
from smalti.recipes import find
from smalti.tokenizer import Tokenizer
from smalti.video import to_video

pytestmark = pytest.mark.slow

IMAGE = ["--set", "data.path=datasets/ImageNet/train", "--set", "validation.path=datasets/ImageNet/validation"]
LISTS = [
    *("--set", "data.path=datasets/ucf101/trainlist01.txt", "--set", "data.root=datasets/ucf101/UCF-101"),
    *("--set", "validation.path=datasets/ucf101/testlist01.txt", "--set", "validation.root=datasets/ucf101/UCF-101"),
]
FAST = ["--set", "optimizer.lr=4e-3", "--set", "ema=0.9", "--set", "ema_rise=ratio"]
VIDEO = [*LISTS, *FAST, "--set", "tokenizer.norm=clip", "--set", "steps=30", "--set", "save_every=15"]
TEST = ["--data", "datasets/ucf101/testlist01.txt", "--root", "datasets/ucf101/UCF-101", "--size", "32"]


def smalti(*words):
    assert run([str(word) for word in words]) == 0, words


def evaluated(name):
    smalti("eval", name, *TEST, "--protocol", "mindone-psnr", "--out", f"reports/{Path(name).name}")
    return json.loads(Path("reports", Path(name).name, "report.json").read_text())


class Left(NamedTuple):
    """What the commands left."""

    root: Path
    reports: dict[str, dict]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """All of the path, once: lay out, train on pictures, inflate, train on video in three ways, measure."""
    root = tmp_path_factory.mktemp("mindone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        films = [f"--film={clip}" for part in ("train", "heldout") for clip in sorted(bundled.videos(part).iterdir())]
        media.main(["datasets", *films, "--photos", str(bundled.photos("train").parent)])
        smalti("train", "mindone-image", "--tiny", *IMAGE, *FAST, "--set", "steps=150", "--out", "runs/image")
        inflate = ["inflate", "runs/image", "--time-strides", "2,2,1", "--time", "3", "--past", "full"]
        smalti(*inflate, "--out", "inflated-frame")
        smalti(*inflate, "--norm", "clip", "--out", "inflated-clip")
        long, tuned = ["--set", "steps=90"], ["--set", "init=inflated-clip"]
        smalti("train", "mindone-video", "--tiny", *VIDEO, *long, "--out", "runs/scratch")
        smalti("train", "mindone-video", "--tiny", *VIDEO, *long, *tuned, "--out", "runs/tuned")
        smalti("train", "mindone-video-gan", "--tiny", *VIDEO, *tuned, "--out", "runs/tuned-gan")
        names = ("inflated-frame", "inflated-clip", "runs/scratch", "runs/tuned", "runs/tuned-gan")
        yield Left(root, {name: evaluated(name) for name in names})


def test_clips_are_listed_as_in_ucf101(path):
    folder = path.root / "datasets/ucf101"
    train, test = ((folder / f"{part}list01.txt").read_text().splitlines() for part in ("train", "test"))
    clips = {clip.relative_to(folder / "UCF-101").as_posix() for clip in (folder / "UCF-101").rglob("*.avi")}
    assert {row.split(" ")[0] for row in (*train, *test)} == clips
    assert all(int(row.split("_g")[1][:2]) > 7 for row in train)
    assert all(int(row.split("_g")[1][:2]) <= 7 for row in test)
    assert len(train) > len(test) > 1
    numbers = dict(row.split(" ")[::-1] for row in (folder / "classInd.txt").read_text().splitlines())
    assert all(numbers[row.split("/")[0]] == row.split(" ")[1] for row in train)
    with open_video(folder / "UCF-101" / test[0]) as reader:
        assert (reader.size, reader.fps) == ((240, 320), 24)


def test_the_inflated_tokenizer_is_the_small_form_of_the_video_recipe(path):
    small = find("mindone-video", tiny=True).tokenizer
    assert Tokenizer.load(path.root / "inflated-frame").config == small
    assert Tokenizer.load(path.root / "inflated-clip").config == small.replace({"norm": "clip"})


def test_stills_and_every_fourth_frame_come_back_as_from_the_image_tokenizer(path):
    image = Tokenizer.load(path.root / "runs/image/tokenizer").double()
    video = Tokenizer.load(path.root / "inflated-frame").double()
    picture = to_video(read_image(bundled.photos("heldout") / "owl.jpg"))[..., :64, :96].double()
    shot = to_video(read_clip(bundled.videos("heldout") / "march.mp4", 9))[..., :64, :96].double()
    with torch.inference_mode():
        wanted, still = image(picture), video(picture.expand(-1, -1, 9, -1, -1))
        assert torch.equal(still.ids, wanted.ids.expand_as(still.ids))
        assert (still.video - wanted.video).abs().max() < 1e-12
        frames = [image(shot[:, :, t : t + 1]) for t in (0, 4, 8)]
        ids = video.encode(shot)
        assert torch.equal(ids, torch.cat([frame.ids for frame in frames], 1))
        decoded = video.decode(ids)
        for t in range(9):  # a group of four shows the picture of its last frame
            assert (decoded[:, :, t : t + 1] - frames[-(-t // 4)].video).abs().max() < 1e-12


def test_a_run_with_a_discriminator_that_was_stopped_ends_with_the_same_bits(path, monkeypatch):
    monkeypatch.chdir(path.root)
    out = Path("runs/tuned-gan")
    before = Tokenizer.load(out / "tokenizer").fingerprint
    for name in ("step-00000030", "tokenizer"):  # what a run that was stopped in between has not got
        (out / name).rename(Path(f"taken-{name}"))
    smalti("train", "mindone-video-gan", "--tiny", *VIDEO, "--set", "init=inflated-clip", "--out", out, "--resume")
    assert Tokenizer.load(out / "tokenizer").fingerprint == before
    for whole in Path("taken-step-00000030").rglob("*.safetensors"):
        assert whole.read_bytes() == (out / "step-00000030" / whole.relative_to("taken-step-00000030")).read_bytes()
    played = [line for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "total" in line]
    assert {"loss/adversarial", "loss/discriminator", "loss/lecam"} <= played[-1].keys()
    assert [line["step"] for line in played] == [10, 20, 30]


def test_reports_are_under_mindones_protocol_and_inflation_pays(path):
    rows = (path.root / "datasets/ucf101/testlist01.txt").read_text().splitlines()
    for report in path.reports.values():
        assert report["protocol"]["rounding"] == "floor"
        assert report["protocol"]["mean_over"] == "frames"
        assert report["protocol"]["ssim"] == "uniform-7"
        assert (report["clips"], report["frames"]) == (len(rows), 17 * len(rows))
    psnr = {name: report["psnr"] for name, report in path.reports.items()}
    assert max(psnr["inflated-clip"], psnr["inflated-frame"]) < psnr["runs/tuned"], psnr
    assert psnr["runs/scratch"] + 0.5 < psnr["runs/tuned"], psnr
    assert psnr["runs/scratch"] < psnr["runs/tuned-gan"], psnr
    fingerprints = {Tokenizer.load(path.root / name / "tokenizer").fingerprint for name in psnr if "runs/" in name}
    assert len(fingerprints) == 3
