"""Token frames that are held: the frame before them is shown for as long, exactly where that costs less."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.codec import codec, search
from smalti.codec.block import block_to_bytes, bytes_to_block
from smalti.codec.codec import Goal, compress_file, read_frames, stream_frames
from smalti.codec.format import Head, Reader
from smalti.codec.search import Search, _windows
from smalti.data import write_video
from smalti.errors import ConfigError, IntegrityError
from smalti.nn.causal import Stream
from smalti.tokenizer.frames import HELD_ID, ids_to_frames
from smalti.video import to_uint8, to_video
from tests.cli.conftest import FPS
from tests.codec.test_format import HOLDING
from tests.codec.test_search import KINDS, clip, prior_of
from tests.randomise import random_tokenizer

CONDITIONAL = ["conditional", "quarters"]


def held_in(ids):
    """Which token frames of ids `1 t h w` are held."""
    return (ids[0] == HELD_ID).flatten(1).all(1)


def still_then_moving(seed=0):
    """Frames uint8 `t h w 3`: four groups of two that stand still, two that move, three that stand still."""
    moving = clip(5, 16, 24, seed)
    return torch.cat([moving[:1].expand(9, -1, -1, -1), moving[1:], moving[-1:].expand(6, -1, -1, -1)])


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.lists(st.booleans(), min_size=1, max_size=20),
    is_start=st.booleans(),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 9),
)
def test_a_block_with_held_token_frames_is_read_as_it_was_written(pattern, is_start, size, seed):
    pattern[0] &= not is_start
    ids = np.random.default_rng(seed).integers(0, 40, (len(pattern), *size))
    ids[pattern] = HELD_ID
    data, bits, held = block_to_bytes(ids, HOLDING.levels, "adaptive", None, holds=True)
    assert held == sum(pattern)
    assert len(data) >= -(-len(pattern) // 8)
    assert 8 * len(data) < bits + 8 + 128  # a flag a token frame, and what a block of ids costs
    assert np.array_equal(bytes_to_block(data, ids.shape, HOLDING, None, starts=is_start).numpy(), ids)
    if pattern[0]:  # a video has no frame before its first
        with pytest.raises(ValueError, match="it is not a block with held token frames"):
            bytes_to_block(data, ids.shape, HOLDING, None, starts=True)
    spare = -len(pattern) % 8
    flags = -(-len(pattern) // 8)
    wrong = [data[: flags - 1], data + b"\0"]
    if spare:
        wrong.append(data[: flags - 1] + bytes([data[flags - 1] | 128]) + data[flags:])
    if is_start:
        wrong.append(bytes([data[0] ^ 1]) + data[1:])
    for other in wrong:
        with pytest.raises(ValueError, match="it "):
            bytes_to_block(other, ids.shape, HOLDING, None, starts=is_start)


@pytest.mark.parametrize("kind", CONDITIONAL)
@pytest.mark.parametrize("seed", range(4))
def test_held_token_frames_repeat_the_last_frame_and_change_none_after_them(kind, seed):
    tokenizer, rng = random_tokenizer(KINDS[kind]), np.random.default_rng(seed)
    count = 9
    ids = torch.from_numpy(rng.integers(0, 60, (1, count, 2, 3)))
    held = torch.from_numpy(rng.random(count) < 0.5)
    held[0] = False
    with torch.inference_mode():
        plain = to_uint8(tokenizer.decode(ids[:, ~held]))[0]
    wanted, taken = [plain[0]], 1
    for is_held in held[1:]:
        if not is_held:
            wanted.extend(plain[taken : taken + 2])
            taken += 2
        else:
            wanted.extend([wanted[-1]] * 2)
    ids[:, held] = HELD_ID
    frames = 2 * count - 2  # of the last group one
    cut = int(rng.integers(1, count))
    for pieces in ([(frames, ids)], [(2 * cut - 1, ids[:, :cut]), (frames - 2 * cut + 1, ids[:, cut:])]):
        made = torch.stack(list(ids_to_frames(tokenizer, iter(pieces), tuple(plain.shape[1:3]))))
        assert torch.equal(made, torch.stack(wanted[:frames]))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 40), stride=st.integers(1, 5), ahead=st.integers(0, 9))
def test_windows_are_the_groups_of_a_video_and_those_that_follow(count, stride, ahead):
    frames = torch.arange(count)
    groups = [frames[:1], *frames[1:].split(stride)] if count > 1 else [frames] * count
    found = list(_windows(iter(frames), stride, ahead))
    assert len(found) == len(groups)
    for number, window in enumerate(found):
        wanted = groups[number : number + ahead + 1]
        assert [one.tolist() for one in window] == [one.tolist() for one in wanted]


@pytest.mark.parametrize("kind", CONDITIONAL)
@pytest.mark.parametrize("price", [0.0, 100.0, 1e5])
def test_a_token_frame_is_held_where_the_costs_of_it_and_the_groups_ahead_are_lower(kind, price, monkeypatch):
    tokenizer, images, found = random_tokenizer(KINDS[kind]), still_then_moving(), []
    plain = Search._searched

    def noted(self, *args, **options):
        found.append(plain(self, *args, **options))
        return found[-1]

    monkeypatch.setattr(Search, "_searched", noted)
    monkeypatch.setattr(search, "AHEAD", 3)
    results = list(Search(tokenizer, prior_of(tokenizer), price).video(iter(images)))
    ids = torch.cat([one.ids for one in results], 1)
    shown = torch.stack(list(ids_to_frames(tokenizer, [(len(images), ids)], (16, 24))))
    told = torch.tensor([value for one in results for value in one.psnr])
    wrong = (shown.double() - images.double()).square().flatten(1).mean(1)
    assert torch.allclose(10 * torch.log10(255**2 / wrong), told.double(), atol=1e-4)

    stream, groups = Stream(), [images[:1], *images[1:].split(2)]
    targets = [to_video(group)[0].double() for group in groups]
    past = None
    assert len(results) == len(found) == len(groups)
    for number, (one, (coded, bits)) in enumerate(zip(results, found, strict=True)):
        with torch.inference_mode():
            tried = stream.fork()
            made = tokenizer.decode(coded, tried)[0].clamp(-1, 1).double()
        if past is not None:
            ahead = targets[number + 1 : number + 1 + 3]
            of_holding = sum(float((past - one).square().sum()) for one in [targets[number], *ahead])
            of_coding = float((made - targets[number]).square().sum())
            of_coding += sum(float((made[:, -1:] - one).square().sum()) for one in ahead)
            unit = 127.5**2 / 3
            assert bool(held_in(one.ids).all()) == (of_holding * unit < of_coding * unit + price * bits)
        if not held_in(one.ids).all():
            assert torch.equal(one.ids, coded)
            stream, past = tried, made[:, -1:]
    held = held_in(ids)
    assert not held[0]
    if price == 1e5:
        assert held[1:].all()
    if price == 100.0:
        assert held.any()
        assert not held[1:].all()


def test_a_tokenizer_with_another_past_than_a_frame_holds_nothing():
    tokenizer = random_tokenizer(KINDS["video"])
    found = Search(tokenizer, prior_of(tokenizer), 1e5).video(still_then_moving())
    assert not any(held_in(one.ids).any() for one in found)


@pytest.mark.parametrize(("kind", "group"), [("conditional", None), ("conditional", 7), ("quarters", None)])
def test_a_file_with_held_token_frames_is_read_whole_in_parts_and_from_a_pipe(kind, group, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "BLOCK_TOKENS", 6 * 4)  # four token frames
    tokenizer, source = random_tokenizer(KINDS[kind]), tmp_path / "film.mp4"
    images, prior = still_then_moving(), prior_of(tokenizer)
    write_video(source, list(images), FPS)
    done = compress_file(tokenizer, source, tmp_path / "a.smt", prior=prior, group=group, goal=Goal(price=2e4))
    assert 0 < done.held < done.tokens // 24
    whole = torch.stack(list(read_frames(tokenizer, done.path, prior=prior)))
    assert len(whole) == len(images)
    with done.path.open("rb") as file:
        assert torch.equal(torch.stack(list(stream_frames(tokenizer, file, "pipe", prior))), whole)
    for first, end in ((0, 1), (4, 11), (12, 19)):
        part = torch.stack(list(read_frames(tokenizer, done.path, first, end, prior=prior)))
        assert torch.equal(part, whole[first:end])
    repeats = int((whole[1:] == whole[:-1]).flatten(1).all(1).sum())
    assert repeats >= 2 * done.held - 1
    with done.path.open("rb") as file:
        assert Reader(file, "a.smt").head.format == 3
    plain = compress_file(tokenizer, source, tmp_path / "b.smt", prior=prior, group=group)
    assert (plain.held, Reader(io.BytesIO(plain.path.read_bytes()), "b").head.format) == (0, 2)


def test_a_block_that_begins_a_video_with_a_held_frame_is_refused(tmp_path, monkeypatch):
    tokenizer, source = random_tokenizer(KINDS["conditional"]), tmp_path / "film.mp4"
    write_video(source, list(still_then_moving()[:5]), FPS)
    prior, plain = prior_of(tokenizer), codec.block_to_bytes

    def lying(*args, **options):
        return bytes([1]) + plain(*args, **options)[0][1:], 0.0, 0

    monkeypatch.setattr(codec, "block_to_bytes", lying)
    done = compress_file(tokenizer, source, tmp_path / "a.smt", prior=prior, goal=Goal(price=0.0))
    with pytest.raises(IntegrityError, match=r"a\.smt: the block of frame 0 cannot be decoded"):
        list(read_frames(tokenizer, done.path, prior=prior))


@pytest.mark.parametrize("change", [{"prior": None}, {"kind": "picture", "rate": None, "block": 1}])
def test_a_head_that_holds_is_of_a_video_with_a_prior(change):
    with pytest.raises(ConfigError, match="holds is for videos that are coded with a prior"):
        Head.parse(HOLDING.plain() | change)
