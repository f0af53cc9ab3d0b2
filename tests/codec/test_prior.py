"""A prior: probabilities that are bit-equal however they are computed, causal contexts, files, and fewer bits."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.codec.entropy import _encode, alphabets, decode_ids, encode_ids, split
from smalti.codec.learn_prior import _Tokens, learn_prior
from smalti.codec.prior import (
    LARGEST,
    NEIGHBOURS,
    ONE,
    Canvas,
    Prior,
    fronts,
    inputs_of,
    powers,
    shipped_prior,
)
from smalti.data import read_image
from smalti.data.bundled import photos
from smalti.errors import InputError, IntegrityError
from smalti.families import load
from smalti.tokenizer.frames import HELD_ID, images_to_ids
from smalti.tokenizer_info import TokenizerInfo
from tests.codec.test_entropy import FSQ, WORD, smooth

FINGERPRINT = "0123456789abcdef" * 4
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
LAYERS = ("context", "middle", "heads", "out")


def info(levels):
    size = math.prod(levels)
    return TokenizerInfo(fingerprint=FINGERPRINT, levels=levels, codebook_size=size, strides=(1, 8, 8))


def arbitrary(levels, seed=0, width=12, rows=6, largest=LARGEST):
    """A prior of whole numbers by a formula, up to the largest that there may be."""
    sizes = alphabets(levels)
    inputs, heads, values = len(NEIGHBOURS) * (len(sizes) + 1), rows * len(sizes), sum(sizes)
    shapes = {"context": (inputs, width), "middle": (width, width), "heads": (width, heads), "out": (rows, values)}
    shapes = {f"{name}.weight": shape for name, shape in shapes.items()} | {"known.weight": (values, heads)}
    shapes |= {f"{name}.bias": (shapes[f"{name}.weight"][1],) for name in LAYERS}
    tensors = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        at = np.arange(math.prod(shape)).reshape(shape)
        tensors[name] = (at * (7_919 + 2 * seed) + number * 104_729) * 31 % (2 * largest + 1) - largest
    return Prior(FINGERPRINT, sizes, tensors, (14, 13, 14, 14))


def coded_with(prior, ids, levels):
    """Code ids with a prior even where another model needs fewer bytes."""
    return _encode(split(ids, levels), alphabets(levels), "prior", prior)


def contexts(levels, count, seed=0):
    """Contexts of tokens in a block of drawn ids, some at its border."""
    rng, sizes = np.random.default_rng(seed), alphabets(levels)
    shape = (2, 3, -(-count // 6))
    canvas = Canvas(shape, sizes)
    at = np.arange(math.prod(shape))
    canvas.write(at[: len(at) // 2], [rng.integers(0, size, len(at) // 2) for size in sizes])
    return canvas.context(at)[:count]


def all_weights(prior, context, symbols):
    """The weights of all symbols of tokens, `n values`."""
    state, found = prior.heads(context), []
    for number in range(len(prior.sizes)):
        found.append(prior.weights(state, number))
        state = prior.learn(state, number, symbols[number])
    return np.concatenate(found, 1)


def in_integers(prior, context, symbols):
    """The same with int64 alone, whose sums have no order."""
    tensors = {name: values.astype(np.int64) for name, values in prior._tensors.items()}
    shifts = dict(zip(LAYERS, prior._shifts, strict=True))

    def sums(name, x, part=slice(None)):
        return x @ tensors[f"{name}.weight"][:, part] + tensors[f"{name}.bias"][part] * ONE

    def active(name, x):
        return np.clip(x >> shifts[name], 0, LARGEST)

    state = sums(
        "heads", active("middle", sums("middle", active("context", sums("context", context.astype(np.int64)))))
    )
    rows, start, found = state.shape[1] // len(prior.sizes), 0, []
    for number, size in enumerate(prior.sizes):
        x = active("heads", state[:, rows * number : rows * (number + 1)])
        logits = sums("out", x, slice(start, start + size)) >> shifts["out"]
        below = logits.max(1, keepdims=True) - logits
        found.append(powers()[below % ONE] >> np.minimum(below // ONE, 60))
        state = state + tensors["known.weight"][start + symbols[number]] * ONE
        start += size
    return np.concatenate(found, 1)


@pytest.mark.parametrize("levels", [FSQ, (2,) * 18, (300, 5)])
@pytest.mark.parametrize("width", [1, 12, 300])
def test_probabilities_are_those_of_integers_in_any_batch_order_and_number_of_threads(levels, width):
    prior, context = arbitrary(levels, width=width, rows=max(1, width // 2)), contexts(levels, 157)
    rng = np.random.default_rng(1)
    symbols = np.stack([rng.integers(0, size, len(context)) for size in prior.sizes])
    wanted = in_integers(prior, context, symbols)
    assert np.array_equal(all_weights(prior, context, symbols), wanted)
    for cuts in (range(1, 157), (1, 2, 7, 64, 100), (156,)):
        pieces = zip(np.split(context, cuts), np.split(symbols, cuts, 1), strict=True)
        assert np.array_equal(np.concatenate([all_weights(prior, *piece) for piece in pieces]), wanted)
    turned = all_weights(prior, np.asfortranarray(context[::-1]), symbols[:, ::-1])
    assert np.array_equal(turned[::-1], wanted)
    layer, exact = prior._context, context.astype(np.float64)
    shuffled = rng.permutation(exact.shape[1])  # of the inputs: another order of every sum
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            product = torch.from_numpy(exact[:, shuffled]) @ torch.from_numpy(layer.weight[shuffled])
            assert np.array_equal(product.numpy() + layer.bias * ONE, layer(exact))
    finally:
        torch.set_num_threads(before)


def test_the_largest_numbers_stay_exact_in_float64():
    width = 1 << 12
    most = width * LARGEST * LARGEST + LARGEST * ONE
    assert 8 * most < 2**53
    assert ONE * LARGEST * width < most


def test_powers_are_those_of_two_and_never_drift():
    exact = 2.0 ** (30 - np.arange(ONE) / ONE)
    assert np.abs(powers() - exact).max() < 16
    assert hashlib.sha256(powers().tobytes()).hexdigest()[:16] == "32eb57e6f79e6491"


@pytest.mark.parametrize("size", [2, 3, 5, 8, 256])
def test_inputs_go_from_minus_one_to_one(size):
    values = inputs_of(size)
    assert (values[0], values[-1]) == (-ONE, ONE)
    assert np.abs(values - np.linspace(-ONE, ONE, size)).max() <= 0.5


@given(shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_every_position_is_in_one_front_after_all_its_neighbours(shape):
    when = np.full(shape, -1)
    for number, at in enumerate(fronts(shape)):
        assert (when.reshape(-1)[at] == -1).all()
        when.reshape(-1)[at] = number
    assert (when >= 0).all()
    for offset in NEIGHBOURS:
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, shape, strict=True))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, shape, strict=True))
        assert (when[there] < when[here]).all()


def test_a_token_sees_what_is_written_around_it_and_nothing_else():
    shape, sizes = (3, 5, 6), alphabets(FSQ)
    for at in range(math.prod(shape)):
        canvas = Canvas(shape, sizes)
        canvas.write(np.array([at]), [np.array([size - 1]) for size in sizes])
        seen = canvas.context(np.arange(math.prod(shape))).reshape(*shape, len(NEIGHBOURS), -1)
        place = np.unravel_index(at, shape)
        for number, offset in enumerate(NEIGHBOURS):
            wanted = np.zeros(shape, bool)
            viewer = tuple(p - o for p, o in zip(place, offset, strict=True))
            if all(0 <= v < n for v, n in zip(viewer, shape, strict=True)):
                wanted[viewer] = True
            assert np.array_equal(seen[..., number, -1] == ONE, wanted)
            assert np.array_equal(seen[..., number, 0] == ONE, wanted)


@given(
    levels=st.lists(st.integers(2, 40) | st.sampled_from([256, 257, 300]), min_size=1, max_size=3),
    shape=SHAPES,
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_ids_come_back_whatever_prior_and_ids_are(levels, shape, seed):
    prior = arbitrary(tuple(levels), seed)
    ids = np.random.default_rng(seed).integers(0, math.prod(levels), shape)
    coded = coded_with(prior, ids, levels)
    assert np.array_equal(decode_ids(coded.data, shape, levels, prior), ids)
    assert coded.bits <= 8 * len(coded.data) <= coded.bits * 1.01 + 3 * WORD


def test_the_format_does_not_drift():
    """Bytes as they were first written, with numbers up to the largest that a prior may have."""
    time, rows, columns = np.ogrid[:3, :6, :8]
    ids = (rows // 3 + columns // 4 + time) % 8 * 8_001 + (rows * columns + time) % 5
    prior = arbitrary(FSQ, largest=400)
    coded = coded_with(prior, ids, FSQ)
    assert hashlib.sha256(coded.data).hexdigest()[:16] == "3dc050a1617747a2"
    assert prior.digest == "eee99453bdcd4360"


@pytest.fixture(scope="module")
def learned():
    blocks = [smooth((2, 9, 11), FSQ, seed) for seed in range(40)]
    return learn_prior(blocks, info(FSQ), steps=120)


def test_a_prior_that_was_trained_needs_fewer_bits_than_counts_and_no_id_more_than_it_says(learned):
    ids = smooth((2, 9, 11), FSQ, seed=0)
    coded, adaptive = encode_ids(ids, FSQ, "prior", learned.prior), encode_ids(ids, FSQ, "adaptive")
    assert coded.model == "prior"
    assert coded.bits < 0.9 * adaptive.bits
    assert coded.bits / ids.size == pytest.approx(learned.loss, rel=0.15)
    assert np.array_equal(decode_ids(coded.data, ids.shape, FSQ, learned.prior), ids)


def test_whole_numbers_cost_a_thousandth_of_the_bits(learned):
    """The prior in int16 against twice as coarse ones: what rounding costs is a part of what that changes."""
    prior, blocks = learned.prior, [smooth((2, 9, 11), FSQ, seed) for seed in range(8)]
    coarse = {name: np.rint(values / 4).astype(np.int64) for name, values in prior._tensors.items()}
    coarser = Prior(prior.tokenizer, prior.sizes, coarse, [shift - 2 for shift in prior._shifts])
    bits, others = (sum(coded_with(p, ids, FSQ).bits for ids in blocks) for p in (prior, coarser))
    assert abs(others - bits) < 0.002 * bits


def test_equal_seeds_make_equal_priors_and_others_do_not():
    blocks = [smooth((1, 5, 7), (8, 5), seed) for seed in range(4)]
    first, again, other = (learn_prior(blocks, info((8, 5)), steps=5, seed=seed).prior for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest


def test_of_held_tokens_nothing_is_known_and_nothing_learnt():
    """What is trained on is what the coder asks for: each coded token, given those around it that are coded."""
    rng, levels, inputs, symbols = np.random.default_rng(0), (8, 5), [], []
    blocks = [rng.integers(0, 40, (3, 5, 7)) for _ in range(3)]
    for number, ids in enumerate(blocks):
        ids[rng.random(ids.shape) < (0.0, 0.4, 1.0)[number]] = HELD_ID
        canvas, coded = Canvas(ids.shape, levels), np.flatnonzero(ids != HELD_ID)
        values = split(np.where(ids == HELD_ID, 0, ids), levels).reshape(2, -1)[:, coded]
        canvas.write(coded, values)
        if coded.size:
            inputs.append(canvas.context(coded))
            symbols.append(values.T)
    tokens = _Tokens(blocks, levels)
    assert len(tokens) == sum(map(len, symbols))
    around, own = tokens.batch(np.arange(len(tokens)))
    assert np.array_equal((around * ONE).numpy(), np.concatenate(inputs))
    assert np.array_equal(own.numpy(), np.concatenate(symbols))
    assert learn_prior(blocks, info(levels), steps=2).tokens == len(tokens)


def test_no_ids_and_ids_out_of_range_are_refused():
    for blocks in ([], [np.full((1, 2, 2), HELD_ID)]):
        with pytest.raises(InputError, match="no ids"):
            learn_prior(blocks, info(FSQ))
    with pytest.raises(ValueError, match="id -2 is outside"):
        learn_prior([np.array([[[HELD_ID, -2, 3]]])], info(FSQ))
    with pytest.raises(ValueError, match="id 64000 is outside"):
        learn_prior([np.full((1, 2, 2), 64_000)], info(FSQ))


def test_a_prior_that_was_saved_is_the_same(learned, tmp_path):
    learned.prior.save(tmp_path / "prior.safetensors")
    again = Prior.load(tmp_path / "prior.safetensors")
    assert (again.digest, again.sizes, again.tokenizer) == (learned.prior.digest, alphabets(FSQ), FINGERPRINT)
    assert again.parameters == learned.prior.parameters


def test_a_file_that_is_no_prior_or_damaged_is_refused_in_one_line(tmp_path):
    arbitrary(FSQ).save(path := tmp_path / "prior.safetensors")
    data, mine = path.read_bytes(), arbitrary(FSQ).digest
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 1_200, 60):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(rng.integers(0, 8))]) + data[place + 1 :])
        refusal = ""
        try:
            assert Prior.load(path).digest != mine  # another prior, which no file names
        except IntegrityError as error:
            refusal = str(error)
        assert not refusal or (str(path) in refusal and "\n" not in refusal)
    path.write_bytes(data[:-7])
    with pytest.raises(IntegrityError):
        Prior.load(path)
    with pytest.raises(InputError):
        Prior.load(tmp_path / "none.safetensors")
    with pytest.raises(IntegrityError, match="not a prior"):
        Prior.load(photos("heldout").parents[2] / "../weights/tiny-image/model.safetensors")


def test_a_block_is_refused_without_its_prior_and_with_one_of_other_alphabets(learned):
    ids = smooth((1, 5, 7), FSQ)
    data = encode_ids(ids, FSQ, "prior", learned.prior).data
    for other in (None, arbitrary((8, 5))):
        with pytest.raises(ValueError, match="which is not given"):
            decode_ids(data, ids.shape, FSQ, other)


def test_the_shipped_priors_save_what_they_should():
    """On photographs that neither the tokenizer nor the prior was trained on: a sixth less than 15.97 bits."""
    tokenizer = load("smalti/tiny-image")
    prior = shipped_prior(tokenizer.fingerprint)
    assert prior is not None
    assert shipped_prior(load("smalti/tiny-video").fingerprint) is not None
    assert shipped_prior("0" * 64) is None
    ids = images_to_ids(tokenizer, read_image(photos("heldout") / "owl.jpg")[None])[0].numpy()[:, :32, :32]
    bits, counts = (encode_ids(ids, tokenizer.levels, model, prior).bits for model in ("prior", "adaptive"))
    assert bits < 13.6 * ids.size
    assert bits < 0.92 * counts
