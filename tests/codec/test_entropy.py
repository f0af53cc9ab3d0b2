"""Ids to bytes and back under every model: exact for any levels, shape and content, and near the ideal bits."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.codec.contexts import COARSEST, Contexts, visits
from smalti.codec.entropy import (
    LARGEST_ALPHABET,
    _frequencies,
    alphabets,
    decode_ids,
    encode_ids,
    join,
    split,
)
from tests.reference.plain_contexts import PlainContexts

MODELS = ("uniform", "static", "adaptive")
FSQ = (8, 8, 8, 5, 5, 5)
WORD = 32
"""Bits of a word of the range coder: a stream ends with up to two that say little."""


def smooth(shape, levels, seed=0):
    """Ids whose digits move slowly in space and time, as those of film do."""
    rng = np.random.default_rng(seed)
    t, h, w = shape
    ids, basis = np.zeros(shape, np.int64), 1
    for level in levels:
        phase, period = rng.uniform(0, 6), rng.uniform(6, 14)
        time, rows, columns = np.ogrid[:t, :h, :w]
        wave = np.sin(time / 9 + rows / period + phase) + np.cos(columns / period)
        digit = np.floor((wave / 4 + 0.5) * level + rng.normal(0, 0.2, shape)).clip(0, level - 1)
        ids += digit.astype(np.int64) * basis
        basis *= level
    return ids


def drawn(shape, levels, seed=0):
    return np.random.default_rng(seed).integers(0, math.prod(levels), shape, dtype=np.int64)


@pytest.mark.parametrize("model", MODELS)
@given(
    levels=st.lists(st.integers(2, 40) | st.sampled_from([256, 257, 300, 65_536, 1_000_003]), min_size=1, max_size=3),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 19), st.integers(1, 19)),
    seed=st.integers(0, 99),
    kind=st.sampled_from([smooth, drawn, lambda shape, levels, seed: np.full(shape, seed % math.prod(levels))]),
)
@settings(max_examples=40, deadline=None)
def test_ids_come_back_whatever_they_are(model, levels, shape, seed, kind):
    ids = kind(shape, levels, seed)
    coded = encode_ids(ids, levels, model)
    assert np.array_equal(decode_ids(coded.data, shape, levels), ids)


@pytest.mark.parametrize("model", MODELS)
def test_lfq_of_62_bits_and_one_huge_digit_come_back(model):
    for levels in ((2,) * 62, (2**62,), (3, 2**60)):
        ids = drawn((2, 5, 7), levels)
        ids.flat[:2] = 0, math.prod(levels) - 1
        assert np.array_equal(decode_ids(encode_ids(ids, levels, model).data, ids.shape, levels), ids)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("content", [smooth, drawn])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 16), (5, 18, 32), (20, 36, 64)])
def test_bytes_are_within_one_percent_and_three_words_of_the_ideal_bits(model, content, shape):
    coded = encode_ids(content(shape, FSQ), FSQ, model)
    assert coded.bits <= 8 * len(coded.data) <= coded.bits * 1.01 + 3 * WORD


@pytest.mark.parametrize("levels", [FSQ, (2,) * 18, (16,), (257, 3)])
def test_uniform_costs_the_logarithm_of_its_alphabets(levels):
    ids = drawn((2, 18, 32), levels)
    assert encode_ids(ids, levels, "uniform").bits == pytest.approx(ids.size * math.log2(math.prod(alphabets(levels))))


@pytest.mark.parametrize("model", MODELS)
@given(seed=st.integers(0, 999), shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)))
@settings(max_examples=30, deadline=None)
def test_no_model_is_ever_larger_than_uniform(model, seed, shape):
    ids = drawn(shape, FSQ, seed)
    assert len(encode_ids(ids, FSQ, model).data) <= len(encode_ids(ids, FSQ, "uniform").data)


def test_what_is_smooth_costs_less_under_static_and_far_less_under_adaptive():
    ids = smooth((20, 18, 32), FSQ)
    uniform, static, adaptive = (encode_ids(ids, FSQ, model).bits for model in MODELS)
    assert static < 0.98 * uniform
    assert adaptive < 0.6 * uniform


def test_static_costs_the_empirical_entropy_and_a_byte_for_each_value():
    ids = smooth((20, 36, 64), FSQ)
    entropy = 0.0
    for plane, level in zip(split(ids, FSQ), FSQ, strict=True):
        share = np.bincount(plane.reshape(-1), minlength=level) / plane.size
        entropy -= plane.size * float((share[share > 0] * np.log2(share[share > 0])).sum())
    bits = encode_ids(ids, FSQ, "static").bits - 8 * sum(FSQ)
    assert entropy <= bits <= 1.001 * entropy


def test_the_adaptive_model_is_causal():
    """What a frame costs depends on it and those before: bits of a longer block start with those of a shorter one."""
    ids = smooth((6, 12, 12), FSQ)
    costs = [encode_ids(ids[: t + 1], FSQ, "adaptive").bits for t in range(6)]
    changed = ids.copy()
    changed[4:] = drawn((2, 12, 12), FSQ)
    assert [encode_ids(changed[: t + 1], FSQ, "adaptive").bits for t in range(4)] == costs[:4]


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_position_is_visited_once_after_its_neighbours(height, width):
    seen = np.zeros(height * width, bool)
    for number, visit in enumerate(visits(height, width)):
        there = visit.neighbours[visit.neighbours >= 0]
        assert seen[there].all()
        assert not seen[visit.at].any()
        assert number == 0 or there.size or min(height, width) <= COARSEST
        seen[visit.at] = True
        assert np.unique(visit.at).size == visit.at.size
    assert seen.all()


def in_all_contexts(contexts, rng, count, largest):
    """Rows of counts for symbols that come in any context, and the symbols, of which none is above `largest`."""
    places = rng.integers(0, contexts.contexts, count)
    return contexts._every[:, places], rng.integers(0, largest + 1, count)


@pytest.mark.parametrize("size", [2, 5, 8, 16, 17, 256])
def test_frequencies_are_whole_sum_to_the_precision_and_survive_float32(size):
    rng = np.random.default_rng(size)
    contexts = Contexts(size)
    for scale in (0, 1, 10**3, 10**6):
        weights = contexts.weights()[0]
        table = _frequencies(weights)
        assert np.array_equal(table, _frequencies(weights.astype(np.int64)))
        assert (table >= 0).all()
        assert (table.sum(-1) == 2**24 - size).all()
        assert np.array_equal(table.astype(np.float32).astype(np.int64), table)
        assert np.array_equal(table.cumsum(-1).astype(np.float32).astype(np.int64), table.cumsum(-1))
        contexts.learn(*in_all_contexts(contexts, rng, 3 * scale // 10**3 + 5, max(0, size // 3 - 1)))


@given(
    size=st.integers(2, 20) | st.sampled_from([64, 255, 256]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 24), st.integers(1, 24)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_weights_are_those_of_every_sum_taken_anew_in_integers(size, shape, seed):
    """And no more tables are made than there are symbols, or contexts."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, size, (shape[0], shape[1] * shape[2])) // rng.integers(1, 4)
    contexts, plain, before = Contexts(size), PlainContexts(size), None
    for plane in np.pad(blocks, ((0, 0), (0, 1))):
        for visit in visits(*shape[1:]):
            rows, places = contexts.rows(plane, before, visit), plain.rows(plane, before, visit)
            weights, index = contexts.weights(rows)
            assert len(weights) <= min(visit.at.size, contexts.contexts)
            wanted = plain.weights()
            assert np.array_equal(weights if index is None else weights[index], wanted[places])
            contexts.learn(rows, plane[visit.at])
            plain.learn(places, plane[visit.at])
        before = plane
    assert np.array_equal(contexts.weights()[0], plain.weights())


def test_skewed_counts_of_the_largest_block_overflow_nothing():
    contexts, plain = Contexts(LARGEST_ALPHABET), PlainContexts(LARGEST_ALPHABET)
    place = 3 * 8 + 4
    for _ in range(64):  # 2^26 symbols
        contexts.learn(np.repeat(contexts._every[:, [place]], 2**20, 1), np.full(2**20, 5))
    contexts.learn(contexts._every[:, [12]], np.array([7]))
    plain.counts[3, 4, 5], plain.counts[1, 4, 7] = 2**26, 1
    weights = contexts.weights()[0]
    assert np.array_equal(weights, plain.weights())
    assert (weights > 0).all()
    assert (_frequencies(weights) >= 0).all()
    assert weights[place, 5] > 0.99 * weights[place].sum()


@given(level=st.integers(2, 2**40))
@settings(max_examples=200, deadline=None)
def test_large_digits_are_cut_with_little_room_left(level):
    sizes = alphabets((level,))
    assert max(sizes) <= LARGEST_ALPHABET
    assert level <= math.prod(sizes)
    assert math.log2(math.prod(sizes)) <= 1.03 * math.log2(level)


def test_ids_out_of_range_are_refused_on_both_sides():
    for wrong in (-1, 64_000):
        with pytest.raises(ValueError, match=rf"id {wrong} is outside \[0, 64000\)"):
            encode_ids(np.full((1, 2, 2), wrong), FSQ, "adaptive")
    planes = split(np.zeros((1, 1, 1), np.int64), (257,))  # 17 x 16 leaves room for 272
    planes[:] = np.array([16, 15])[:, None, None, None]
    with pytest.raises(ValueError, match=r"digit 271 is outside \[0, 257\)"):
        join(planes, (257,))


@given(data=st.binary(max_size=80), model=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_foreign_bytes_are_ids_or_a_value_error(data, model):
    try:
        ids = decode_ids(bytes([model]) + data, (2, 3, 4), (8, 5, 257))
    except ValueError:
        return
    assert ((ids >= 0) & (ids < 8 * 5 * 257)).all()


def test_the_format_does_not_drift():
    """Bytes as they were first written: a file of today is read by every later version, and by other machines."""
    time, rows, columns = np.ogrid[:3, :12, :16]
    ids = (rows // 3 + columns // 4 + time) % 8 * 8_001 + (rows * columns + time) % 5
    wanted = {"uniform": "1153 a00a50b9dd21dc3c", "static": "985 c6c95c1603d6a9f1", "adaptive": "489 21e1a6edca09eb07"}
    for model, expected in wanted.items():
        coded = encode_ids(ids, FSQ, model)
        assert coded.model == model
        assert f"{len(coded.data)} {hashlib.sha256(coded.data).hexdigest()[:16]}" == expected
