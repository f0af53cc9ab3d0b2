"""One source in several views: whose turn it is, how many samples a batch has, and which."""

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data import ImagesConfig, Views, batches, bundled
from smalti.data.mixture import even_batches
from smalti.data.source import Source
from smalti.errors import ConfigError, InputError
from smalti.recipes import find
from smalti.training.samples import split_data

PHOTOS = bundled.photos("train")
SIZES = [(16, 16), (32, 32), (16, 24), (8, 8)]


class Named:
    """A source of names alone, of samples of one size."""

    def __init__(self, length: int, size: tuple[int, int]) -> None:
        self.length, self.size = length, size

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        return f"number {index}"

    def label(self, index: int) -> int | None:
        return None

    def load(self, index: int, rng: torch.Generator) -> torch.Tensor:
        return torch.full((1, *self.size, 3), index, dtype=torch.uint8)


def views(length: int, count: int = 3) -> Views:
    sources: list[Source] = [Named(length, size) for size in SIZES[:count]]
    return Views(sources, [height * width for height, width in SIZES[:count]])


@given(st.integers(1, 6), st.integers(0, 1 << 62), st.integers(0, 1 << 30))
def test_each_view_has_one_step_of_every_so_many_and_any_step_is_known_by_itself(count, seed, block):
    shown = Views([Named(9, (8, 8))] * count, [64] * count)
    turns = [shown.turn(block * count + place, seed) for place in range(count)]
    assert sorted(view for view, _ in turns) == list(range(count))
    assert {nth for _, nth in turns} == {block}


def test_the_order_of_views_differs_from_block_to_block_and_from_seed_to_seed():
    shown = views(9)
    orders = [
        tuple(shown.turn(3 * block + place, seed)[0] for place in range(3)) for seed in (0, 1) for block in range(600)
    ]
    counts = Counter(orders)
    assert len(counts) == 6
    assert min(counts.values()) > 130  # of 1,200 in 6 orders: 200 each, with a deviation of 13
    assert orders[:600] != orders[600:]


@given(st.integers(1, 512), st.lists(st.integers(1, 1 << 20), min_size=1, max_size=5))
def test_a_batch_of_each_view_has_the_pixels_of_the_first_to_half_a_sample(batch_size, pixels):
    sizes = even_batches(batch_size, pixels)
    assert sizes[0] == batch_size
    for size, each in zip(sizes, pixels, strict=True):
        assert size == 1 or 2 * abs(size * each - batch_size * pixels[0]) <= each


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 50), st.integers(0, 99))
def test_a_restart_at_any_step_goes_on_as_if_nothing_was(length, size, start, seed):
    whole = islice(batches(views(length), batch_size=4 * size, seed=seed), start, start + 5)
    rest = islice(batches(views(length), batch_size=4 * size, seed=seed, start_step=start), 5)
    for a, b in zip(whole, rest, strict=True):
        assert (a.keys, a.step, a.places, a.listed) == (b.keys, b.step, b.places, b.listed)
        assert torch.equal(a.pixels, b.pixels)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_have_one_shape_at_each_step_and_together_the_batch(world):
    whole = list(islice(batches(views(50), batch_size=24, seed=3), 12))
    ranks = [list(islice(batches(views(50), batch_size=24, seed=3, part=(r, world)), 12)) for r in range(world)]
    assert {batch.pixels.shape[0] for batch in whole} == {24, 6, 16}
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert {part.pixels.shape[1:] for part in parts} == {batch.pixels.shape[1:]}
        assert sorted(key for part in parts for key in part.keys) == sorted(batch.keys)
        assert max(len(part.keys) for part in parts) - min(len(part.keys) for part in parts) <= 1


def test_each_view_shows_every_sample_once_an_epoch_in_an_order_of_its_own():
    seen: dict[tuple[int, ...], list[str]] = {}
    for batch in islice(batches(views(48), batch_size=24, seed=0), 24):
        seen.setdefault(tuple(batch.pixels.shape[1:4]), []).extend(batch.keys)
    firsts = [keys[:48] for keys in seen.values()]
    assert all(len(set(keys)) == 48 for keys in firsts)
    assert len({tuple(keys) for keys in firsts}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_all_sizes_whatever_the_workers(workers):
    config = find("tiny").override(
        [f"data.path={PHOTOS}", "data.size=32", "views=[{size: 64}, {size: [32, 48]}]", "held_out=3", "validation=null"]
    )
    source = split_data(config).train
    assert isinstance(source, Views)
    found = list(islice(batches(source, batch_size=8, seed=1, workers=workers), 6))
    shapes = Counter(tuple(batch.pixels.shape[:4]) for batch in found)
    assert shapes == {(8, 1, 32, 32): 2, (2, 1, 64, 64): 2, (5, 1, 32, 48): 2}
    again = islice(batches(source, batch_size=8, seed=1), 6)
    assert all(torch.equal(a.pixels, b.pixels) and a.keys == b.keys for a, b in zip(found, again, strict=True))
    held = split_data(config).validation
    assert held is not None
    assert not {held.key(i) for i in range(len(held))} & {source.key(i) for i in range(len(source))}


def test_images_that_are_kept_in_memory_are_kept_once():
    images = ImagesConfig(path=PHOTOS, size=32, in_memory=99).build()
    other = images.with_view(images.config.replace({"size": 16}))
    images.load(0, torch.Generator())
    assert other._decoded is images._decoded
    assert tuple(other.load(0, torch.Generator()).shape) == (1, 16, 16, 3)


def test_more_ranks_than_a_view_has_samples_are_refused():
    with pytest.raises(ConfigError, match="batches of 1"):
        next(batches(views(9, count=2), batch_size=4, seed=0, part=(0, 2)))


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("tiny", ["views=[{frames: 5}]"], "images have no frames"),
        ("tiny", ["views=[{size: 64}]", "data.size=null"], "set data.size"),
        ("tiny-video", ["views=[{size: 64}]", "data.frames=null"], "set data.size, and data.frames"),
        ("tiny-video-conditional", ["views=[{size: 64}]"], "take images or videos alone"),
    ],
)
def test_views_of_no_known_size_are_refused(name, changes, what):
    with pytest.raises((ConfigError, InputError), match=what):
        find(name).override(changes)
