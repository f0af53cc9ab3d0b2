"""Trivial baselines: means of blocks and their bytes, JPEG within its bytes, moved and noisy copies."""

import math

import pytest
import torch

from benchmarks.prediction import DRIFT, NOISE, trivial
from benchmarks.rate_distortion import Point, bd_rates, unbeaten
from benchmarks.trivial import block_means, grey, jpeg, mean_colour
from smalti.video import to_video


def frames(t, h, w, seed=0):
    """Soft noise, whose pixels know their neighbours, uint8 `t h w 3`."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(t, 3, h // 4 + 1, w // 4 + 1, generator=rng)
    soft = torch.nn.functional.interpolate(small, size=(h, w), mode="bilinear")
    return (soft * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def error(a, b):
    return (a.double() - b.double()).square().mean().item()


@pytest.mark.parametrize(("t", "h", "w"), [(1, 32, 48), (5, 20, 33), (3, 7, 9)])
@pytest.mark.parametrize(("side", "length"), [(16, 1), (4, 2), (1, 1), (64, 8)])
def test_blocks_are_their_means_and_cost_three_bytes_each(t, h, w, side, length):
    shown = frames(t, h, w)
    size, made = block_means(shown, side, length)
    assert size == 3 * math.ceil(t / length) * math.ceil(h / side) * math.ceil(w / side)
    assert torch.equal(block_means(made, side, length)[1], made)
    first = shown[:length, :side, :side].double().mean((0, 1, 2))
    assert (made[0, 0, 0].double() - first).abs().max() <= 0.5
    if side == 1 and length == 1:
        assert torch.equal(made, shown)
    # No constant on a block is nearer than its mean, but for the rounding to whole levels.
    one, whole = mean_colour(shown)
    assert one == 3
    assert error(made, shown) <= error(whole, shown) + 1 <= error(grey(shown)[1], shown) + 2


@pytest.mark.parametrize("most", [900, 1500, 4000])
def test_jpeg_is_the_best_within_its_bytes(most):
    shown = frames(2, 48, 64, 1)
    size, made = jpeg(shown, most)
    assert size <= most
    more, better = jpeg(shown, 4 * most)
    assert size <= more
    assert error(better, shown) <= error(made, shown)
    least, _ = jpeg(shown, 1)
    assert 1 < least <= size  # the coarsest there is


@pytest.mark.parametrize("seed", range(4))
def test_predictions_of_a_frame_alone_begin_with_it_and_two_of_three_move(seed):
    clip = to_video(frames(5, 24, 30, seed))
    made = trivial(f"clip {seed}", clip)
    again = trivial(f"clip {seed}", clip + 0.0)
    assert list(made) == ["copied", "copy + noise", "copy + drift"]
    for name, video in made.items():
        assert torch.equal(video[:, :, 0], clip[:, :, 0]), name
        assert torch.equal(video, again[name]), name
        assert bool((video[:, :, 1:] != video[:, :, :-1]).any()) == (name != "copied"), name
        others = clip.clone()
        others[:, :, 1:] = -1  # no prediction knows what comes
        assert torch.equal(trivial(f"clip {seed}", others)[name], video), name
    noise = (made["copy + noise"] - made["copied"])[:, :, 1:] * 127.5
    inside = (made["copied"][:, :, 1:].abs() < 0.8).expand_as(noise)
    assert noise[inside].std().item() == pytest.approx(NOISE, rel=0.05)
    drifted, first = made["copy + drift"], clip[:, :, 0]
    moves = []
    for t in range(1, 5):
        steps = round(t * DRIFT)
        fits = [
            (y, x)
            for y in (-steps, 0, steps)
            for x in (-steps, 0, steps)
            if torch.equal(drifted[:, :, t, 6:-6, 6:-6], first.roll((y, x), (2, 3))[:, :, 6:-6, 6:-6])
        ]
        assert len(fits) == 1
        moves.append((fits[0][0] // steps, fits[0][1] // steps))
    assert len(set(moves)) == 1
    assert moves[0] != (0, 0)


def test_bd_rates_are_over_ours_and_none_without_a_common_quality():
    def curve(codec, factor, low):
        return [Point("film", codec, str(i), factor * 2.0**i, low + 3.0 * i, 0, 0) for i in range(3)]

    found = [*curve("smalti", 1, 20.0), *curve("half", 0.5, 20.0), *curve("better", 1, 40.0)]
    found.append(Point("film", "mean colour", "", 0.01, 12.0, 0, 0))
    rows = {row["codec"]: row["bd_rate"] for row in bd_rates(found)}
    assert rows["half"] == pytest.approx(-0.5)
    assert rows["better"] is None
    assert set(rows) == {"half", "better"}


def test_points_that_others_beat_are_no_part_of_a_curve():
    curve = [(3.0, 30.0), (1.0, 20.0), (2.0, 31.0), (1.0, 22.0), (4.0, 31.0), (5.0, 33.0)]
    assert unbeaten(curve) == [(1.0, 22.0), (2.0, 31.0), (5.0, 33.0)]
    points = [Point("media", "smalti", str(bits), bits, quality, 0.0, 0.0, None) for bits, quality in curve]
    points += [Point("media", "x", str(bits), 2 * bits, quality, 0.0, 0.0, None) for bits, quality in curve]
    (row,) = bd_rates(points)
    assert row["bd_rate"] == pytest.approx(1.0)
