"""Distances in reports: samples, merging, what is kept of the originals, and what is refused."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.metrics import (
    PROTOCOLS,
    SMALTI_FID,
    SMALTI_FRECHET,
    SMALTI_FVD,
    Features,
    Moments,
    Protocol,
    Report,
    Scores,
    evaluate_pairs,
    find_protocol,
    frechet_distance,
    pairs_of,
)
from smalti.metrics.features import Network
from smalti.metrics.statistics import StatisticsKey, load_statistics, save_statistics

NETWORK = Network(
    name="efficientnet-lite0",
    score="frechet_efficientnet",
    dim=6,
    per="frame",
    features=lambda weights, frames: torch.cat([frames.mean((2, 3)), frames.amax((2, 3))], 1) * weights["gain"],
    shapes={"gain": (1,)},
    file="means.pt",
)
"""A network of frames, as small as may be."""
FEATURES = Features(NETWORK, {"gain": torch.ones(1)}, digest="ab" * 32)
OF_CLIPS = NETWORK._replace(
    name="i3d", score="rfvd", per="clip", fewest_frames=2, features=lambda w, x: x.flatten(3).mean(3).flatten(1)[:, :6]
)
PROTOCOL = SMALTI_FRECHET.replace({"lpips": None, "ms_ssim": False})
LEVELS = (8, 8, 8)


def clip(frames, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, frames, 16, 24), generator=rng).float() / 127.5 - 1


CLIPS = [(f"clip{i}", clip(frames, i)) for i, frames in enumerate((1, 5, 3, 2, 17))]


def noisy(video):
    ids = ((video[:, 0, :, ::8, ::8] + 1) * 255).long().clamp(0, 511)
    return (video * 4).round() / 4, ids


def evaluate(reconstruct, clips, protocol, **networks):
    return evaluate_pairs(pairs_of(reconstruct, clips, protocol.samples), protocol, **networks)


def scored(clips, protocol=PROTOCOL, features=FEATURES, reference=None):
    scores = Scores(protocol, features=features, reference=reference, levels=LEVELS)
    for key, video in clips:
        scores.add(key, video, *noisy(video))
    return scores


def assert_close(a, b):
    """Equal reports but for rounding of the distance in float64."""
    for name in ("distance", "means", "covariances"):
        assert getattr(a.frechet, name) == pytest.approx(getattr(b.frechet, name), rel=1e-10)
    assert a.model_copy(update={"frechet": None}) == b.model_copy(update={"frechet": None})
    assert (a.frechet.originals, a.frechet.outputs) == (b.frechet.originals, b.frechet.outputs)


def pixels(video):
    return ((video[0].double() + 1) * 127.5).round().clamp(0, 255).transpose(0, 1)


def test_the_distance_is_that_of_the_features_of_all_frames():
    report = evaluate(noisy, CLIPS, PROTOCOL, features=FEATURES, levels=LEVELS)
    a, b = Moments(6), Moments(6)
    for _, video in CLIPS:
        for moments, frames in ((a, pixels(video)), (b, pixels(noisy(video)[0]))):
            moments.update(torch.cat([frames.mean((2, 3)), frames.amax((2, 3))], 1))
    assert report.frechet.distance == pytest.approx(frechet_distance(a, b).distance, rel=1e-5)
    assert (report.frechet.name, report.frechet.originals, report.frechet.outputs) == ("frechet_efficientnet", 28, 28)
    assert report.protocol.features_digest == FEATURES.digest
    assert "frechet" not in report.absent
    text = report.to_text(width=200)
    assert "frechet_efficientnet: " in text
    assert "28 samples against 28, 6 features of efficientnet-lite0 abababab" in text
    assert "fid" not in text.lower()
    assert Report.parse(json.loads(report.to_json())) == report


def test_the_distance_of_a_set_from_itself_is_nothing():
    report = evaluate(lambda video: video, CLIPS, PROTOCOL, features=FEATURES)
    assert 0 <= report.frechet.distance < 1e-6


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_parts_that_are_sent_merge_to_the_report_of_the_whole(ranks):
    whole = scored(CLIPS)
    merged = Scores(PROTOCOL, features=FEATURES, levels=LEVELS)
    for rank in range(ranks):
        sent = safetensors.torch.save(scored(CLIPS[rank::ranks]).tensors())
        merged = merged.merge(merged.received(safetensors.torch.load(sent)))
    assert_close(merged.report(), whole.report())


def test_a_network_of_clips_counts_clips():
    features = Features(OF_CLIPS, {"gain": torch.ones(1)}, "cd" * 32)
    protocol = SMALTI_FVD.replace({"lpips": None})
    report = scored(CLIPS[1:], protocol, features).report()
    assert (report.frechet.name, report.frechet.originals, report.frechet.dim) == ("rfvd", 4, 6)
    assert "rfvd: 4 samples for 6 dimensions: a covariance is singular" in report.to_text(width=200)
    with pytest.raises(InputError, match="clip0: has 1 frames, i3d needs clips of 2 or more"):
        scored(CLIPS, protocol, features)


def test_a_protocol_that_asks_for_clips_takes_the_first_and_all_originals():
    protocol = PROTOCOL.replace({"samples": 3})
    made = []

    def reconstruct(video):
        made.append(video)
        return noisy(video)

    report = evaluate(reconstruct, CLIPS, protocol, features=FEATURES, levels=LEVELS)
    assert (len(made), report.clips) == (3, 3)
    assert (report.frechet.originals, report.frechet.outputs) == (28, 9)
    with pytest.raises(InputError, match="asks for 6 clips, 5 were scored; give it the whole list"):
        evaluate(noisy, CLIPS, PROTOCOL.replace({"samples": 6}), features=FEATURES)


def test_originals_may_keep_their_levels_where_reconstructions_are_truncated():
    protocol = PROTOCOL.replace({"rounding": "floor", "original_rounding": "round"})
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 1, 16, 16).expand(1, 3, 1, 16, 16)
    video = levels / 127.5 - 1
    lowered = evaluate(lambda video: video, [("a", video)], protocol, features=FEATURES)
    expected = ((levels - ((video + 1) * 127.5).floor()) ** 2).mean().item()
    assert lowered.mse == pytest.approx(expected, rel=1e-12)
    assert expected > 0
    same = protocol.replace({"original_rounding": None})
    assert evaluate(lambda video: video, [("a", video)], same, features=FEATURES).mse == 0


def test_a_distance_that_cannot_be_taken_is_none_with_the_reason():
    one = evaluate(noisy, CLIPS[:1], PROTOCOL, features=FEATURES)
    assert (one.frechet, one.absent["frechet"]) == (None, "a distance needs 2 samples or more")
    none = evaluate(noisy, CLIPS, PROTOCOL)
    assert none.absent["frechet"] == "no weights of efficientnet-lite0 were given"
    other = evaluate(noisy, CLIPS, PROTOCOL.replace({"features": None}), features=FEATURES)
    assert other.absent["frechet"] == "not in protocol smalti-frechet"


def test_other_features_than_the_protocol_names_are_refused():
    with pytest.raises(ConfigError, match="uses features of inception, not of efficientnet-lite0"):
        Scores(SMALTI_FID, features=FEATURES)
    with pytest.raises(ConfigError, match="names other weights of efficientnet-lite0"):
        Scores(PROTOCOL.replace({"features_digest": "0" * 64}), features=FEATURES)
    with pytest.raises(ConfigError, match="uint8"):
        PROTOCOL.replace({"rounding": "none"})
    with pytest.raises(ValueError, match="different protocols"):
        scored(CLIPS[:1]).merge(scored(CLIPS[1:], features=None))


def test_known_moments_of_originals_stand_for_them():
    whole = scored(CLIPS)
    reference = whole.moments.originals
    again = scored(CLIPS, reference=reference)
    assert again.moments.originals.n == 0
    assert again.report() == whole.report()
    parts = scored(CLIPS[:2], reference=reference).merge(scored(CLIPS[2:], reference=reference))
    assert_close(parts.report(), whole.report())
    with pytest.raises(ValueError, match="a reference of width 5"):
        scored(CLIPS, reference=Moments(5))
    with pytest.raises(ValueError, match="cannot be merged"):
        whole.merge(scored([], reference=reference))


KEY = StatisticsKey(
    features="efficientnet-lite0",
    features_digest=FEATURES.digest,
    rounding="round",
    data={"kind": "images", "size": 128},
    listed="0" * 64,
    count=5,
)


def test_statistics_come_back_bit_for_bit_under_their_key(tmp_path):
    moments = scored(CLIPS).moments.originals
    assert load_statistics(tmp_path, KEY) is None
    path = save_statistics(tmp_path, KEY, moments)
    again = load_statistics(tmp_path, KEY)
    assert path.parent == tmp_path
    assert again.n == moments.n
    assert torch.equal(again.mean, moments.mean)
    assert torch.equal(again.scatter, moments.scatter)


@pytest.mark.parametrize(
    "change",
    [
        {"features": "inception"},
        {"features_digest": "1" * 64},
        {"rounding": "floor"},
        {"data": {"kind": "images", "size": 256}},
        {"listed": "1" * 64},
        {"count": 6},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_key_has_another_file_and_a_file_under_a_wrong_name_is_refused(tmp_path, change):
    path = save_statistics(tmp_path, KEY, scored(CLIPS).moments.originals)
    other = KEY.replace(change)
    assert load_statistics(tmp_path, other) is None
    path.rename(other.path(tmp_path))
    with pytest.raises(IntegrityError, match=rf"statistics of something else \({next(iter(change))} differ\)"):
        load_statistics(tmp_path, other)


def test_damaged_statistics_are_refused_and_not_used(tmp_path):
    path = save_statistics(tmp_path, KEY, scored(CLIPS).moments.originals)
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for data, message in [
        (whole[:-8], "not whole statistics"),
        (b"", "not whole statistics"),
        (safetensors.torch.save({"n": torch.tensor(1)}, about), "not whole statistics"),
        (safetensors.torch.save(tensors), "not whole statistics"),
        (safetensors.torch.save(tensors, {**about, "key": "{}"}), "not whole statistics"),
        (safetensors.torch.save({**tensors, "mean": tensors["mean"] + 1}, about), "its numbers have changed"),
    ]:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=message):
            load_statistics(tmp_path, KEY)


@pytest.mark.parametrize("place", [0.5, 0.9, 0.999])
def test_one_flipped_bit_of_statistics_is_found(tmp_path, place):
    path = save_statistics(tmp_path, KEY, scored(CLIPS).moments.originals)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        load_statistics(tmp_path, KEY)


def test_every_named_protocol_is_whole_and_found():
    assert len({protocol.name for protocol in PROTOCOLS}) == len(PROTOCOLS)
    for protocol in PROTOCOLS:
        assert find_protocol(protocol.name, PROTOCOLS) is protocol
        assert Protocol.parse(protocol.plain()) == protocol
