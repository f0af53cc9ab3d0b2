"""Order and loading: pure functions of (seed, epoch, index), whatever the workers, ranks and restarts."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.data import Batch, ImagesConfig, JointConfig, VideosConfig, batches, bundled, evaluation, loader
from smalti.data.source import Order, mix, sample_rng
from smalti.errors import BadFile, ConfigError, InputError


class Numbers:
    """A source of numbers: pixel values are the index and a random draw; the numbers of `bad` cannot be read."""

    def __init__(
        self, length: int, bad: tuple[int, ...] = (), slow: tuple[int, ...] = (), deadly: tuple[int, ...] = ()
    ):
        self.length, self.bad, self.slow, self.deadly = length, bad, slow, deadly

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        return f"number {index}"

    def label(self, index: int) -> int | None:
        return index % 3

    def load(self, index: int, rng: torch.Generator) -> Tensor:
        if index in self.bad:
            raise BadFile(self.key(index), "bad", "cannot be read")
        if index in self.slow:
            time.sleep(20)
        if index in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        drawn = torch.randint(0, 256, (1, 2, 2, 2), generator=rng, dtype=torch.uint8)
        return torch.cat([torch.full((1, 2, 2, 1), index, dtype=torch.uint8), drawn], dim=3)


def same(a: Batch, b: Batch) -> bool:
    return a.keys == b.keys and a.step == b.step and a.labels == b.labels and torch.equal(a.video, b.video)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 16, 17, 100, 257, 1024, 3001])
def test_every_epoch_is_a_permutation(length: int) -> None:
    order = Order(length, seed=3)
    for epoch in range(3):
        pairs = [order(epoch * length + i) for i in range(length)]
        assert {e for e, _ in pairs} == {epoch}
        assert sorted(i for _, i in pairs) == list(range(length))


def test_epochs_and_seeds_differ() -> None:
    runs = {tuple(Order(64, seed)(epoch * 64 + i)[1] for i in range(64)) for seed in range(5) for epoch in range(5)}
    assert len(runs) == 25


def test_an_order_needs_no_memory_and_no_replay() -> None:
    order = Order(1_000_000_007, seed=1)
    far = 123 * 1_000_000_007 + 99
    assert order(far) == Order(1_000_000_007, seed=1)(far)
    assert order(far)[0] == 123


@pytest.mark.parametrize("length", [3, 6, 20])
def test_every_sample_comes_first_equally_often(length: int) -> None:
    epochs = 200 * length
    for place in (0, length // 2, length - 1):
        counts = Counter(Order(length, seed=11)(epoch * length + place)[1] for epoch in range(epochs))
        chi_square = sum((counts[i] - 200) ** 2 / 200 for i in range(length))
        assert chi_square < length + 5 * (2 * length) ** 0.5  # mean + 5 deviations


def test_neighbours_do_not_stay_together() -> None:
    order = Order(1000, seed=0)
    places = [order(i)[1] for i in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(places)) < 12  # 2 are expected


def test_the_hash_is_the_same_for_ever() -> None:
    assert mix(0) == 0xE220A8397B1DCDAF  # the first number of splitmix64 from state 0
    assert mix(1, 2, 3) == mix(1, 2, 3) != mix(3, 2, 1)
    assert len({mix(a, b) for a in range(50) for b in range(50)}) == 2500


def test_the_sample_generator_depends_on_all_three_numbers() -> None:
    draws = {float(torch.rand((), generator=sample_rng(s, e, i))) for s in range(4) for e in range(4) for i in range(4)}
    assert len(draws) == 64


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 40), st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_a_restart_at_any_step_goes_on_as_if_nothing_was(length: int, size: int, start: int, seed: int) -> None:
    whole = list(islice(batches(Numbers(length), batch_size=size, seed=seed), start + 3))
    resumed = islice(batches(Numbers(length), batch_size=size, seed=seed, start_step=start), 3)
    assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_the_global_batch_by_turns(world: int) -> None:
    whole = list(islice(batches(Numbers(13), batch_size=6, seed=5), 8))
    parts = [list(islice(batches(Numbers(13), batch_size=6, seed=5, part=(r, world)), 8)) for r in range(world)]
    for step, batch in enumerate(whole):
        for rank in range(world):
            assert parts[rank][step].keys == batch.keys[rank::world]
            assert torch.equal(parts[rank][step].video, batch.video[rank::world])


def test_an_epoch_shows_every_sample_once() -> None:
    keys = [key for batch in islice(batches(Numbers(24), batch_size=8, seed=0), 6) for key in batch.keys]
    assert sorted(keys[:24]) == sorted(keys[24:]) == sorted(f"number {i}" for i in range(24))


def test_augmentation_differs_between_epochs_and_not_between_runs() -> None:
    video = [batch.video for batch in islice(batches(Numbers(1), batch_size=1, seed=0), 4)]
    again = [batch.video for batch in islice(batches(Numbers(1), batch_size=1, seed=0), 4)]
    assert len({tuple(v.flatten().tolist()) for v in video}) == 4
    assert all(torch.equal(a, b) for a, b in zip(video, again, strict=True))


def test_bad_rows_are_named_counted_and_left_out() -> None:
    faults: list[BadFile] = []
    found = list(islice(batches(Numbers(12, bad=(3, 7)), batch_size=4, seed=2, on_bad=faults.append), 3))
    assert sorted(f.path for f in faults) == ["number 3", "number 7"]
    assert sum(len(batch.keys) for batch in found) == 10
    assert all(batch.video.shape[0] == len(batch.keys) == len(batch.labels) for batch in found)
    whole = list(islice(batches(Numbers(12), batch_size=4, seed=2), 3))
    for left, batch in zip(found, whole, strict=True):  # nothing takes the place of a bad row
        kept = [i for i, key in enumerate(batch.keys) if key not in ("number 3", "number 7")]
        assert left.keys == tuple(batch.keys[i] for i in kept)
        assert torch.equal(left.video, batch.video[kept])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_batch_of_bad_rows_alone_has_none_and_every_rank_has_one_for_each_step(ranks: int) -> None:
    """The rows of the ranks are those of the one batch; their places count the bad ones too."""
    bad, steps = (0, 1, 2, 5, 6, 8, 10, 11), 12
    whole = list(islice(batches(Numbers(12), batch_size=3, seed=1), steps))
    parts = [islice(batches(Numbers(12, bad=bad), batch_size=3, seed=1, part=(r, ranks)), steps) for r in range(ranks)]
    empty = 0
    for step, found in enumerate(zip(*parts, strict=True)):
        good = {}
        for rank, batch in enumerate(found):
            assert (batch.step, batch.listed) == (step, 3)
            assert batch.video.shape[:2] == (len(batch.keys), 3)
            assert batch.video.dtype == torch.float32
            assert all(place % ranks == rank for place in batch.places)
            good |= dict(zip(batch.places, batch.keys, strict=True))
            empty += not batch.keys
        names = {f"number {n}" for n in bad}
        assert good == {place: key for place, key in enumerate(whole[step].keys) if key not in names}
    assert empty > ranks


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    source = JointConfig(
        images=ImagesConfig(path=bundled.photos("train"), size=32),
        videos=VideosConfig(path=bundled.videos("train"), size=32, frames=3),
        share=0.6,
        images_per_clip=2,
    ).build()
    state = torch.random.get_rng_state()
    alone = list(islice(batches(source, batch_size=2, seed=4, start_step=2), 5))
    helped = list(islice(batches(source, batch_size=2, seed=4, start_step=2, workers=workers), 5))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())  # nothing is drawn from the global generator


def test_faults_come_through_workers_as_without() -> None:
    lists: list[list[BadFile]] = []
    for workers in (0, 2):
        faults: list[BadFile] = []
        list(islice(batches(Numbers(9, bad=(1, 8)), batch_size=3, seed=1, workers=workers, on_bad=faults.append), 6))
        lists.append(faults)
    assert [(f.path, f.code, f.message) for f in lists[0]] == [(f.path, f.code, f.message) for f in lists[1]]
    assert len(lists[0]) == 4


def test_files_that_kill_or_hang_their_reader_are_bad_ones_and_every_other_batch_is_as_without_them() -> None:
    """They are dropped from each batch, of later epochs too; what their readers had loaded ahead comes again, once."""
    length, steps = 7, 12
    plain = Numbers(length, bad=(2, 5))
    faults: list[BadFile] = []
    source = Numbers(length, slow=(2,), deadly=(5,))
    options = {"batch_size": 2, "seed": 1}
    found = list(islice(batches(source, **options, workers=2, timeout=1, on_bad=faults.append), steps))
    assert all(same(a, b) for a, b in zip(batches(plain, **options), found, strict=False))
    assert {(fault.path, fault.code) for fault in faults} == {("number 2", "hang"), ("number 5", "crash")}
    assert len(found) == steps
    assert len(faults) >= sum(2 - len(batch.keys) for batch in found)


def test_a_reader_that_dies_ahead_disturbs_nothing_but_the_loader() -> None:
    """The process that loads dies while this one is busy: no error reaches what is running here."""
    stream = batches(Numbers(4, deadly=(3,)), batch_size=1, seed=0, workers=1, timeout=2)
    keys = []
    for _ in range(4):
        keys += next(stream).keys
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            sum(range(1000))
    assert len(keys) >= 3
    assert "number 3" not in keys


def test_a_reader_that_is_killed_once_costs_no_file(tmp_path: Path) -> None:
    """As by the system when memory is short: the file is read again, and is good."""

    class Once(Numbers):
        def load(self, index: int, rng: torch.Generator) -> Tensor:
            if index == 1 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().load(index, rng)

    faults: list[BadFile] = []
    found = list(evaluation(Once(4), workers=2, on_bad=faults.append))
    assert [batch.keys for batch in found] == [(f"number {i}",) for i in range(4)]
    assert not faults
    assert all(same(a, b) for a, b in zip(evaluation(Numbers(4)), found, strict=True))


def test_an_evaluation_counts_the_files_that_kill_their_reader() -> None:
    faults: list[BadFile] = []
    found = list(evaluation(Numbers(5, deadly=(0, 3)), workers=2, on_bad=faults.append))
    assert [batch.keys for batch in found] == [("number 1",), ("number 2",), ("number 4",)]
    assert [(fault.path, fault.code) for fault in faults] == [("number 0", "crash"), ("number 3", "crash")]


def test_a_reader_that_dies_before_it_is_watched_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping, starts = loader._keeping_child_handler, 0

    @contextmanager
    def late() -> Iterator[None]:
        nonlocal starts
        with keeping():
            yield
        starts += 1
        end = time.monotonic() + 60
        while starts == 1 and len(active_children()) > 1 and time.monotonic() < end:
            time.sleep(0.01)

    monkeypatch.setattr(loader, "_keeping_child_handler", late)
    faults: list[BadFile] = []
    found = list(evaluation(Numbers(5, deadly=(0,)), workers=2, on_bad=faults.append))
    assert [batch.keys for batch in found] == [(f"number {i}",) for i in range(1, 5)]
    assert [(fault.path, fault.code) for fault in faults] == [("number 0", "crash")]


def test_rows_of_different_size_are_one_clear_line() -> None:
    source = ImagesConfig(path=bundled.photos("train"), size=None).build()
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"set `size`") as caught:
            list(islice(batches(source, batch_size=8, seed=0, workers=workers), 1))
        assert "\n" not in str(caught.value)


def test_impossible_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        next(batches(Numbers(4), batch_size=2, seed=0, part=(2, 2)))
    with pytest.raises(ConfigError, match="batch_size of 3"):
        next(batches(Numbers(4), batch_size=2, seed=0, part=(0, 3)))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_shows_every_good_sample_once_in_order(batch_size: int, world: int) -> None:
    faults: list[BadFile] = []
    source = Numbers(10, bad=(0, 5, 6, 7))
    runs = [
        list(evaluation(source, batch_size=batch_size, part=(r, world), on_bad=faults.append)) for r in range(world)
    ]
    for rank, run in enumerate(runs):
        keys = [key for batch in run for key in batch.keys]
        assert keys == [f"number {i}" for i in range(rank, 10, world) if i not in source.bad]
    assert len(faults) == 4


def test_evaluation_draws_the_same_crops_for_any_batch_size() -> None:
    source = ImagesConfig(path=bundled.photos("heldout"), size=16).build()
    runs = [
        torch.cat([b.video for b in evaluation(source, batch_size=n, workers=w)]) for n, w in ((1, 0), (3, 0), (8, 1))
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@given(st.floats(0, 1), st.integers(0, 2**31), st.integers(0, 300))
@settings(max_examples=30, deadline=None)
def test_turns_keep_the_share_and_are_known_without_the_steps_before(share: float, seed: int, far: int) -> None:
    source = JointConfig(
        images=ImagesConfig(path=bundled.photos("heldout")),
        videos=VideosConfig(path=bundled.videos("heldout")),
        share=share,
    ).build()
    counts = {"images": 0, "videos": 0}
    for step in range(far + 1):
        turn = source.turn(step, seed)
        assert turn.nth == counts[turn.kind]
        counts[turn.kind] += 1
        assert abs(counts["images"] - (step + 1) * share) < 1.001
    assert source.turn(far, seed) == turn


def test_labels_follow_the_class_folders(tmp_path: Path) -> None:
    for name in ("b/1.jpg", "a/2.jpg", "a/x/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((bundled.photos("heldout") / "owl.jpg").read_bytes())
    source = ImagesConfig(path=tmp_path, size=8, class_folders=True).build()
    assert source.classes == ("a", "b")
    found = {key: label for b in evaluation(source, batch_size=2) for key, label in zip(b.keys, b.labels, strict=True)}
    assert found == {"a/2.jpg": 0, "a/x/3.jpg": 0, "b/1.jpg": 1}
