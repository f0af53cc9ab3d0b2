"""Generated sets against real ones: what a vector of a clip sees, reports of one set and of several, refusals."""

import json
from hashlib import shake_256
from itertools import pairwise

import pytest
import torch

from smalti.data import bundled, open_video
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.metrics import (
    GENERATION_PROTOCOLS,
    SMALTI_GENERATION,
    SMALTI_GENERATION_VIDEO,
    SMALTI_GFID,
    Features,
    GenerationReport,
    Moments,
    find_protocol,
    frechet_distance,
    inception_score,
    score_generated,
)
from smalti.metrics.efficientnet import EFFICIENTNET, EFFICIENTNET_VIDEO, GAIN, HALF, clip_features, sign_projection
from smalti.video import to_video
from tests.goldens.rule import rule

FRAMES = 9


def cells(weights, frames):
    """Means of 8 x 8 cells of three colours: 192 numbers a frame."""
    return torch.nn.functional.adaptive_avg_pool2d(frames, 8).flatten(1) * weights["gain"]


SMALL = EFFICIENTNET_VIDEO._replace(
    features=lambda weights, clips: clip_features(
        cells(weights, clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), clips.shape[2]))
    ),
    shapes={"gain": (1,)},
)
OF_CLIPS = Features(SMALL, {"gain": torch.full((1,), 1 / 16)}, "ab" * 32)
OF_FRAMES = Features(
    EFFICIENTNET._replace(features=lambda w, x: x.mean((2, 3)) * w["gain"], dim=3, shapes={"gain": (1,)}),
    {"gain": torch.ones(1)},
    "cd" * 32,
)
VIDEO = SMALTI_GENERATION_VIDEO.replace({"frames": FRAMES})


@pytest.fixture(scope="module")
def clips():
    """80 clips of the film that smalti ships, uint8 `80 3 9 64 64`: more than the 64 numbers of a vector."""
    found = []
    for path in sorted(path for split in ("train", "heldout") for path in bundled.videos(split).iterdir()):
        with open_video(path) as reader:
            frames = torch.stack(list(reader.frames()))[:, 8:136, 64:192].permute(3, 0, 1, 2).float()
        small = torch.nn.functional.avg_pool2d(frames, 2).round().to(torch.uint8)
        found += [small[:, start : start + FRAMES] for start in range(0, 40, 8)]
    return torch.stack(found)


def frozen(clips, first):
    """The frames up to number `first`, which then stands still."""
    return clips[:, :, [min(i, first) for i in range(clips.shape[2])]]


def shuffled(clips):
    rng = torch.Generator().manual_seed(0)
    return torch.stack([clip[:, torch.randperm(clip.shape[1], generator=rng)] for clip in clips])


def noised(clips, deviation):
    rng = torch.Generator().manual_seed(0)
    noise = deviation * torch.randn(clips.shape, generator=rng)
    return (clips.float() + noise).round().clamp(0, 255).to(torch.uint8)


def distance(features, real, made):
    moments = [Moments(features.network.dim) for _ in range(2)]
    for one, found in zip((real, made), moments, strict=True):
        for clip in one.split(8):
            found.update(features(clip))
    return frechet_distance(*moments).distance


def test_the_distance_of_clips_sees_motion(clips):
    assert distance(OF_CLIPS, clips, clips) == pytest.approx(0, abs=1e-8)
    stops = [distance(OF_CLIPS, clips, frozen(clips, first)) for first in (6, 4, 2, 0)]
    noises = [distance(OF_CLIPS, clips, noised(clips, deviation)) for deviation in (4, 16, 64)]
    assert stops == sorted(stops)
    assert noises == sorted(noises)
    assert min(stops[0], noises[0], distance(OF_CLIPS, clips, shuffled(clips))) > 1e-3


@pytest.mark.slow
def test_efficientnet_of_any_weights_sees_motion(clips):
    weights = {name: rule(name, shape) for name, shape in EFFICIENTNET.shapes.items()}
    features, some = Features(EFFICIENTNET_VIDEO, weights, ""), clips[::4]
    still, mixed = (distance(features, some, made) for made in (frozen(some, 0), shuffled(some)))
    assert distance(features, some, some) < 1e-6 < min(still, mixed)


@pytest.mark.parametrize("frames", [2, 9, 17])
@pytest.mark.parametrize("dim", [64, 192, 1280])
def test_a_vector_is_what_a_clip_shows_beside_how_it_moves(frames, dim):
    values = torch.randn(3, frames, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(frames))
    found = clip_features(values)
    shows, moves = sign_projection("shows", dim), sign_projection("moves", dim)
    for clip, vector in zip(values, found, strict=True):
        steps = sum((b - a).abs() for a, b in pairwise(clip)) / (frames - 1)
        torch.testing.assert_close(vector[:HALF], sum(clip) / frames @ shows, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(vector[HALF:], GAIN * steps @ moves, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(clip_features(values.flip(1)), found, rtol=1e-10, atol=1e-10)  # time may run backwards
    still = clip_features(values[:, :1].expand_as(values))
    assert not still[:, HALF:].any()
    with pytest.raises(ValueError, match="2 frames or more, got 1"):
        clip_features(values[:, :1])


@pytest.mark.parametrize("dim", [64, 1280])
def test_projections_are_orthogonal_and_the_same_everywhere(dim):
    for name in ("shows", "moves"):
        columns = sign_projection(name, dim)
        torch.testing.assert_close(columns.T @ columns, torch.eye(HALF).double() * dim / HALF, rtol=0, atol=1e-12 * dim)
    bits = [byte >> place & 1 for byte in shake_256(b"shows").digest(dim * HALF // 8) for place in range(7, -1, -1)]
    signs = torch.tensor(bits).reshape(dim, HALF).double() * 2 - 1
    inside = sign_projection("shows", dim) @ (sign_projection("shows", dim).T @ signs) * HALF / dim
    torch.testing.assert_close(inside, signs, rtol=0, atol=1e-10)  # the same space on every machine
    assert (sign_projection("shows", dim).T @ sign_projection("moves", dim)).abs().max() < dim / HALF


def as_set(clips, name=""):
    return [(f"{name}{i:02}", to_video(clip.permute(1, 2, 3, 0))) for i, clip in enumerate(clips)]


def test_a_report_has_each_set_and_the_spread_over_them(clips):
    sets = {f"seed {seed}": as_set(noised(clips, 8 + seed)) for seed in range(3)}
    seen = []
    report = score_generated(sets, as_set(clips), VIDEO, OF_CLIPS, progress=seen.append)
    assert seen == list(range(1, 4 * 80 + 1))
    assert (report.real, [one.clips for one in report.sets]) == (80, [80, 80, 80])
    assert (report.protocol.size, report.protocol.frames) == ((64, 64), FRAMES)
    assert report.protocol.features_digest == OF_CLIPS.digest
    for seed, one in enumerate(report.sets):
        direct = distance(OF_CLIPS, clips, noised(clips, 8 + seed))
        assert one.frechet.distance == pytest.approx(direct, rel=1e-6)
        assert one == score_generated({one.name: sets[one.name]}, as_set(clips), VIDEO, OF_CLIPS).sets[0]
    assert report.sets[0].frechet.name == "frechet_efficientnet_video"
    values = torch.tensor([one.frechet.distance for one in report.sets], dtype=torch.float64)
    spread = report.spread["frechet_efficientnet_video"]
    assert (spread.mean, spread.std) == pytest.approx((values.mean().item(), values.std().item()), rel=1e-12)
    assert set(report.spread) == {"frechet_efficientnet_video", "precision", "recall", "density", "coverage"}
    assert GenerationReport.parse(json.loads(report.to_json())) == report
    text = report.to_text(width=160)
    assert "against 80 real clips of 9 frames" in text
    assert "Fréchet: frechet_efficientnet_video, 64 features of efficientnet-lite0-video abababab" in text
    assert "fvd" not in text.lower()


def test_a_set_against_itself_has_no_distance_and_covers_all(clips):
    one = score_generated({"same": as_set(clips, "x")}, as_set(clips), VIDEO, OF_CLIPS).sets[0]
    assert one.frechet.distance == pytest.approx(0, abs=1e-6)
    assert (one.precision, one.recall, one.density, one.coverage) == (1, 1, 1, 1)


def pictures(count, seed, side=8):
    rng = torch.Generator().manual_seed(seed)
    return as_set(torch.randint(0, 256, (count, 3, 1, side, side), generator=rng, dtype=torch.uint8))


def test_scores_that_too_few_samples_allow_are_none_with_the_reason():
    report = score_generated({"a": pictures(3, 1), "b": pictures(9, 2)}, pictures(5, 0), SMALTI_GENERATION, OF_FRAMES)
    few, more = report.sets
    assert (few.precision, few.absent["precision"]) == (None, "needs more than 3 clips in both sets")
    assert (more.coverage, more.absent["coverage"]) == (None, "needs more than 5 real clips")
    assert more.precision is not None
    assert set(report.spread) == {"frechet_efficientnet"}
    assert few.frechet.warning == "3 samples for 3 dimensions: a covariance is singular"


def test_the_inception_score_is_that_of_logits_without_a_bias():
    head = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) / 16
    network = OF_FRAMES.network._replace(name="inception", score="rfid", head=("fc.weight", (5, 3)), ignored=("fc.",))
    weights = {"gain": torch.ones(1), "fc.weight": head, "fc.bias": torch.full((5,), 100.0)}
    features, made = Features(network, weights, ""), pictures(40, 1)
    one = score_generated({"a": made}, pictures(30, 0), SMALTI_GFID, features).sets[0]
    vectors = torch.stack([((video + 1) * 127.5).round().mean((0, 2, 3, 4)) for _, video in made])
    expected = inception_score(vectors.double() @ head.double().T)
    assert (one.inception_score, one.inception_score_std) == pytest.approx(tuple(expected), rel=1e-6)
    assert one.frechet.name == "gfid"
    bare = Features(network, {"gain": torch.ones(1)}, "")
    with pytest.raises(IntegrityError, match=r"have no fc.weight, which logits need"):
        score_generated({"a": made}, pictures(30, 0), SMALTI_GFID, bare)
    with pytest.raises(IntegrityError, match=r"fc.weight has shape \(4, 3\), expected \(5, 3\)"):
        Features(network, {**weights, "fc.weight": head[:4]}, "")


def test_a_protocol_that_asks_for_samples_takes_the_first():
    protocol = SMALTI_GENERATION.replace({"samples": 7})
    made, real = pictures(9, 1), pictures(9, 0)
    report = score_generated({"a": made}, real, protocol, OF_FRAMES)
    assert report.sets == score_generated({"a": made[:7]}, real, SMALTI_GENERATION, OF_FRAMES).sets
    assert (report.real, report.sets[0].clips) == (9, 7)
    with pytest.raises(InputError, match="a: holds 6 clips, protocol smalti-generation needs 7"):
        score_generated({"a": made[:6]}, real, protocol, OF_FRAMES)


def test_sets_that_cannot_be_compared_are_refused(clips):
    real = pictures(6, 0)
    for made, message in [
        ([], "a: holds 0 clips, protocol smalti-generation needs 2"),
        ([real[0], real[0]], "a: 00: two clips have this key"),
        (pictures(6, 1, side=9), r"a: 00: size \(9, 9\) among clips of \(8, 8\)"),
        (as_set(clips[:2, :, :3, :8, :8]), "a: 00: has 3 frames, protocol smalti-generation is for images"),
        ([("x", torch.full((1, 3, 1, 8, 8), float("nan")))], "not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            score_generated({"a": made}, real, SMALTI_GENERATION, OF_FRAMES)
    with pytest.raises(InputError, match=r"a: 00: frames 8 among clips of 9"):
        score_generated({"a": as_set(clips[:, :, :8])}, as_set(clips), VIDEO, OF_CLIPS)
    with pytest.raises(InputError, match=r"real: 00: .*pixels must be in \[-1, 1\]"):
        score_generated({"a": real}, [("00", real[0][1] * 3)], SMALTI_GENERATION, OF_FRAMES)
    bright = [(key, video * 1.5) for key, video in real]
    clipped = [(key, video.mul(1.5).clamp(-1, 1)) for key, video in real]
    found = [score_generated({"a": made}, real, SMALTI_GENERATION, OF_FRAMES).sets for made in (bright, clipped)]
    assert found[0] == found[1]
    with pytest.raises(ConfigError, match="no generated set"):
        score_generated({}, real, SMALTI_GENERATION, OF_FRAMES)


def test_other_features_or_wrong_protocols_are_refused():
    with pytest.raises(ConfigError, match="uses features of inception, not of efficientnet-lite0"):
        score_generated({"a": pictures(6, 1)}, pictures(6, 0), SMALTI_GFID, OF_FRAMES)
    other = SMALTI_GENERATION.replace({"features_digest": "0" * 64})
    with pytest.raises(ConfigError, match="names other weights of efficientnet-lite0"):
        score_generated({"a": pictures(6, 1)}, pictures(6, 0), other, OF_FRAMES)
    with pytest.raises(ConfigError, match="uint8"):
        SMALTI_GENERATION.replace({"rounding": "none"})
    with pytest.raises(ConfigError, match="inception score is of the features of inception"):
        SMALTI_GENERATION.replace({"inception_splits": 10})
    with pytest.raises(ConfigError, match="there are: smalti-gfid, smalti-gfvd"):
        find_protocol("smalti", GENERATION_PROTOCOLS)
    assert [find_protocol(protocol.name, GENERATION_PROTOCOLS) for protocol in GENERATION_PROTOCOLS] == [
        *GENERATION_PROTOCOLS
    ]
