"""Tokens that are held: their pixels stay those of the frame before, exactly where that costs less."""

import io
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.codec import codec, search
from smalti.codec.block import block_to_bytes, bytes_to_block
from smalti.codec.codec import Goal, compress_file, read_frames, stream_frames
from smalti.codec.entropy import decode_ids, encode_ids, split
from smalti.codec.format import Head, Reader
from smalti.codec.learn_prior import learn_prior
from smalti.codec.prior import Canvas
from smalti.codec.search import Search, _windows
from smalti.data import write_video
from smalti.errors import BadTensor, ConfigError, IntegrityError
from smalti.nn.causal import Stream, time_first
from smalti.tokenizer.closed_loop import closed_loop, first_mode, follow
from smalti.tokenizer.conditional import past_of
from smalti.tokenizer.frames import HELD_ID, decode_next, ids_to_frames
from smalti.video import pad_to, to_uint8, to_video
from tests.cli.conftest import FPS
from tests.codec.test_format import HOLDING
from tests.codec.test_prior import info
from tests.codec.test_search import KINDS, clip, prior_of
from tests.randomise import random_tokenizer

CONDITIONAL = ["conditional", "quarters"]


def still_then_moving(seed=0):
    """Frames uint8 `t h w 3`: four groups of two that stand still, two that move, three that stand still."""
    moving = clip(5, 16, 24, seed)
    return torch.cat([moving[:1].expand(9, -1, -1, -1), moving[1:], moving[-1:].expand(6, -1, -1, -1)])


def half_still(seed=0):
    """Frames uint8 `t h w 3` whose left half moves all the time, and whose right half stands still."""
    images = clip(9, 16, 24, seed)
    images[:, :, 12:] = images[:1, :, 12:]
    return images


def token_bits(prior, ids, levels):
    """Bits of every token of ids `t h w`, given those around it that are not held."""
    canvas, known = Canvas(ids.shape, prior.sizes), np.flatnonzero(ids != HELD_ID)
    flat = split(np.where(ids == HELD_ID, 0, ids), levels).reshape(len(levels), -1)
    canvas.write(known, flat[:, known])
    every = np.arange(flat.shape[1])
    state, bits = prior.heads(canvas.context(every)), np.zeros(flat.shape[1])
    for number, plane in enumerate(flat):
        weights = prior.weights(state, number).astype(float)
        bits -= np.log2(np.maximum(weights[every, plane], 0.5) / weights.sum(1))
        state = prior.learn(state, number, plane)
    return bits.reshape(ids.shape)


LEVELS = (5, 4, 3)


def mostly(shape, seed):
    """Ids `t h w` of which most are that of the row, one in five is any."""
    rng = np.random.default_rng(seed)
    rows = 7 * np.arange(shape[1])[None, :, None] % 60 + np.zeros(shape, np.int64)
    return np.where(rng.random(shape) < 0.2, rng.integers(0, 60, shape), rows)


@cache
def learned():
    """A prior that knows what most ids are, so that a block is coded under it."""
    blocks = [mostly((4, 5, 5), seed) for seed in range(20)]
    return learn_prior(blocks, info(LEVELS), steps=150).prior


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 5)),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    is_start=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_block_with_held_tokens_is_read_as_it_was_written_and_they_cost_flags_alone(shape, share, is_start, seed):
    prior, head = learned(), HOLDING.replace({"levels": LEVELS})
    ids, held = mostly(shape, seed), np.random.default_rng(seed).random(shape) < share
    held[1::3] |= share > 0  # whole token frames
    held[0] &= not is_start
    ids[held] = HELD_ID
    data, bits, count = block_to_bytes(ids, LEVELS, "prior", prior, holds=True)
    assert count == held.sum()
    assert np.array_equal(bytes_to_block(data, shape, head, prior, starts=is_start).numpy(), ids)
    some = ~held.all((1, 2))
    coded = encode_ids(ids[some], LEVELS, "prior", prior, held[some])
    flags = encode_ids(held.astype(np.int64), (2,), "adaptive")
    if held.any():
        assert (len(data), bits) == (4 + len(flags.data) + len(coded.data), flags.bits + coded.bits)
    else:  # a block of its own accord, after a length of zero
        assert data == bytes(4) + encode_ids(ids, LEVELS, "prior", prior).data
    assert coded.model == "prior" or (~held).sum() < 9
    if coded.model == "prior" and some.any():
        assert coded.bits == pytest.approx(token_bits(prior, ids[some], LEVELS)[~held[some]].sum(), rel=1e-3, abs=1e-2)
    if coded.model == "uniform":
        assert coded.bits == pytest.approx((~held).sum() * math.log2(60))
    if held[0].any():  # a video has no frame before its first
        with pytest.raises(ValueError, match="it holds tokens of a first frame"):
            bytes_to_block(data, shape, head, prior, starts=True)
    for other in (data[:3], data + b"\0", data[:4] + data[5:], b""):
        with pytest.raises(ValueError, match="it "):
            bytes_to_block(other, shape, head, prior, starts=is_start)


@pytest.mark.parametrize("model", ["adaptive", "static", "uniform"])
def test_a_block_with_held_tokens_needs_a_model_without_counts_around_them(model):
    ids, held = np.arange(24).reshape(2, 3, 4) % 60, np.arange(24).reshape(2, 3, 4) % 5 == 0
    if model == "adaptive":
        with pytest.raises(ValueError, match="it has held tokens, and counts around them"):
            encode_ids(ids, LEVELS, model, None, held)
        plain = encode_ids(np.zeros((1, 9, 9), np.int64), LEVELS, model)
        assert plain.model == "adaptive"
        with pytest.raises(ValueError, match="it has held tokens, and counts around them"):
            decode_ids(plain.data, (1, 9, 9), LEVELS, None, np.zeros((1, 9, 9), bool))
    else:
        coded = encode_ids(ids, LEVELS, model, None, held)
        assert np.array_equal(decode_ids(coded.data, ids.shape, LEVELS, None, held)[~held], ids[~held])


@pytest.mark.parametrize("kind", CONDITIONAL)
@pytest.mark.parametrize("seed", range(4))
def test_held_tokens_leave_their_pixels_and_their_ids_are_nothing_to_the_others(kind, seed):
    tokenizer, rng = random_tokenizer(KINDS[kind]), np.random.default_rng(seed)
    count = 9
    ids = torch.from_numpy(rng.integers(0, 60, (1, count, 2, 3)))
    held = torch.from_numpy(rng.random((1, count, 2, 3)) < 0.5)
    held[:, 0], held[:, 3], held[:, 6] = False, True, False
    if kind == "quarters":
        ids[:, 6] += 60 * 2  # a quarter is coded whole
    given_ids = ids.masked_fill(held, HELD_ID)
    frames = 2 * count - 2  # of the last group one
    shown = torch.stack(list(ids_to_frames(tokenizer, [(frames, given_ids)], (8, 12))))
    assert shown.shape == (frames, 8, 12, 3)
    for number in range(1, count):
        before = shown[2 * number - 2]
        mine = held[0, number].repeat_interleave(4, 0).repeat_interleave(4, 1)
        for frame in shown[2 * number - 1 : 2 * number + 1]:
            assert torch.equal(frame[mine], before[mine])
    assert not torch.equal(shown[1], shown[0])
    assert torch.equal(shown[5:7], shown[4:5].expand(2, -1, -1, -1))
    cut = int(rng.integers(1, count))
    parts = [(2 * cut - 1, given_ids[:, :cut]), (frames - 2 * cut + 1, given_ids[:, cut:])]
    assert torch.equal(torch.stack(list(ids_to_frames(tokenizer, iter(parts), (8, 12)))), shown)
    with torch.inference_mode():  # the same by the networks alone, all groups after another with zeros as codes
        past, wanted = None, []
        for number in range(count):
            codes = time_first(tokenizer.quantizer.decode(ids[:, number : number + 1]), tokenizer.dtype)
            if past is None:
                made = tokenizer.decoder.first(codes)
            elif bool(held[0, number].any()):
                gap = held[:, number][None, :, None]
                codes[:, :, :3] = codes[:, :, :3].masked_fill(gap, 0)
                codes[:, :, 3:] = -1.0  # the first mode
                made = tokenizer.decoder.after(codes, past)
                wide = gap.repeat_interleave(4, -2).repeat_interleave(4, -1)
                made = torch.where(wide, past, made)
            else:
                made = tokenizer.decoder.after(codes, past)
            past = past_of(made)
            wanted.append(to_uint8(made.permute(1, 2, 0, 3, 4))[0])
    assert torch.equal(torch.cat(wanted)[:frames], shown)


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_all_groups_at_once_are_decoded_with_held_tokens_as_one_after_the_other(kind):
    tokenizer = random_tokenizer(KINDS[kind]).double()
    rng = torch.Generator().manual_seed(0)
    video = torch.rand(2, 3, 9, 16, 24, generator=rng, dtype=torch.float64) * 2 - 1
    video[:, :, 1:, :, 8:] = video[:, :, :1, :, 8:]
    plain = closed_loop(
        tokenizer.encoder, tokenizer.decoder, tokenizer.quantizer, time_first(video, torch.float64), check=False
    )
    for thresholds in ([-math.inf, -math.inf], [-math.inf, 400.0], [math.inf, math.inf]):
        loop = closed_loop(
            tokenizer.encoder,
            tokenizer.decoder,
            tokenizer.quantizer,
            time_first(video, torch.float64),
            check=False,
            hold_below=torch.tensor(thresholds, dtype=torch.float64),
        )
        assert loop.held.shape == (4, 2, 4, 6)
        codes = time_first(tokenizer.quantizer.decode(loop.ids), torch.float64)
        no_first = torch.zeros(1, *loop.held.shape[1:], dtype=torch.bool)
        made = tokenizer.decoder(codes, None, torch.cat([no_first, loop.held]))
        at_once = tokenizer.decoder.after_pasts(codes, loop.pasts, loop.held)
        assert torch.allclose(at_once, made, atol=1e-12)
        assert torch.allclose(loop.pasts[1:], made[2:-1:2].clamp(-1, 1), atol=1e-12)
        for number, threshold in enumerate(thresholds):
            if threshold == -math.inf:
                assert not loop.held[:, number].any()
                assert torch.equal(loop.ids[number], plain.ids[number])
            if threshold == math.inf:
                assert loop.held[:, number].all()
            if threshold == 400.0:
                assert 0 < int(loop.held[:, number].sum()) < loop.held[:, number].numel()


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


def squares(values, grid):
    """Sums of pixels' values over the squares of a grid, which reaches beyond the last of them."""
    return torch.stack(
        [
            torch.stack([values[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].sum() for x in range(grid[1])])
            for y in range(grid[0])
        ]
    )


def worths(tokenizer, prior, price, ids, before, decoding, groups):
    """By how much squared error and bits fall with each token, in the best of the spans; `groups` from this one on."""
    wanted = [to_video(group)[0].double() for group in groups]
    frames, height, width = wanted[0].shape[1:]
    past = decoding.get(tokenizer.decoder)[:, 0].double().clamp(-1, 1)[..., :height, :width].transpose(0, 1)
    with torch.inference_mode():
        made = decode_next(tokenizer, ids, decoding.fork())[0].double().clamp(-1, 1)[:, :frames, :height, :width]
    falls = []
    for number, group in enumerate(wanted):
        shown = made if number == 0 else made[:, -1:]
        without = (past - group).square() - (shown - group).square()
        falls.append(squares(without.sum((0, 1)) * 127.5**2 / 3, ids.shape[2:]) + (falls[-1] if falls else 0))
    history = torch.cat([*before, ids], 1)[0].numpy()
    bits = torch.from_numpy(token_bits(prior, history, tokenizer.levels)[-1] * (history[-1] != HELD_ID))
    return torch.stack(falls).amax(0) - price * bits, float((falls[0] - price * bits).sum())


def fragile(kind):
    """A tokenizer that makes much of the codes around a token, so that it cannot do without them."""
    tokenizer = random_tokenizer(KINDS[kind])
    with torch.no_grad():
        weight = tokenizer.decoder.from_codes.now.weight
        centre = weight[:, :, 1, 1].clone()
        weight *= 30
        weight[:, :, 1, 1] = centre
    return tokenizer


@pytest.mark.parametrize("make", [lambda kind: random_tokenizer(KINDS[kind]), fragile], ids=["any", "fragile"])
@pytest.mark.parametrize("film", [still_then_moving, half_still])
@pytest.mark.parametrize("kind", CONDITIONAL)
@pytest.mark.parametrize("price", [1e-3, 100.0, 3000.0, 1e5])
def test_those_tokens_are_held_that_are_worth_less_than_their_bits(kind, price, film, make, monkeypatch):
    tokenizer, images, found = make(kind), film(), []
    prior, plain = prior_of(tokenizer), Search._searched

    def noted(self, target, ids, before, *args):
        found.append((ids.clone(), plain(self, target, ids, before, *args), before))
        return found[-1][1]

    visit = search._Frame.visit

    def seen(self, at):
        assert self.is_coded[at].all()  # what is not known of a held token stays unknown
        visit(self, at)

    monkeypatch.setattr(Search, "_searched", noted)
    monkeypatch.setattr(search._Frame, "visit", seen)
    monkeypatch.setattr(search, "AHEAD", 3)
    results = list(Search(tokenizer, prior, price).video(iter(images)))
    ids = torch.cat([one.ids for one in results], 1)
    shown = torch.stack(list(ids_to_frames(tokenizer, [(len(images), ids)], (16, 24))))
    told = torch.tensor([value for one in results for value in one.psnr])
    wrong = (shown.double() - images.double()).square().flatten(1).mean(1)
    assert torch.allclose(10 * torch.log10(255**2 / wrong), told.double(), atol=1e-4)

    encoding, decoding, before, kinds = Stream(), Stream(), [], set()
    groups = [images[:1], *images[1:].split(2)]
    calls = iter(found)
    for number, (one, group) in enumerate(zip(results, groups, strict=True)):
        with torch.inference_mode():
            own = tokenizer.encode(pad_to(to_video(group), (1 if number == 0 else 2, 16, 24)), encoding)
        start = own
        if number:
            options, candidates = {"hold": (0.0, torch.full_like(own, HELD_ID))}, [own]
            if kind == "quarters" and int(own[0, 0, 0, 0]) >= 60:
                past = decoding.get(tokenizer.decoder)
                video = time_first(pad_to(to_video(group), (2, 16, 24)), tokenizer.dtype)
                with torch.inference_mode():
                    candidates.append(first_mode(tokenizer.encoder, tokenizer.quantizer, video, past))
            ahead = groups[number : number + 4]
            for place, candidate in enumerate(candidates):
                worth, whole = worths(tokenizer, prior, price, candidate, before, decoding, ahead)
                options[f"all {place}"] = (float(worth.sum()), candidate)
            some, now = candidates[-1].clone(), whole
            for _ in range(4):
                some[(worth < 0)[None, None]] = HELD_ID
                worth, now = worths(tokenizer, prior, price, some, before, decoding, ahead)
                assert not worth[some[0, 0] == HELD_ID].any()
            if now > whole:
                del options[f"all {place}"]
                options["some"] = (float(worth.sum()), some)
            name = max(options, key=lambda option: options[option][0])
            kinds.add(name)
            start = options[name][1]
        held = start == HELD_ID
        assert torch.equal(one.ids == HELD_ID, held)
        if not held.all():
            tried, searched, known = next(calls)
            assert len(known) == len(before)
            assert all(map(torch.equal, known, before))
            assert torch.equal(tried, start)
            assert torch.equal(one.ids, searched)
            assert torch.equal(searched == HELD_ID, held)
            if number and "some" in name:
                after, at_first = (
                    -worths(tokenizer, prior, price, x, before, decoding, [group])[1] for x in (searched, start)
                )
                assert after <= at_first + 1e-6 * abs(at_first) + 1
            before = [*before, searched][-2:]
        with torch.inference_mode():
            decode_next(tokenizer, one.ids, decoding)
        follow(tokenizer.encoder, encoding, tokenizer.decoder, decoding)
    assert next(calls, None) is None
    if price == 1e5:
        assert kinds == {"hold"}
    if (price, film, kind) == (100.0, half_still, "conditional"):
        assert "some" in kinds
        assert ("all 0" in kinds) == (make is fragile)


def test_a_tokenizer_with_another_past_than_a_frame_holds_nothing():
    tokenizer = random_tokenizer(KINDS["video"])
    found = Search(tokenizer, prior_of(tokenizer), 1e5).video(still_then_moving())
    assert not any((one.ids == HELD_ID).any() for one in found)


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_where_bits_cost_nothing_no_token_is_held(kind, tmp_path):
    tokenizer, source = random_tokenizer(KINDS[kind]), tmp_path / "film.mp4"
    write_video(source, list(half_still()), FPS)
    prior = prior_of(tokenizer)
    done = compress_file(tokenizer, source, tmp_path / "a.smt", prior=prior, goal=Goal(price=0.0))
    with done.path.open("rb") as file:
        assert (done.held, Reader(file, "a.smt").head.format) == (0, 2)
    some = compress_file(tokenizer, source, tmp_path / "b.smt", prior=prior, goal=Goal(price=1e5))
    assert some.held > 0


@pytest.mark.parametrize(("kind", "group"), [("conditional", None), ("conditional", 7), ("quarters", None)])
def test_a_file_with_held_tokens_is_read_whole_in_parts_and_from_a_pipe(kind, group, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "BLOCK_TOKENS", 6 * 4)  # four token frames
    tokenizer, source = random_tokenizer(KINDS[kind]), tmp_path / "film.mp4"
    images, prior = still_then_moving(), prior_of(tokenizer)
    write_video(source, list(images), FPS)
    done = compress_file(tokenizer, source, tmp_path / "a.smt", prior=prior, group=group, goal=Goal(price=2e4))
    assert 0 < done.held < done.tokens
    whole = torch.stack(list(read_frames(tokenizer, done.path, prior=prior)))
    assert len(whole) == len(images)
    with done.path.open("rb") as file:
        assert torch.equal(torch.stack(list(stream_frames(tokenizer, file, "pipe", prior))), whole)
    for first, end in ((0, 1), (4, 11), (12, 19)):
        part = torch.stack(list(read_frames(tokenizer, done.path, first, end, prior=prior)))
        assert torch.equal(part, whole[first:end])
    same = (whole[1:] == whole[:-1]).all(3).unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).all(4).all(2)
    assert int(same.sum()) >= 2 * done.held - same[0].numel()
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
    done = compress_file(tokenizer, source, tmp_path / "a.smt", prior=prior, goal=Goal(price=1e-3))
    with pytest.raises(IntegrityError, match=r"a\.smt: the block of frame 0 cannot be decoded"):
        list(read_frames(tokenizer, done.path, prior=prior))


@pytest.mark.parametrize("change", [{"prior": None}, {"kind": "picture", "rate": None, "block": 1}])
def test_a_head_that_holds_is_of_a_video_with_a_prior(change):
    with pytest.raises(ConfigError, match="holds is for videos that are coded with a prior"):
        Head.parse(HOLDING.plain() | change)


def test_ids_that_are_no_conditional_tokens_cannot_be_held():
    tokenizer = random_tokenizer(KINDS["video"])
    ids = torch.tensor([[[[1, 2]], [[HELD_ID, 3]]]])
    with pytest.raises(BadTensor, match=r"ids: -1 is outside \[0, 60\)"):
        list(ids_to_frames(tokenizer, [(3, ids)], (8, 16)))
