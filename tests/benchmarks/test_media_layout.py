"""How benchmarks.media cuts film: what is held out is not seen in training."""

import torch

from benchmarks.media import GROUPS, Clip, apart, groups, parts


def scene(seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (24, 32, 3), generator=rng, dtype=torch.uint8).numpy()


def test_parts_of_a_long_shot_know_their_shot_and_flat_frames_are_of_none():
    flat = torch.full((24, 32, 3), 7, dtype=torch.uint8).numpy()
    film = [flat] * 3 + [scene(0)] * 500 + [flat] * 2 + [scene(1)] * 30 + [scene(0)] * 24
    found = [(part.shot, part.first, len(part.frames)) for part in parts(iter(film))]
    assert found == [(3, 3, 240), (3, 243, 240), (505, 505, 30)]  # the rest, of 20 and of 24 frames, is too short


def test_shots_are_cut_where_they_were_joined():
    film = [scene(seed) for seed in range(6) for _ in range(40)]
    assert [(part.first, len(part.frames)) for part in parts(iter(film))] == [(40 * i, 40) for i in range(6)]


def test_test_clips_keep_apart_from_what_is_trained_on():
    ends = [(0, 50, True), (50, 90, False), (90, 130, True), (137, 170, True), (170, 200, True), (210, 260, False)]
    clips = [Clip(str(first), first, end, tests, []) for first, end, tests in ends]
    assert [clip.first for clip in apart(clips, 48)] == [50, 210]
    assert [clip.first for clip in apart(clips, 40)] == [50, 137, 210]
    assert [clip.first for clip in apart(clips, 0)] == [first for first, *_ in ends]


def test_groups_of_a_film_are_numbers_from_1_in_an_order_of_its_own():
    assert sorted(groups("A")) == sorted(groups("B")) == list(range(1, GROUPS + 1))
    assert groups("A") == groups("A") != groups("B")
