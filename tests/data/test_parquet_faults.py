"""Every way a Parquet table can be wrong: files, columns, classes and cells are named in one line."""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from smalti.data import ImagesConfig, VideosConfig, evaluation
from smalti.errors import BadFile, InputError, MachineError
from tests.packing import cells, ppm, table


def good(path: Path, **columns: object) -> Path:
    return table(path, {"image": cells([ppm("1"), ppm("2"), ppm("3")]), "label": [0, 1, 1], **columns})


def refused(path: Path, kind: type = ImagesConfig, **fields: object) -> str:
    with pytest.raises(InputError) as caught:
        kind.parse({"path": path, **fields}).build()
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message.replace(f"{path.parent}/", "")


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = good(tmp_path / "a.parquet").read_bytes()
    for length in range(1, len(whole), 37):
        (tmp_path / "a.parquet").write_bytes(whole[:length])
        assert "a.parquet: 1 bad Parquet files: a.parquet: no whole Parquet file: " in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no bytes; copy it again"),
        (b"a text", "no whole Parquet file: "),
        (b"PAR1" + bytes(100) + b"PAR1", "no whole Parquet file: "),
        (b"PAR1\xff\xff\xff\x7fPAR1", "no whole Parquet file: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a git-lfs pointer, not the file"),
    ],
)
def test_what_is_no_parquet_file_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    assert message in refused(tmp_path / "a.parquet")


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    started = time.monotonic()
    assert "not a regular file but a folder, pipe, socket or device" in refused(tmp_path / "a.parquet")
    assert time.monotonic() - started < 5


THERE = "(there are: image, label); set"
COLUMNS = {
    "no column": ({}, {"column": "img"}, f"no column 'img' {THERE} `column`"),
    "no label": ({}, {"label": "class"}, f"no column 'class' {THERE} `label`"),
    "text": ({"image": ["a", "b", "c"]}, {}, "column 'image' holds string, not bytes or {bytes, path}; set `column`"),
    "paths": ({"image": [{"path": "a"}] * 3}, {}, "column 'image' holds struct<path: string>, not bytes or {bytes, p"),
    "texts": ({"image": [{"bytes": "a"}] * 3}, {}, "column 'image' holds struct<bytes: string>, not bytes or"),
    "floats": ({"label": [0.5, 1.0, 2.0]}, {}, "column 'label' holds double, not whole numbers or names; set `label`"),
    "lists": ({"label": [[1], [2], [3]]}, {}, "column 'label' holds list<"),
    "bools": ({"label": [True] * 3}, {}, "column 'label' holds bool, not whole numbers or names; set `label`"),
    "below 0": ({"label": [-2, 0, 0]}, {}, "class -2 is no class number (0 to 1,000,000); correct it"),
    "some hidden": ({"label": [0, -1, None]}, {}, "2 of 3 samples have no class, the first is a.parquet/1; give all"),
    "bad text": (
        {"label": pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff"] * 3).buffers())},
        {},
        "a.parquet: no whole Parquet file: 'utf-8' codec can't decode byte 0xff",
    ),
    "odd names": ({"a\nb\x1b[2J": [0, 0, 0]}, {"column": "x"}, r"no column 'x' (there are: image, label, a b\x1b[2J)"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_wrong_columns_are_named_with_those_that_are_there(name: str, tmp_path: Path) -> None:
    columns, fields, expected = COLUMNS[name]
    assert expected in refused(good(tmp_path / "a.parquet", **columns), **fields)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"image": cells([])})
    assert refused(path) == "a.parquet: the table has no rows"


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[" * 200_000, b'{"info": 3}', b'{"info": {"features": {"label": "ab"}}}']
)
def test_odd_metadata_give_no_names(metadata: bytes, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    made = pa.table({"image": cells([ppm("1")]), "label": [1]})
    pq.write_table(made.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    assert ImagesConfig(path=tmp_path / "a.parquet").build().classes == ("0", "1")


def test_all_faults_of_all_files_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i, names in enumerate((["x", "y"], ["y", "x"])):
        columns = {"image": cells([ppm("1")]), "label": [1]}
        table(folder / f"{i}.parquet", columns, names=names)
    table(folder / "2.parquet", {"picture": cells([ppm("1")])})
    (folder / "3.parquet").write_bytes(b"PAR1")
    message = refused(folder)
    assert "set: 3 bad Parquet files: " in message
    assert "set/1.parquet: its classes are not those of 0.parquet" in message
    assert "set/2.parquet: no column 'image' (there are: picture); set `column`" in message
    assert "set/3.parquet: no whole Parquet file" in message


def test_a_pattern_that_nothing_fits_is_refused(tmp_path: Path) -> None:
    good(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no file fits 'train-\*', as a\.parquet"):
        ImagesConfig(path=tmp_path, match="train-*").build()


def test_cells_without_an_image_are_bad_files(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"image": cells([ppm("1"), None, b"", b"no picture"])})
    faults: list[BadFile] = []
    source = ImagesConfig(path=path, size=8).build()
    assert [batch.keys[0] for batch in evaluation(source, on_bad=faults.append)] == ["a.parquet/0"]
    assert [(fault.code, fault.path) for fault in faults] == [
        ("empty", f"{path} row 1"),
        ("empty", f"{path} row 2"),
        ("format", f"{path} row 3"),
    ]
    assert faults[0].message == "the row has no bytes, only the path 1.jpg; embed the files"
    videos = table(tmp_path / "b.parquet", {"video": pa.array([b"no video", None], pa.binary())})
    for index, code in enumerate(("format", "empty")):
        with pytest.raises(BadFile, match=f"row {index}") as caught:
            VideosConfig(path=videos).build().load(index, torch.Generator())
        assert caught.value.code == code


def test_a_file_that_changed_since_it_was_listed_gives_bad_files(tmp_path: Path) -> None:
    path = good(tmp_path / "a.parquet")
    source = ImagesConfig(path=path).build()
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadFile, match=r"row 0: its row group cannot be read \(.*\); copy the file again") as caught:
        source.load(0, torch.Generator())
    assert caught.value.code == "corrupt"
    path.unlink()
    with pytest.raises(BadFile, match="no such file"):
        source.load(0, torch.Generator())


def test_flipped_bits_give_samples_or_one_line_and_nothing_else(tmp_path: Path) -> None:
    whole = good(tmp_path / "a.parquet").read_bytes()
    config = ImagesConfig(path=tmp_path / "a.parquet", size=8, max_pixels=10_000)
    written = [config.build().load(index, torch.Generator()) for index in range(3)]
    generator = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for _ in range(300):
        broken = bytearray(whole)
        broken[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        (tmp_path / "a.parquet").write_bytes(broken)
        try:
            source = config.build()
        except InputError:
            outcomes["refused"] += 1
            continue
        for index in range(min(3, len(source))):
            try:
                pixels = source.load(index, torch.Generator())
            except BadFile:
                outcomes["bad file"] += 1
            else:
                outcomes["as written" if torch.equal(pixels, written[index]) else "other pixels"] += 1
    assert outcomes["refused"] > 20, outcomes
    assert outcomes["bad file"] > 20, outcomes
    assert outcomes["as written"] > 100, outcomes


def test_without_pyarrow_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = good(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as Python does for a module that is not there
    with pytest.raises(MachineError, match=r"pip install 'smalti\[parquet\]'"):
        ImagesConfig(path=path).build()
