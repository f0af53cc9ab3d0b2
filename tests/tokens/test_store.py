"""Token sets: what is in a row, in how many bits, and that others read it too."""

import io
import json
import math
import tarfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import smalti
from smalti.data import open_video, read_image
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.metrics import SMALTI, evaluate_pairs
from smalti.pipeline.decode import choose_rows, target_name
from smalti.tokens.config import Clip, TokenizeOptions
from smalti.tokens.plan import cut_into_shards
from smalti.tokens.reader import TokenSet, decode_row
from smalti.tokens.score import pairs_of_token_set
from smalti.tokens.shard import TokenRow, id_type, shard_bytes
from smalti.video import to_video
from tests.token_sets import digest, encoded, film, make_set, picture, save_tokenizer

SIZES = [(1, 1), (1, 37), (5, 3), (16, 16), (23, 40), (40, 23)]


@dataclass
class Made:
    path: Path
    data: Path
    tokenizer: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures of many sizes and three videos, in class folders, with captions; six shards."""
    work = tmp_path_factory.mktemp("set")
    for i, (height, width) in enumerate(SIZES):
        path = work / "data" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(height, width, i), "PNG"))
    (work / "data" / "cat" / "1.txt").write_text("a cat, café\n", encoding="utf-8")
    for count in (1, 2, 9):
        film(work / "data" / "dog" / f"film-{count}.mp4", count, 18, 26, fps=24000 / 1001)
    tokenizer = save_tokenizer(work / "tokenizer")
    make_set(tokenizer, work / "data", work / "tokens", options=TokenizeOptions(shard_files=2))
    return Made(work / "tokens", work / "data", tokenizer)


def test_the_ids_of_a_row_are_those_that_encode_gives(made):
    tokenizer, tokens = smalti.load(made.tokenizer), TokenSet(made.path)
    with torch.inference_mode():
        for row in tokens:
            if row.fps is None:
                video = to_video(read_image(made.data / row.key))
            else:
                with open_video(made.data / row.key) as reader:
                    video = to_video(torch.stack(list(reader.frames())))
            assert torch.equal(row.tensor()[None], tokenizer.encode(video)), row.key
            assert row.size == tuple(video.shape[2:])
    assert len(tokens) == 9


def test_any_size_and_length_comes_back_in_its_own(made, tmp_path):
    tokens = TokenSet(made.path)
    for decoded, row in zip(smalti.decode(tokens, tmp_path, device="cpu"), tokens, strict=True):
        assert (decoded.frames, decoded.height, decoded.width) == row.size
        if row.fps is None:
            assert read_image(decoded.path).shape[:2] == row.size[1:]
        else:
            with open_video(decoded.path) as reader:
                assert (len(reader), *reader.size) == row.size
                assert reader.fps == pytest.approx(row.fps, rel=1e-6)


def test_a_row_has_its_class_caption_time_stamps_and_digest(made):
    import hashlib

    tokens = TokenSet(made.path)
    cat, long = tokens.row(tokens.find("cat/1.png")), tokens.row(tokens.find("dog/film-9.mp4"))
    assert cat.caption == "a cat, café"
    assert long.caption is None
    with open_video(made.data / long.key) as reader:
        assert long.pts.tolist() == reader.pts
        assert long.time_base == str(reader.time_base)
    assert long.fps == pytest.approx(24000 / 1001)
    for row in tokens:
        assert row.source_sha256 == hashlib.sha256((made.data / row.source).read_bytes()).digest()


def test_rows_are_found_by_place_and_by_key(made):
    tokens = TokenSet(made.path)
    keys = [row.key for row in tokens]
    assert keys == sorted(keys)
    assert [tokens.find(key) for key in keys] == list(range(len(tokens)))
    with pytest.raises(InputError, match="no row has the key nothing"):
        tokens.find("nothing")
    for wrong in (-1, len(tokens)):
        with pytest.raises(IndexError):
            tokens.row(wrong)


def test_pyarrow_and_duckdb_read_the_same_as_we(made):
    import duckdb

    ours = {row.key: row for row in TokenSet(made.path)}
    table = pq.read_table(made.path / "data").to_pylist()
    assert [row["key"] for row in table] == list(ours)
    for row in table:
        assert np.array_equal(np.array(row["ids"]).reshape(row["shape"]), ours[row["key"]].ids)
    sql = f"select key, ids, size, fps from read_parquet('{made.path}/data/*.parquet') order by key"
    for key, ids, size, fps in duckdb.sql(sql).fetchall():
        assert ids == ours[key].ids.reshape(-1).tolist()
        assert (tuple(size), fps) == (ours[key].size, ours[key].fps)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32"), (2**32 + 1, "uint64")],
)
def test_ids_have_the_smallest_type_that_holds_them(codes, kind):
    assert id_type(codes) == np.dtype(kind)


def rows_of(ids: np.ndarray, length: int = 256) -> list[TokenRow]:
    parts = ids.reshape(-1, 1, 1, length)
    return [
        TokenRow(f"{i:06d}", p, (1, 1, length), *(None,) * 3, 0, *(None,) * 3, "", b"") for i, p in enumerate(parts)
    ]


@pytest.mark.parametrize("codes", [2**8, 2**12, 64_000, 2**16, 2**18, 2**24])
@pytest.mark.parametrize(("encoding", "most"), [("plain", 1.26), ("split", 1.03)])
def test_random_ids_take_little_more_than_the_logarithm_of_the_codebook(codes, encoding, most):
    ids = np.random.default_rng(0).integers(0, codes, 1 << 18)
    data = shard_bytes(rows_of(ids.astype(id_type(codes))), codes, {}, encoding)
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    column = next(group.column(i) for i in range(20) if group.column(i).path_in_schema.startswith("ids"))
    assert 8 * column.total_compressed_size / ids.size < most * math.log2(codes)


@pytest.mark.parametrize("codes", [2, 256, 2**12, 2**12 + 1, 64_000, 2**18, 2**40])
def test_columns_have_only_the_encodings_that_every_reader_knows(codes):
    """Those of Parquet 1.0 (2013): plain, run lengths of levels, dictionaries."""
    rows = rows_of(np.arange(512).astype(id_type(codes)) % min(codes, 200))
    rows = [row._replace(fps=25.0, pts=np.arange(9), time_base="1/25", caption="é", class_name="a") for row in rows]
    for group in range((table := pq.ParquetFile(io.BytesIO(shard_bytes(rows, codes, {})))).num_row_groups):
        columns = [table.metadata.row_group(group).column(i) for i in range(table.metadata.num_columns)]
        assert {kind for c in columns for kind in c.encodings} <= {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY"}
        assert {column.compression for column in columns} == {"ZSTD"}


@pytest.mark.parametrize("wrong", [64_000, 65_535])
def test_an_id_outside_the_codebook_is_never_written(wrong):
    ids = np.zeros(256, np.uint16)
    ids[7] = wrong
    with pytest.raises(ValueError, match=f"ids 0 to {wrong} are not all inside"):
        shard_bytes(rows_of(ids), 64_000, {})


def test_another_tokenizer_is_refused_by_its_fingerprint_and_other_levels_by_name(made, tmp_path):
    tokens = TokenSet(made.path)
    with pytest.raises(IntegrityError, match="its ids mean nothing to another one"):
        tokens.check(smalti.load(save_tokenizer(tmp_path / "a", seed=1)))
    other = save_tokenizer(tmp_path / "b", quantizer={"kind": "lfq", "bits": 10})
    with pytest.raises(IntegrityError, match="levels"):
        tokens.check(smalti.load(other))
    row = tokens.row(0)
    broken = row._replace(ids=np.full_like(row.ids, 64_000))
    with pytest.raises(ValueError, match="outside"):
        list(decode_row(smalti.load(made.tokenizer), broken))


def test_a_set_does_not_depend_on_where_the_data_are(made, tmp_path):
    import shutil

    shutil.copytree(made.data, tmp_path / "elsewhere")
    make_set(made.tokenizer, tmp_path / "elsewhere", tmp_path / "tokens", options=TokenizeOptions(shard_files=2))
    assert digest(tmp_path / "tokens") == digest(made.path)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9), st.integers(1, 100))
def test_shards_take_inputs_in_order_within_both_limits(sizes, files, most):
    ends = cut_into_shards(sizes, files, most)
    assert ends[-1] == len(sizes)
    starts = [0, *ends[:-1]]
    for start, end in zip(starts, ends, strict=True):
        part = sizes[start:end]
        assert part or not sizes
        assert len(part) <= files
        assert len(part) <= 1 or sum(part) <= most


@given(st.integers(1, 80), st.integers(1, 20), st.data())
def test_clips_cover_every_frame_and_share_the_overlap(count, clip, data):
    overlap = data.draw(st.integers(0, clip - 1))
    clips = TokenizeOptions(clip=clip, overlap=overlap).clips_of(count)
    assert {f for c in clips for f in range(c.start, c.start + c.frames)} == set(range(count))
    for before, after in pairwise(clips):
        assert before.start + before.frames - after.start == overlap
        assert before.frames == clip
        assert after.frames > overlap
    assert TokenizeOptions().clips_of(count) == [Clip(0, count)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.floats(0.5, 120))
def test_frames_at_a_rate_are_those_nearest_in_time(steps, fps):
    times = (np.cumsum(steps) - steps[0]) / 30
    chosen = TokenizeOptions(fps=fps).frames_of(times.tolist())
    for i, frame in enumerate(chosen):
        assert abs(times[frame] - i / fps) <= np.abs(times - i / fps).min() + 1e-9
    assert abs(len(chosen) - 1 - times[-1] * fps) <= 1


def test_clips_are_rows_of_their_own_and_equal_to_their_frames_encoded_alone(made, tmp_path):
    options = TokenizeOptions(clip=4, overlap=1, stride=2)
    make_set(made.tokenizer, film(tmp_path / "film.mp4", 21), tmp_path / "tokens", options=options)
    tokens, tokenizer = TokenSet(tmp_path / "tokens"), smalti.load(made.tokenizer)
    assert [(row.key, row.size[0]) for row in tokens] == [
        ("film.mp4#000000", 4),
        ("film.mp4#000003", 4),
        ("film.mp4#000006", 4),
        ("film.mp4#000009", 2),
    ]
    with open_video(tmp_path / "film.mp4") as reader, torch.inference_mode():
        frames = torch.stack(list(reader.frames(stride=2)))
        pts = reader.pts[::2]
    for row in tokens:
        part = slice(row.start, row.start + row.size[0])
        assert torch.equal(row.tensor()[None], tokenizer.encode(to_video(frames[part])))
        assert row.pts.tolist() == pts[part]
        assert row.fps == pytest.approx(12.5)


def test_large_pictures_go_tile_by_tile_to_the_ids_of_the_whole(made, tmp_path):
    image = picture(2000, 2100)
    image.save(tmp_path / "large.png", compress_level=0)
    make_set(made.tokenizer, tmp_path / "large.png", tmp_path / "set")
    with torch.inference_mode():
        whole = smalti.load(made.tokenizer).encode(to_video(torch.from_numpy(np.array(image))))
    tiled = TokenSet(tmp_path / "set").row(0).tensor()
    assert (whole[0] != tiled).double().mean() < 1e-3  # float32: an id on a threshold may differ


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_tars_bring_their_classes_and_captions(made, tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"part-{shard}.tar", "w") as tar:
            for i in range(3):
                key = f"{shard}{i}"
                add(tar, f"{key}.png", encoded(picture(16, 16, i), "PNG"))
                add(tar, f"{key}.cls", str(40 + i).encode())
                if i == 1:
                    add(tar, f"{key}.txt", b"a caption")
                if i == 2:
                    add(tar, f"{key}.json", json.dumps({"caption": "of json"}).encode())
    (tmp_path / "part-2.tar").write_bytes((tmp_path / "part-1.tar").read_bytes()[:2000])
    summary = make_set(made.tokenizer, tmp_path, tmp_path / "tokens")
    assert (summary.listed, summary.ok, summary.bad, summary.codes) == (7, 6, 1, {"container": 1})
    rows = list(TokenSet(tmp_path / "tokens"))
    assert [row.key for row in rows] == [f"part-{s}.tar/{s}{i}.png" for s in range(2) for i in range(3)]
    assert [row.label for row in rows] == [40, 41, 42] * 2
    assert [row.caption for row in rows[:3]] == [None, "a caption", "of json"]


def test_tables_bring_their_classes_and_captions(made, tmp_path):
    cells = [{"bytes": encoded(picture(16, 16, i), "PNG"), "path": None} for i in range(4)]
    table = pa.table({"image": cells, "label": [3, 1, 0, 2], "text": [f"number {i}" for i in range(4)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    table_path, fields = tmp_path / "a.parquet", ["inputs.caption=text"]
    smalti.tokenize(made.tokenizer, table_path, tmp_path / "tokens", set=fields, workers=0, device="cpu")
    rows = list(TokenSet(tmp_path / "tokens"))
    assert [(row.key, row.label, row.caption) for row in rows] == [
        (f"a.parquet/{i}", label, f"number {i}") for i, label in enumerate([3, 1, 0, 2])
    ]


def test_what_is_skipped_is_counted_apart(made, tmp_path):
    summary = make_set(
        made.tokenizer, made.data, tmp_path / "tokens", options=TokenizeOptions(min_side=16, min_frames=3)
    )
    assert summary.codes == {"few-frames": 2, "small": 3}
    assert (summary.ok, summary.bad, summary.skipped, summary.listed) == (4, 0, 5, 9)
    lines = [json.loads(line) for line in (tmp_path / "tokens" / "bad_files.jsonl").read_text().splitlines()]
    assert {line["status"] for line in lines} == {"skipped"}
    assert len(lines) == 5


def test_the_arrays_have_the_ids_of_the_set(made, tmp_path):
    tokens = TokenSet(made.path)
    written = smalti.decode(tokens, tmp_path / "npy", to="npy")
    metadata = json.loads((tmp_path / "npy" / "metadata.json").read_text())
    ids, offsets, shapes = (np.load(tmp_path / "npy" / f"{n}.npy", mmap_mode="r") for n in ("ids", "offsets", "shapes"))
    assert ids.dtype == id_type(64_000)
    for index, row in enumerate(tokens):
        assert np.array_equal(ids[offsets[index] : offsets[index + 1]].reshape(shapes[index]), row.ids)
    assert metadata["shape"] is None
    assert metadata["tokenizer"]["fingerprint"] == smalti.load(made.tokenizer).fingerprint
    assert [row.key for row in written] == [row.key for row in tokens]
    smalti.decode(tokens, tmp_path / "two", to="npy", rows="3:5")
    two = np.load(tmp_path / "two" / "ids.npy")
    assert np.array_equal(two, ids[offsets[3] : offsets[5]])


def test_what_a_decoder_needs_is_refused_where_ids_are_written_as_they_are(made, tmp_path):
    for name, value in (("tokenizer", made.tokenizer), ("precision", "bfloat16"), ("overwrite", True)):
        with pytest.raises(ConfigError, match=f"`{name}` does nothing"):
            smalti.decode(TokenSet(made.path), tmp_path / "npy", to="npy", **{name: value})
    assert not (tmp_path / "npy").exists()


def test_decoded_rows_are_scored_against_the_very_files_they_came_from(made, tmp_path):
    import shutil

    shutil.copytree(made.data, tmp_path / "data")
    tokenizer, tokens = smalti.load(made.tokenizer), TokenSet(made.path)
    pairs = pairs_of_token_set(tokenizer, tokens, tmp_path / "data", frames=5)
    report = evaluate_pairs(pairs, SMALTI, levels=tokens.tokenizer_info.levels)
    assert report.clips == 9
    assert report.frames == len(SIZES) + 1 + 2 + 5
    (tmp_path / "data" / "cat" / "3.png").write_bytes(encoded(picture(16, 16, 9), "PNG"))
    bad = []
    pairs = pairs_of_token_set(tokenizer, tokens, tmp_path / "data", on_bad=bad.append)
    assert evaluate_pairs(pairs, SMALTI).clips == 8
    assert [(fault.path, fault.code) for fault in bad] == [("cat/3.png", "changed")] or bad[0].code == "changed"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b.jpg", "a/b.png"),
        ("/abs/b.jpg", "abs/b.png"),
        ("../../etc/passwd", "etc/passwd.png"),
        ("..", "row.png"),
        ("a/film.mp4#000017", "a/film#000017.png"),
        ("a#b.jpg", "a#b.png"),
    ],
)
def test_no_key_leads_out_of_the_folder_of_results(key, name):
    assert target_name(key, is_video=False) == Path(name)


def test_rows_are_chosen_as_slices_numbers_and_keys(made):
    tokens = TokenSet(made.path)
    assert choose_rows(tokens, "2:4", []) == [2, 3]
    assert choose_rows(tokens, "-2:", []) == [7, 8]
    assert choose_rows(tokens, "-1", []) == [8]
    assert choose_rows(tokens, None, ["cat/1.png"]) == [0]
    for wrong in ("9", "a:b", "-10"):
        with pytest.raises(ConfigError, match="`rows`"):
            choose_rows(tokens, wrong, [])
