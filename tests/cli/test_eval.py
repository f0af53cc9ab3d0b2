"""`smalti eval` and `score`: every number under a named protocol, every unread file named and counted."""

import json
import shutil

import pytest

from smalti.data import ImagesConfig, Subset, bundled, evaluation, read_image
from smalti.errors import InputError
from smalti.families import load
from smalti.metrics import SMALTI, Report, evaluate_pairs, pairs_of
from smalti.tokenizer.frames import score_tokenizer
from tests.cli.conftest import assert_one_line, save
from tests.packing import cells, pack, table


def source(folder, size=32):
    return ImagesConfig(path=folder, size=size, crop="center", flip=False).build()


def test_score_is_evaluate_over_the_source(image_tokenizer):
    tokenizer, clips = load(image_tokenizer), source(bundled.photos("heldout"))
    videos = [(batch.keys[0], batch.video) for batch in evaluation(Subset(clips, range(3)))]
    report = score_tokenizer(tokenizer, clips, SMALTI, limit=3)
    pairs = pairs_of(lambda video: tokenizer(video)[:2], videos)
    same = evaluate_pairs(pairs, SMALTI, levels=tokenizer.levels)
    assert report == same
    assert [row.key for row in report.rows] == [clips.key(i) for i in range(3)]


def test_score_names_and_counts_files_that_cannot_be_read(image_tokenizer, mixed):
    bad = []
    report = score_tokenizer(load(image_tokenizer), source(mixed), SMALTI, on_bad=bad.append)
    assert report.clips == 2
    assert [fault.code for fault in bad] == ["truncated"]
    assert report.absent["clips"].startswith("1 of 3 left out")
    assert "cut.jpg" in report.absent["clips"]


def test_score_of_bad_files_alone_is_an_error(image_tokenizer, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="bad"):
        score_tokenizer(load(image_tokenizer), source(tmp_path), SMALTI)


def test_the_command_prints_a_table_and_writes_report_and_sheet(smalti, image_tokenizer, tmp_path):
    command = ("eval", image_tokenizer, "--data", bundled.photos("heldout"), "--size", 64, "--limit", 3)
    ended = smalti(*command, "--out", tmp_path / "report")
    assert (ended.code, ended.err) == (0, "")
    count = len(list(bundled.photos("heldout").glob("*.jpg")))
    title = f"protocol smalti: 3 of {count} clips, 3 frames; each scaled and cut to 64 x 64 "
    assert title in " ".join(ended.out.split())
    assert "bits per pixel" in " ".join(ended.out.split())
    report = Report.parse(json.loads((tmp_path / "report" / "report.json").read_text()))
    assert (report.protocol.size, report.protocol.resize, report.protocol.crop) == (64, "lanczos", "center")
    assert report.codebook is not None
    assert report.codebook.tokens == 3 * 32 * 32
    height, width, _ = read_image(tmp_path / "report" / "sheet.png").shape
    assert height >= 3 * 64
    assert width >= 3 * 64
    assert Report.parse(json.loads(smalti(*command, "--json").out)) == report


def test_size_0_keeps_the_size_of_the_files(smalti, image_tokenizer, pictures):
    report = json.loads(smalti("eval", image_tokenizer, "--data", pictures, "--size", 0, "--json").out)
    assert report["protocol"]["resize"] == "none"
    assert report["protocol"]["size"] is None
    assert {(row["height"], row["width"]) for row in report["rows"]} == {
        tuple(read_image(path).shape[:2]) for path in pictures.iterdir()
    }


def test_video_is_measured_in_clips(smalti, video_tokenizer):
    command = ("eval", video_tokenizer, "--data", bundled.videos("heldout"), "--size", 32, "--frames", 5, "--limit", 2)
    report = json.loads(smalti(*command, "--protocol", "open-magvit2", "--json").out)
    assert (report["clips"], report["frames"], report["protocol"]["name"]) == (2, 10, "open-magvit2")
    assert report["codebook"]["tokens"] == 2 * 3 * 16 * 16


def test_a_video_that_is_too_short_is_named(smalti, video_tokenizer, film):
    ended = smalti("eval", video_tokenizer, "--data", film, "--frames", 25, "--size", 32)
    assert_one_line(ended, 3, "24 frames", "too few")


def test_a_mixed_folder_gives_each_tokenizer_its_own(smalti, image_tokenizer, video_tokenizer, film, pictures):
    shutil.copy(film, pictures)
    command = ("--data", pictures, "--size", 32, "--frames", 5, "--json")
    assert json.loads(smalti("eval", image_tokenizer, *command).out)["frames"] == 2
    assert json.loads(smalti("eval", video_tokenizer, *command).out)["frames"] == 5


def test_tars_and_tables_give_the_figures_of_their_files(smalti, image_tokenizer, pictures, tmp_path):
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    packed = {f"{i:03d}{path.suffix}": path.read_bytes() for i, path in enumerate(files)}
    data = [
        pictures,
        pack(tmp_path / "p.tar", packed),
        table(tmp_path / "p.parquet", {"image": cells([*packed.values()])}),
    ]
    found = [json.loads(smalti("eval", image_tokenizer, "--data", one, "--size", 32, "--json").out) for one in data]
    assert found[0]["clips"] == len(files)
    assert found[1]["psnr"] == found[0]["psnr"] == found[2]["psnr"]
    assert found[1]["rows"][0]["key"] == f"p.tar/{next(iter(packed))}"


def test_a_bad_picture_among_good_ones_is_named_counted_and_gives_code_3(smalti, image_tokenizer, mixed, tmp_path):
    out = ("--out", tmp_path / "out", "--json")
    ended = smalti("eval", image_tokenizer, "--data", mixed, "--size", 32, *out)
    assert ended.code == 3
    named, counted = ended.err.splitlines()
    assert named.startswith(f"left out: {mixed / 'cut.jpg'}: ")
    assert counted.startswith("error: 1 of 3 files")
    assert json.loads(ended.out)["clips"] == 2
    assert "1 of 3 left out" in json.loads((tmp_path / "out" / "report.json").read_text())["absent"]["clips"]


def test_the_title_says_what_of_the_data_was_scored(smalti, image_tokenizer, video_tokenizer, pictures, tmp_path):
    """Clips past `--limit`, clips that cannot be read, and what lies outside the clip of each file."""
    other = shutil.copytree(image_tokenizer, tmp_path / "other")
    video = ("eval", video_tokenizer, "--data", bundled.videos("heldout"), "--size", 32, "--frames", 5, "--limit", 2)
    count, images = len(list(bundled.videos("heldout").glob("*.mp4"))), ("--data", pictures, "--size")

    def check(command, title):
        found = " ".join(smalti(*command).out.split("┏")[0].split())
        assert found == f"protocol smalti: {title}"

    check(video, f"2 of {count} clips, 10 frames; of each 5 frames from its middle, scaled and cut to 32 x 32")
    check(("eval", image_tokenizer, other, *images, 32), "2 clips, 2 frames; each scaled and cut to 32 x 32")
    check(("eval", image_tokenizer, *images, 0), "2 clips, 2 frames")
    check(("eval", pictures, "--against", pictures, "--limit", 1), "1 of 2 clips, 1 frames")
    (pictures / "no.jpg").write_bytes(b"no image")
    check(("eval", image_tokenizer, *images, 32), "2 of 3 clips, 2 frames; each scaled and cut to 32 x 32")


def test_options_of_clips_are_refused_where_whole_folders_are_compared(smalti, pictures):
    for option, value in (("--size", 32), ("--frames", 5), ("--root", pictures)):
        ended = smalti("eval", pictures, "--against", pictures, option, value)
        assert_one_line(ended, 2, f"{option} {value}: --against compares whole images", "leave it out")


def test_a_folder_against_itself_scores_the_cap(smalti, pictures, tmp_path):
    ended = smalti("eval", pictures, "--against", pictures, "--json", "--out", tmp_path / "out")
    report = json.loads(ended.out)
    assert (report["clips"], report["psnr"], report["codebook"]) == (2, 100, None)
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_a_folder_against_reconstructions_scores_as_the_tokenizer_does(smalti, image_tokenizer, pictures, tmp_path):
    smalti("reconstruct", image_tokenizer, pictures, "--out", tmp_path / "made", "--only")
    folders = json.loads(smalti("eval", pictures, "--against", tmp_path / "made", "--json").out)
    direct = json.loads(smalti("eval", image_tokenizer, "--data", pictures, "--size", 0, "--json").out)
    for name in ("psnr", "ssim"):  # a value half way between two grey levels may round otherwise in float32
        assert folders[name] == pytest.approx(direct[name], rel=1e-6)


def test_a_missing_partner_is_named(smalti, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "other")
    (tmp_path / "other" / "astronaut.jpg").unlink()
    assert_one_line(smalti("eval", pictures, "--against", tmp_path / "other"), 3, "astronaut", tmp_path / "other")


def test_contradicting_options_are_code_2(smalti, image_tokenizer, pictures):
    data = ("--data", pictures)
    assert_one_line(smalti("eval", image_tokenizer), 2, "--data", "--against")
    assert_one_line(smalti("eval", image_tokenizer, *data, "--against", pictures), 2, "--data", "--against")
    assert_one_line(smalti("eval", image_tokenizer, *data, "--protocol", "nope"), 2, "nope", "mindone-psnr")
    images = ("--protocol", "mindone-psnr-images")
    assert_one_line(smalti("eval", image_tokenizer, *data, *images, "--lpips", "x.pt"), 2, "no LPIPS")
    assert_one_line(smalti("eval", image_tokenizer, *data, *images, "--features", "x.pt"), 2, "no features")
    assert_one_line(smalti("eval", image_tokenizer, *data, *images, "--statistics", "x"), 2, "no features")
    assert_one_line(smalti("eval", image_tokenizer, *data, *images, "--frames", 5), 2, "takes images")
    assert_one_line(smalti("eval", image_tokenizer, *data, *images, "--size", 0), 2, "--size 0")
    video = ("--protocol", "magicmaster-fvd", "--frames", 5)
    assert_one_line(smalti("eval", image_tokenizer, *data, *video), 2, "takes 17 frames")
    assert_one_line(smalti("eval", pictures, "--against", pictures, "--protocol", "mindone-psnr"), 2, "is for video")


def test_lpips_weights_that_are_named_must_be_there(smalti, image_tokenizer, pictures, tmp_path):
    ended = smalti("eval", image_tokenizer, "--data", pictures, "--lpips", tmp_path / "none.safetensors")
    assert_one_line(ended, 5, tmp_path / "none.safetensors")


def test_missing_data_is_code_3(smalti, image_tokenizer, tmp_path):
    assert_one_line(smalti("eval", image_tokenizer, "--data", tmp_path / "none"), 3, tmp_path / "none")


def test_several_tokenizers_are_compared_on_the_same_clips(smalti, image_tokenizer, tmp_path):
    """Each has the scores that it has alone; differences are those of the clips."""
    other = save(tmp_path / "other", strides=((1, 2),), quantizer={"kind": "lfq", "bits": 9})
    names, data = [str(image_tokenizer), str(other)], bundled.photos("heldout")
    options = ("--data", data, "--size", 32, "--limit", 3)
    ended = smalti("eval", *names, *options, "--out", tmp_path / "report", "--json")
    assert (ended.code, ended.err) == (0, "")
    board = json.loads(ended.out)
    alone = [json.loads(smalti("eval", name, *options, "--json").out) for name in names]
    for standing, report in zip(board["standings"], alone, strict=True):
        assert standing["psnr"] == report["psnr"]
        assert standing["bits_per_pixel"] == report["codebook"]["bits_per_pixel"]
        assert standing["megapixels_per_second"] > 0
    gains = [b["psnr"] - a["psnr"] for a, b in zip(*(report["rows"] for report in alone), strict=True)]
    assert board["standings"][1]["differences"]["psnr"]["mean"] == pytest.approx(sum(gains) / len(gains))
    assert json.loads((tmp_path / "report" / "report.json").read_text())["standings"][0]["psnr"] == alone[0]["psnr"]
    _, width, _ = read_image(tmp_path / "report" / "sheet.png").shape
    assert width >= 3 * 32
    text = smalti("eval", *names, *options).out
    assert "bits/px" in text
    assert "±" in text
    assert_one_line(smalti("eval", names[0], names[0], *options), 2, "is given twice")
