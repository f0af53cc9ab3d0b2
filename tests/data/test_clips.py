"""Which frames a clip shows: the closed forms of both projects, and what happens in a video that is too short."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data import VideosConfig, bundled, magicmaster_videos, mindone_videos
from smalti.data.clips import ClipConfig
from smalti.errors import ConfigError

COUNTS = st.integers(1, 200)
DRAWN = st.floats(0, 1, exclude_max=True)


def times(count: int) -> list[float]:
    return [i / 25 for i in range(count)]


def starts(config: ClipConfig, count: int) -> list[int]:
    """The first frame of clips that are drawn evenly."""
    return [config.clip(times(count), drawn).indices[0] for drawn in np.linspace(0, 1, 420, endpoint=False)]


@given(COUNTS, st.integers(1, 20), st.integers(1, 5), st.integers(0, 9), DRAWN)
@settings(max_examples=150, deadline=None)
def test_long_enough_videos_give_even_clips_whatever_short_says(
    count: int, frames: int, stride: int, tail: int, drawn: float
) -> None:
    span = (frames - 1) * stride + 1
    for short in ("repeat", "loop", "spread", "skip"):
        for sampling in ("random", "center", "first"):
            config = ClipConfig(frames=frames, stride=stride, sampling=sampling, tail=tail, short=short)
            indices, is_short = config.clip(times(count), drawn)
            assert len(indices) == frames
            assert is_short == (span > count)
            assert all(0 <= i < count for i in indices)
            if not is_short:
                assert indices == list(range(indices[0], indices[0] + span, stride))


@given(COUNTS, st.integers(1, 20), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_middle_has_as_many_frames_before_it_as_after_it_or_one_fewer(count: int, frames: int, stride: int) -> None:
    indices, is_short = ClipConfig(frames=frames, stride=stride, sampling="center").clip(times(count), 0.9)
    if not is_short:
        assert (count - 1 - indices[-1]) - indices[0] in (0, 1)


@given(COUNTS, st.integers(1, 12), st.integers(1, 4), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_a_random_clip_starts_anywhere_that_leaves_the_tail(count: int, frames: int, stride: int, tail: int) -> None:
    last = max(0, count - 1 - (frames - 1) * stride - tail)
    drawn = starts(ClipConfig(frames=frames, stride=stride, tail=tail), count)
    counts = np.bincount(drawn, minlength=last + 1)
    assert len(counts) == last + 1
    assert counts.min() >= 420 // (last + 1)  # each start equally often
    assert counts.max() <= -(-420 // (last + 1))


def test_short_videos_repeat_loop_or_spread() -> None:
    def shown(short: str, frames: int = 7, count: int = 3, stride: int = 1) -> list[int]:
        return ClipConfig(frames=frames, stride=stride, short=short).clip(times(count), 0.5).indices

    assert shown("repeat") == [0, 1, 2, 2, 2, 2, 2]
    assert shown("loop") == [0, 1, 2, 0, 1, 2, 0]
    assert shown("spread") == [0, 0, 0, 1, 1, 1, 2]
    assert shown("repeat", stride=2) == [0, 2, 2, 2, 2, 2, 2]
    assert shown("loop", stride=2) == [0, 2, 1, 0, 2, 1, 0]
    assert shown("spread", stride=2) == [0, 0, 0, 1, 1, 1, 2]


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_magicmasters_training_clips_start_at_0_to_n_minus_34(count: int) -> None:
    drawn = starts(magicmaster_videos(bundled.videos("train"), train=True), count)
    assert sorted(set(drawn)) == (list(range(count - 34 + 1)) if count >= 34 else [0])
    if count >= 34:  # so the last frame of a video is never drawn
        assert max(drawn) + 32 == count - 2


@given(COUNTS, DRAWN)
@settings(max_examples=100, deadline=None)
def test_magicmasters_testing_clips_are_the_middle_and_short_ones_loop(count: int, drawn: float) -> None:
    indices = magicmaster_videos(bundled.videos("heldout"), train=False).clip(times(count), drawn).indices
    start = max(count - 33, 0) // 2
    assert indices == [(start + 2 * i) % count for i in range(17)]


@given(COUNTS, st.integers(2, 20), st.integers(1, 5), DRAWN)
@settings(max_examples=100, deadline=None)
def test_mindones_clips_are_a_cut_linspace_over_the_clip(count: int, frames: int, stride: int, drawn: float) -> None:
    length = min(count, (frames - 1) * stride + 1)
    start = int(drawn * (count - length + 1))
    expected = np.linspace(start, start + length - 1, frames).astype(int).tolist()
    config = mindone_videos(bundled.videos("train"), frames=frames, stride=stride)
    assert config.clip(times(count), drawn).indices == expected


def test_mindones_starts_reach_the_last_frame() -> None:
    drawn = starts(mindone_videos(bundled.videos("train")), 20)
    assert np.bincount(drawn).tolist() == [105] * 4


@pytest.mark.parametrize("wrong", [{"tail": 1}, {"short": "loop"}, {"short": "spread"}, {"stride": 2}])
def test_what_counts_frames_does_not_go_with_a_rate(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"fps"):
        VideosConfig.parse({"path": "x", "fps": 12, **wrong})
