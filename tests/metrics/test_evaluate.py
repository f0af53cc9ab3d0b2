"""Evaluation: any callable is scored, parts merge to the whole, and nothing is left out in silence."""

import json
import math

import numpy as np
import pytest
import torch

from smalti.errors import ConfigError, InputError
from smalti.metrics import (
    MAGICMASTER_PSNR,
    MINDONE_PSNR,
    MINDONE_PSNR_IMAGES,
    OPEN_MAGVIT2,
    PROTOCOLS,
    SMALTI,
    Perceptual,
    Report,
    Scores,
    contact_sheet,
    evaluate_pairs,
    find_protocol,
    pairs_of,
    pairs_of_folders,
)
from smalti.metrics.contact_sheet import difference
from smalti.metrics.pixel import ms_ssim, to_pixels
from tests.goldens.rule import load

LEVELS = (8, 8, 8)


def evaluate(reconstruct, clips, protocol, **networks):
    return evaluate_pairs(pairs_of(reconstruct, clips, protocol.samples), protocol, **networks)


def clip(frames, height, width, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, frames, height, width), generator=rng).float() / 127.5 - 1


CLIPS = [(f"clip{i}", clip(frames, 32, 40, i)) for i, frames in enumerate((1, 5, 3, 2))]


def noisy(video):
    """A true tokenizer's manners, without a network: coarse pixels, and one id per 8 x 8 patch of a frame."""
    ids = ((video[:, 0, :, ::8, ::8] + 1) * 255).long().clamp(0, 511)
    return (video * 4).round() / 4, ids


def distance(a, b):
    return (a - b).abs().mean((1, 2, 3))


LPIPS = Perceptual(distance, net="vgg", digest="0" * 64, batch=2)


def test_the_identity_scores_the_cap_and_is_counted():
    report = evaluate(lambda video: video, CLIPS, SMALTI, lpips=LPIPS)
    assert (report.psnr, report.mse, report.lpips) == (SMALTI.psnr_cap, 0, 0)
    assert report.ssim == pytest.approx(1, abs=1e-12)
    assert report.identical_frames == report.frames == 11
    assert "11 identical frames count as 100 dB" in report.to_text()


@pytest.mark.parametrize("protocol", [SMALTI, MINDONE_PSNR, OPEN_MAGVIT2], ids=lambda protocol: protocol.name)
def test_merging_parts_in_any_order_gives_the_report_of_the_whole(protocol):
    lpips = LPIPS._replace(net=protocol.lpips or "vgg")
    whole = evaluate(noisy, CLIPS, protocol, lpips=lpips, levels=LEVELS)
    parts = []
    for piece in (CLIPS[2:], CLIPS[:1], CLIPS[1:2]):
        scores = Scores(protocol, lpips=lpips, levels=LEVELS)
        for key, video in piece:
            scores.add(key, video, *noisy(video))
        parts.append(scores)
    a, b, c = parts
    assert a.merge(b).merge(c).report() == a.merge(b.merge(c)).report() == c.merge(a).merge(b).report() == whole
    assert evaluate(noisy, reversed(CLIPS), protocol, lpips=lpips, levels=LEVELS) == whole


def test_frame_means_do_not_depend_on_where_clips_are_cut():
    video = clip(7, 32, 40, 9)
    protocol = SMALTI.model_copy(update={"mean_over": "frames"})
    whole = evaluate(noisy, [("a", video)], protocol, lpips=LPIPS, levels=LEVELS)
    cut = [("a", video[:, :, :1]), ("b", video[:, :, 1:5]), ("c", video[:, :, 5:])]
    pieces = evaluate(noisy, cut, protocol, lpips=LPIPS, levels=LEVELS)
    for name in ("psnr", "ssim", "mse"):
        assert pieces.plain()[name] == pytest.approx(whole.plain()[name], rel=1e-12)
    assert pieces.lpips == pytest.approx(whole.lpips, rel=1e-6)  # float32
    assert pieces.codebook == whole.codebook


def test_long_clips_are_scored_in_groups_without_a_difference():
    # 400 x 400 x 3 x 5 pixels are more than are scored at once.
    video = clip(5, 400, 400, 0)
    row = evaluate(noisy, [("a", video)], SMALTI).rows[0]
    a, b = (to_pixels(x[0].transpose(0, 1), "round") for x in (video, noisy(video)[0]))
    assert row.ms_ssim == pytest.approx(ms_ssim(a, b, 255.0).mean().item(), abs=1e-12)
    assert row.mse == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-12)


@pytest.mark.parametrize(("protocol", "name"), [(MINDONE_PSNR, "video"), (MINDONE_PSNR_IMAGES, "image")])
def test_protocols_of_peers_equal_the_golden_end_to_end(protocol, name):
    golden = load("metrics_psnr_ssim").tensors
    table = golden["table"][:2] if name == "image" else golden["table"][2:]
    videos = golden[f"{name}_u8"].float() / 127.5 - 1, golden[f"{name}_recon"].float()
    # Flooring u8/127.5 - 1 in float32 lowers some originals by one level; half a level up keeps the golden's bytes.
    videos = (videos[0] + 0.5 / 127.5).clamp(max=1), videos[1]
    scores = Scores(protocol)
    for i, (a, b) in enumerate(zip(*videos, strict=True)):
        a, b = (x.unsqueeze(1) if x.ndim == 3 else x for x in (a, b))
        scores.add(str(i), a[None], b[None])
    report = scores.report()
    assert report.psnr == pytest.approx(table[:, 1 if name == "image" else 0].mean().item(), abs=1e-9)
    assert report.ssim == pytest.approx(table[:, 4].mean().item(), abs=1e-9)
    assert report.lpips is None
    assert report.absent["lpips"] == f"not in protocol {protocol.name}"


def test_magicmasters_psnr_equals_the_golden_with_originals_as_they_were_on_disk():
    golden = load("metrics_psnr_ssim").tensors
    scores = Scores(MAGICMASTER_PSNR)
    for i, (a, b) in enumerate(zip(golden["image_u8"], golden["image_recon"].float(), strict=True)):
        row = scores.add(str(i), (a.float() / 127.5 - 1)[None, :, None], b[None, :, None])
        assert row.psnr == pytest.approx(golden["table"][i, 0].item(), abs=1e-9)
    report = scores.report()
    assert report.ssim is None
    assert report.absent["ssim"] == "not in protocol magicmaster-psnr"


def test_psnr_over_wider_units_is_never_higher():
    def spoil(video):
        return video + torch.linspace(0, 0.4, video.shape[2]).view(1, 1, -1, 1, 1)

    units = ["channel", "frame", "clip", "set"]
    found = [
        evaluate(spoil, CLIPS, SMALTI.model_copy(update={"psnr_over": unit, "mean_over": "frames"})).psnr
        for unit in units
    ]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4


def test_scores_that_cannot_be_taken_are_none_with_the_reason():
    report = evaluate(noisy, [("small", clip(1, 9, 9, 0)), ("large", clip(1, 176, 180, 1))], SMALTI)
    assert report.lpips is None
    assert report.absent["lpips"] == "no LPIPS (vgg) weights were given"
    assert report.absent["ssim"] == "1 of 2 clips left out: needs 11 x 11 pixels, frames are 9 x 9"
    assert report.absent["ms_ssim"].startswith("1 of 2 clips left out: needs 176 x 176")
    assert report.ssim == report.rows[0].ssim
    assert report.absent["codebook"] == "the levels of the ids were not given"
    text = report.to_text()
    assert all(reason in " ".join(text.split()) for reason in report.absent.values())


def test_codebook_use_counts_every_id_and_pixel():
    report = evaluate(noisy, CLIPS, SMALTI, levels=LEVELS)
    assert report.codebook.tokens == 11 * 4 * 5
    assert report.codebook.bits_per_pixel == pytest.approx(9 / 64)
    assert [row.tokens for row in report.rows] == [20, 100, 60, 40]
    assert "codes:" in report.to_text()


def test_a_longer_tuple_than_video_and_ids_is_understood():
    report = evaluate(lambda video: (*noisy(video), {}), CLIPS, SMALTI, levels=LEVELS)
    assert report == evaluate(noisy, CLIPS, SMALTI, levels=LEVELS)


def test_the_report_survives_strict_json():
    report = evaluate(noisy, CLIPS, SMALTI, lpips=LPIPS, levels=LEVELS)
    assert Report.parse(json.loads(report.to_json())) == report
    assert report.protocol.lpips_digest == LPIPS.digest
    assert not math.isnan(report.lpips)


def test_the_batch_of_the_perceptual_net_changes_only_float32_rounding():
    reports = [evaluate(noisy, CLIPS, SMALTI, lpips=LPIPS._replace(batch=n)) for n in (1, 3, 64)]
    for report in reports[1:]:
        assert report.lpips == pytest.approx(reports[0].lpips, rel=1e-6)
        assert (report.psnr, report.ssim, report.mse) == (reports[0].psnr, reports[0].ssim, reports[0].mse)


def test_progress_sees_each_row_in_turn():
    seen = []
    report = evaluate(noisy, CLIPS, SMALTI, progress=seen.append)
    assert tuple(seen) == report.rows


@pytest.mark.parametrize(
    ("reconstruct", "message"),
    [
        (lambda video: video[:, :, :, 1:], "clip0: the reconstruction has shape"),
        (lambda video: video * float("nan"), "clip0: the reconstruction holds values that are not finite"),
        (lambda video: video.long(), "clip0: the reconstruction holds values that are not finite"),
    ],
)
def test_unusable_reconstructions_are_refused_by_name(reconstruct, message):
    with pytest.raises(InputError, match=message):
        evaluate(reconstruct, CLIPS, SMALTI)


def test_unusable_clips_are_refused():
    for clips, message in [
        ([], "no clips"),
        ([CLIPS[0], CLIPS[0]], "clip0: two clips"),
        ([("x", CLIPS[0][1][0])], "x: a clip has the shape 1 3 t h w"),
        ([("x", (CLIPS[0][1] + 1) * 127.5)], r"x: the original goes to 255; pixels must be in \[-1, 1\]"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate(lambda video: video, clips, SMALTI)


def test_another_perceptual_net_than_the_protocol_names_is_refused():
    with pytest.raises(ConfigError, match="scores LPIPS with vgg, not with alex"):
        Scores(SMALTI, lpips=LPIPS._replace(net="alex"))
    with pytest.raises(ConfigError, match="names other LPIPS weights"):
        Scores(SMALTI.model_copy(update={"lpips_digest": "1" * 64}), lpips=LPIPS)
    with pytest.raises(ValueError, match="different protocols"):
        Scores(SMALTI).merge(Scores(SMALTI, lpips=LPIPS))


def test_protocols_are_found_by_name():
    assert [find_protocol(name, PROTOCOLS).name for name in ("smalti", "mindone-psnr", "open-magvit2")]
    with pytest.raises(ConfigError, match="there are: smalti, smalti-frechet"):
        find_protocol("psnr", PROTOCOLS)


def write_folder(folder, videos):
    for name, video in videos:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, video.numpy())


def read(path):
    return torch.from_numpy(np.load(path))


def test_folders_are_paired_by_relative_stem(tmp_path):
    write_folder(tmp_path / "a", [(f"x/{key}", video) for key, video in CLIPS])
    write_folder(tmp_path / "b", [(f"x/{key}", noisy(video)[0]) for key, video in CLIPS])
    (tmp_path / "b" / ".hidden").touch()
    found = evaluate_pairs(pairs_of_folders(tmp_path / "a", tmp_path / "b", read), SMALTI)
    expected = evaluate(lambda video: noisy(video)[0], [(f"x/{key}", video) for key, video in CLIPS], SMALTI)
    assert found == expected


def test_files_without_a_partner_are_named(tmp_path):
    write_folder(tmp_path / "a", CLIPS)
    write_folder(tmp_path / "b", CLIPS[:2])
    for pair in (("a", "b"), ("b", "a")):
        with pytest.raises(InputError, match="b: no partner for clip2, clip3;"):
            list(pairs_of_folders(tmp_path / pair[0], tmp_path / pair[1], read))
    (tmp_path / "b" / "clip1.txt").touch()
    with pytest.raises(InputError, match=r"clip1\.npy and clip1\.txt have the same name"):
        evaluate_pairs(pairs_of_folders(tmp_path / "a", tmp_path / "b", read), SMALTI)
    with pytest.raises(InputError, match="no such folder"):
        list(pairs_of_folders(tmp_path / "a", tmp_path / "c", read))


def test_a_contact_sheet_holds_every_picture_unchanged():
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w in (30, 50)] for h in (20, 45)]
    sheet = np.asarray(contact_sheet(rows, ["original", "a title that is far too long for its column"]))
    assert sheet.shape == (20 + 45 + 12 + 14, 30 + 50 + 12, 3)
    assert np.array_equal(sheet[18:38, 4:34], rows[0][0])
    assert np.array_equal(sheet[42:87, 38:88], rows[1][1])


@pytest.mark.parametrize("width", [24, 48, 64, 128, 400])
def test_columns_of_names_that_begin_alike_have_different_titles(width):
    inside = "microsoft/VidTok/checkpoints/vidtok_fsq_causal_"
    titles = ["tests/goldens/showo_tiny", "tests/goldens/maskgit_tiny", f"{inside}488_4096", f"{inside}488_32768"]
    sheet = np.asarray(contact_sheet([[np.zeros((4, width, 3), np.uint8)] * 4], titles))
    heads = [sheet[:18, 4 + i * (width + 4) :][:, :width].tobytes() for i in range(4)]
    assert len(set(heads)) == 4


def test_a_ragged_or_empty_sheet_is_refused():
    picture = np.zeros((4, 4, 3), np.uint8)
    for rows, titles, message in [
        ([], ["a"], "at least one row"),
        ([[picture]], ["a", "b"], "row 0 has 1 images for 2 titles"),
        ([[picture[:, :, :2]]], ["a"], "uint8 h w 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            contact_sheet(rows, titles)


def test_a_difference_is_grey_where_pictures_agree():
    a = np.full((2, 2, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0], b[1, 1] = 110, 0
    found = difference(a, b)
    assert (found[0, 1] == 128).all()
    assert (found[0, 0] == 168).all()
    assert (found[1, 1] == 0).all()


def test_open_magvit2_takes_lpips_of_numbers_and_the_rest_of_whole_levels():
    """Its evaluation cuts the reconstruction to [-1, 1] for LPIPS, and to uint8 for PSNR and SSIM after that."""
    original, seen = clip(1, 32, 40, 0), []

    def remembered(a, b):
        seen.append((a.double(), b.double()))
        return distance(a, b)

    lpips = LPIPS._replace(distance=remembered, net="alex")
    reconstruction = original * 1.1 + 0.003
    report = evaluate(lambda _: reconstruction, [("a", original)], OPEN_MAGVIT2, lpips=lpips)
    torch.testing.assert_close(seen[0][0][0], original[0, :, 0].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(seen[0][1][0], reconstruction[0, :, 0].clamp(-1, 1).double(), rtol=0, atol=1e-6)
    levels = [((v + 1) * 127.5).clamp(0, 255).floor().double() for v in (original, reconstruction)]
    assert report.mse == pytest.approx(float(((levels[0] - levels[1]) / 255).square().mean()), rel=1e-9)
    evaluate(lambda _: reconstruction, [("a", original)], OPEN_MAGVIT2.replace({"lpips_rounding": None}), lpips=lpips)
    assert float((seen[1][1][0] - reconstruction[0, :, 0].clamp(-1, 1)).abs().max()) > 0.003
