"""The file: blocks by the seek table are those of the stream, and no changed byte is ever read."""

import hashlib
import io
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.codec.format import MAGIC, SMT_FORMAT, Head, Reader, Writer, pack_head, unpack_head
from smalti.errors import ConfigError, IntegrityError

NAME = "film.smt"
HEAD = Head(
    kind="video",
    tokenizer="0123456789abcdef" * 4,
    levels=(8, 5),
    strides=(2, 8, 8),
    height=20,
    width=30,
    rate=(24000, 1001),
    block=3,
    group=0,
    smalti="0.1.0",
)
COMPACT = HEAD.replace({"tokenizer": "0123456789abcdef" * 2, "prior": "fedcba9876543210"})
"""A head of format 2."""
HOLDING = COMPACT.replace({"holds": True})
"""A head of format 3."""
IMAGES = [h.replace({"kind": "picture", "rate": None, "block": 1}) for h in (HEAD, COMPACT)]


def frames_of(head, count):
    """How many frames each block of a video of `count` frames has."""
    start, spans = 0, []
    while start < count:
        spans.append(min(head.room(start), count - start))
        start += spans[-1]
    return spans


def written(head, count, seed=0):
    rng, file = random.Random(seed), io.BytesIO()
    writer = Writer(file, head)
    for frames in frames_of(head, count):
        writer.add(frames, rng.randbytes(rng.randint(0, 40)))
    writer.close()
    assert writer.frames == count
    assert writer.bytes == len(file.getvalue())
    return file.getvalue()


def streamed(data):
    return list(Reader(io.BytesIO(data), NAME).blocks())


def sought(data):
    reader = Reader(io.BytesIO(data), NAME)
    return [reader.block(entry) for entry in reader.table()]


@given(
    count=st.integers(1, 60),
    group=st.integers(0, 12),
    block=st.integers(1, 5),
    stride=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_blocks_by_the_table_are_those_of_the_stream_and_cover_all_latents(count, group, block, stride):
    head = HEAD.replace({"group": group, "block": block, "strides": (stride, 8, 8)})
    data = written(head, count)
    blocks = streamed(data)
    assert blocks == sought(data)
    assert [b.frames for b in blocks] == frames_of(head, count)
    assert [b.start for b in blocks] == [sum(b.frames for b in blocks[:i]) for i in range(len(blocks))]
    lengths = [min(group, count - first) for first in range(0, count, group)] if group else [count]
    latents = sum(head.latents(b.start, b.frames) for b in blocks)
    assert latents == sum(1 + -(-(length - 1) // stride) for length in lengths)
    assert all(1 <= head.latents(b.start, b.frames) <= block for b in blocks)


def test_the_stream_is_read_without_seeking_and_before_it_ends():
    class Pipe(io.BytesIO):
        def seek(self, *_):
            raise OSError("a pipe")

    data = written(HEAD, 40)
    assert list(Reader(Pipe(data), NAME).blocks()) == streamed(data)
    half = data[: len(data) // 2]
    blocks = Reader(Pipe(half), NAME).blocks()
    assert next(blocks) == streamed(data)[0]
    with pytest.raises(IntegrityError, match=r"film\.smt: it is cut"):
        list(blocks)


def refused(data, reader):
    """Whether it is refused in one line that names the file."""
    try:
        reader(data)
    except IntegrityError as error:
        return NAME in str(error) and "\n" not in str(error)
    return False


@pytest.mark.parametrize(("head", "count"), [(HEAD, 18), (COMPACT, 6), (HOLDING, 6), *((head, 1) for head in IMAGES)])
@pytest.mark.parametrize("reader", [streamed, sought])
def test_every_flipped_bit_and_every_cut_of_a_small_file_is_refused(reader, head, count):
    data = written(head, count)
    assert streamed(data) == sought(data)
    for i in range(len(data)):
        for bit in range(8) if reader is streamed else (i % 8,):
            changed = bytearray(data)
            changed[i] ^= 1 << bit
            assert refused(bytes(changed), reader), (i, bit)
        assert refused(data[:i], reader), i
    assert refused(data + b"\0", reader)


@pytest.mark.parametrize("reader", [streamed, sought])
def test_blocks_that_change_places_or_come_from_another_file_are_refused(reader):
    data, other = written(HEAD, 40, seed=1), written(HEAD, 40, seed=2)
    entries = Reader(io.BytesIO(data), NAME).table()
    spans = [(e.offset, e.offset + 9 + e.length + 8) for e in entries]
    for i, (a, b) in enumerate(spans):
        for c, d in spans[i + 1 :]:
            assert refused(data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:], reader)
        assert refused(data[:a] + data[b:], reader)  # left out
        assert refused(data[:b] + data[a:b] + data[b:], reader)  # twice
    theirs = Reader(io.BytesIO(other), NAME).table()
    for (a, b), entry in zip(spans, theirs, strict=True):
        assert refused(data[:a] + other[entry.offset : entry.offset + 17 + entry.length] + data[b:], reader)


def test_a_stream_gives_no_block_after_one_that_is_not_in_its_place():
    data, other = written(HEAD, 40, seed=1), written(HEAD, 40, seed=2)
    mine, theirs = (Reader(io.BytesIO(d), NAME).table()[2] for d in (data, other))
    foreign = other[theirs.offset : theirs.offset + 17 + theirs.length]
    blocks = Reader(io.BytesIO(data[: mine.offset] + foreign + data[mine.offset :]), NAME).blocks()
    assert [next(blocks), next(blocks)] == streamed(data)[:2]
    with pytest.raises(IntegrityError, match="block 2 has changed"):
        next(blocks)


def resealed(start, head_text):
    """A head with another start and text, under a true digest: what a forger or a newer smalti writes."""
    data = start + head_text
    return data + hashlib.blake2b(data, digest_size=8).digest()


def start(version=1, length=0, magic=MAGIC):
    return struct.pack("<8sHI", magic, version, length)


def test_a_newer_format_says_so():
    data = written(HEAD, 5)
    newer = data[:8] + struct.pack("<H", SMT_FORMAT + 1) + data[10:]
    with pytest.raises(
        IntegrityError, match=rf"film\.smt: format {SMT_FORMAT + 1}; .* reads formats up to {SMT_FORMAT}: update smalti"
    ):
        streamed(newer)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"[]", "head"),
        (b"{", "no JSON"),
        (b"[" * 60_000, "no JSON"),
        (b'{"kind": "video"}', "required"),
        (b"\xff", "no JSON"),
    ],
)
def test_a_head_that_smalti_does_not_write_is_refused(text, part):
    with pytest.raises(IntegrityError, match=part) as caught:
        Reader(io.BytesIO(resealed(start(length=len(text)), text)), NAME)
    assert NAME in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"levels": ()},
        {"levels": (8, 1)},
        {"levels": (2**40, 2**40)},
        {"strides": (0, 8, 8)},
        {"height": 0},
        {"height": 10**6, "width": 10**6},
        {"block": 2**40},
        {"rate": None},
        {"rate": (0, 1)},
        {"group": -1},
        {"tokenizer": "abc"},
        {"tokenizer": "0" * 48},
        {"prior": "abc"},
        {"kind": "sound"},
    ],
)
def test_a_head_that_makes_no_sense_is_refused(change):
    with pytest.raises(ConfigError):
        HEAD.replace(change)


def test_a_length_that_lies_allocates_nothing():
    data = written(HEAD, 5)
    offset = Reader(io.BytesIO(data), NAME).table()[0].offset
    lie = data[:offset] + struct.pack("<sII", b"B", 1, 2**32 - 1) + data[offset + 9 :]
    assert refused(lie, streamed)
    assert refused(data[:-12] + struct.pack("<I", 2**32 - 1) + data[-8:], sought)


@pytest.mark.parametrize("spans", [[1, 1], [6], [5, 6, 1, 2], [0], []])
def test_blocks_that_are_not_where_the_head_wants_them_are_refused(spans):
    """Under true digests: the first block of this head has 5 frames, the others 6, and only the last has fewer."""
    file = io.BytesIO()
    writer = Writer(file, HEAD)
    for frames in spans:
        writer.add(frames, b"x")
    writer.close()
    assert refused(file.getvalue(), streamed)
    assert refused(file.getvalue(), sought)


@given(
    levels=st.lists(st.integers(2, 2**40) | st.sampled_from([127, 128, 16_384]), min_size=1, max_size=1)
    | st.lists(st.integers(2, 3), min_size=1, max_size=40),
    strides=st.tuples(*[st.integers(1, 300)] * 3),
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    rate=st.none() | st.tuples(st.integers(1, 2**60), st.integers(1, 2**31)),
    aspect=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    group=st.integers(0, 10**9),
    version=st.text(max_size=9),
    holds=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_head_of_formats_2_and_3_is_what_was_packed(levels, strides, size, rate, aspect, group, version, holds):
    kind = "picture" if rate is None else "video"
    fields = {"kind": kind, "rate": rate, "pixel_aspect": aspect, "group": group, "smalti": version}
    fields |= {"levels": tuple(levels), "strides": strides, "height": size[0], "width": size[1]}
    holds = holds and kind == "video"
    head = COMPACT.replace({**fields, "block": 1, "holds": holds})
    assert unpack_head(pack_head(head), holds=holds) == head
    assert head.format == 2 + holds
    longer = head.replace({"tokenizer": "0123456789abcdef" * 4})
    assert pack_head(longer) == pack_head(head)


@given(data=st.binary(max_size=90))
@settings(max_examples=300, deadline=None)
def test_foreign_bytes_are_no_head_of_format_2(data):
    try:
        head = unpack_head(data)
    except (ValueError, IndexError, ConfigError):
        return
    assert pack_head(head) == data


def test_a_head_without_a_prior_is_of_format_1_and_the_same_bytes_as_ever():
    assert HEAD.format == 1
    digest = hashlib.sha256(written(HEAD, 18)).hexdigest()
    assert digest[:16] == "e5b174b46aa21cde"
    assert b"prior" not in written(HEAD, 18)


def test_an_image_of_format_2_has_a_third_of_the_overhead():
    long, short = (len(written(head.replace({"levels": (8, 8, 8, 5, 5, 5)}), 1)) for head in IMAGES)
    assert short < 0.36 * long


@pytest.mark.parametrize("head", IMAGES)
def test_a_picture_has_one_frame(head):
    file = io.BytesIO()
    writer = Writer(file, head)
    writer.add(1, b"x")
    writer.add(1, b"x")
    writer.close()
    assert refused(file.getvalue(), streamed)
    assert refused(file.getvalue(), sought)
