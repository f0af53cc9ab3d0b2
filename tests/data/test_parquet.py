"""Parquet tables, as the hub has them: rows are samples, classes have their names, row groups are read when asked."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data import ImagesConfig, VideosConfig, bundled
from smalti.data.parquet import ParquetStore
from tests import programs
from tests.packing import cells, ppm, table


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(path: Path, **fields: object) -> ImagesConfig:
    return ImagesConfig.parse({"path": path, "size": None, "flip": False, **fields})


def image_files(count: int, name: str = "") -> list[bytes]:
    return [ppm(f"{name}{i}") for i in range(count)]


def test_rows_of_the_hubs_layout_are_the_images_with_their_classes(tmp_path: Path) -> None:
    columns = {"image": cells(image_files(5)), "label": [2, 0, 1, 1, 2], "more": list("abcde")}
    path = table(tmp_path / "train-00000-of-00001.parquet", columns, names=["ant", "bee", "cat", "dog"])
    source = config(path).build()
    assert [source.key(i) for i in range(len(source))] == [f"{path.name}/{i}" for i in range(5)]
    assert [source.label(i) for i in range(5)] == [2, 0, 1, 1, 2]
    assert source.classes == ("ant", "bee", "cat", "dog")
    for index in (4, 0, 3, 1, 2):
        (tmp_path / "one.ppm").write_bytes(ppm(str(index)))
        alone = ImagesConfig(path=tmp_path / "one.ppm", size=None, flip=False).build()
        assert torch.equal(source.load(index, rng()), alone.load(0, rng()))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.large_binary())])])
def test_a_column_of_images_is_bytes_or_has_bytes(kind: pa.DataType, tmp_path: Path) -> None:
    values = [{"bytes": data} for data in image_files(3)] if pa.types.is_struct(kind) else image_files(3)
    source = config(table(tmp_path / "a.parquet", {"jpg": pa.array(values, kind)}), column="jpg").build()
    assert [source.store.media(i) for i in range(3)] == image_files(3)


LABELS = {
    "whole numbers without names": ([3, 0], None, [3, 0], ("0", "1", "2", "3")),
    "names": (["dog", "cat"], None, [1, 0], ("cat", "dog")),
    "a dictionary of names": (pa.array(["dog", "cat"]).dictionary_encode(), None, [1, 0], ("cat", "dog")),
    "small whole numbers": (pa.array([1, 0], pa.uint8()), ["x", "y"], [1, 0], ("x", "y")),
    "more classes than names": ([2, 0], ["x", "y"], [2, 0], ("0", "1", "2")),
    "hidden": ([-1, -1], ["x", "y"], [None, None], ()),
    "absent": (None, None, [None, None], ()),
    "empty": (pa.array([None, None], pa.int64()), None, [None, None], ()),
}


@pytest.mark.parametrize("name", LABELS)
def test_classes_are_numbers_or_names(name: str, tmp_path: Path) -> None:
    given, names, labels, classes = LABELS[name]
    columns = {"image": cells(image_files(2))} | ({} if given is None else {"label": given})
    source = config(table(tmp_path / "a.parquet", columns, names=names)).build()
    assert ([source.label(0), source.label(1)], source.classes) == (labels, classes)


def test_another_column_can_be_the_class(tmp_path: Path) -> None:
    columns = {"image": cells(image_files(2)), "label": [1, 0], "fine": ["b", "a"]}
    assert config(table(tmp_path / "a.parquet", columns), label="fine").build().classes == ("a", "b")


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=4).filter(lambda f: any(map(sum, f))))
@settings(max_examples=40, deadline=None)
def test_any_cut_into_files_and_row_groups_gives_every_row_once(files: list[list[int]]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        expected = []
        for number, groups in enumerate(files):
            schema = pa.schema([("image", pa.binary())])
            with pq.ParquetWriter(Path(name) / f"{number}.parquet", schema) as writer:
                row = 0
                for size in groups:
                    rows = [b"%d/%d" % (number, row + i) for i in range(size)]
                    writer.write_table(pa.table({"image": pa.array(rows, pa.binary())}))
                    expected += [f"{number}.parquet/{row + i}" for i in range(size)]
                    row += size
        store = ParquetStore(Path(name), [f"{i}.parquet" for i in range(len(files))], "image", "label")
        assert [store.key(i) for i in range(len(store))] == expected
        for index in reversed(range(len(store))):
            assert store.media(index).decode() == expected[index].replace(".parquet", "")


def test_videos_of_a_table_are_those_of_its_files(tmp_path: Path) -> None:
    video_files = sorted(bundled.videos("heldout").iterdir())
    path = table(tmp_path / "a.parquet", {"video": cells([video_file.read_bytes() for video_file in video_files])})
    fields = {"frames": 5, "size": 24, "stride": 2}
    packed, loose = (
        VideosConfig(path=path, **fields).build(),
        VideosConfig(path=bundled.videos("heldout"), **fields).build(),
    )
    assert len(packed) == len(loose) == 4
    assert all(torch.equal(packed.load(i, rng(i)), loose.load(i, rng(i))) for i in range(4))


def test_a_folder_a_pattern_and_a_list_choose_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/test-0.parquet", "data/train-0.parquet", "data/train-1.parquet"):
        table(tmp_path / name, {"image": cells(image_files(1, name))})
    (tmp_path / "list.txt").write_text("data/train-1.parquet\ndata/test-0.parquet\n")

    def keys(path: Path, **fields: object) -> list[str]:
        source = config(path, **fields).build()
        return [source.key(i) for i in range(len(source))]

    assert keys(tmp_path) == ["data/test-0.parquet/0", "data/train-0.parquet/0", "data/train-1.parquet/0"]
    assert keys(tmp_path, match="data/train-*.parquet") == ["data/train-0.parquet/0", "data/train-1.parquet/0"]
    assert keys(tmp_path / "list.txt") == ["data/train-1.parquet/0", "data/test-0.parquet/0"]


def test_a_row_group_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    media = [ppm(str(i), (200, 300)) for i in range(40)]
    path = table(tmp_path / "a.parquet", {"image": cells(media), "label": list(range(40))}, rows=4)
    config(path).build().load(0, rng())
    before = bytes_read()
    source = config(path).build()
    listed = bytes_read()
    source.load(21, rng())
    loaded = bytes_read()
    source.load(22, rng())
    again = bytes_read()
    assert path.stat().st_size > 40 * 180_000
    assert listed - before < 200_000
    assert loaded - listed < 4 * 180_000 + 200_000
    assert again - loaded < 1_000  # of the same row group


OFFLINE = """
from pathlib import Path
from smalti.data import ImagesConfig
from smalti.errors import SmaltiError
for path, revision in (("hf:me/flowers", None), ("hf:me/flowers", "v1"), ("hf:me/others", None), ("hf:no name", None)):
    try:
        source = ImagesConfig(path=Path(path), revision=revision, match="data/train-*.parquet").build()
        print(path, revision, len(source), source.key(0))
    except SmaltiError as error:
        print(type(error).__name__, error)
"""


def test_a_data_set_of_the_hub_is_read_from_its_cache(tmp_path: Path) -> None:
    home = tmp_path / "datasets--me--flowers"
    for revision, commit, rows in (("main", "a" * 40, 2), ("v1", "b" * 40, 3)):
        folder = home / "snapshots" / commit / "data"
        folder.mkdir(parents=True)
        table(folder / "train-0.parquet", {"image": cells(image_files(rows))})
        table(folder / "test-0.parquet", {"image": cells(image_files(1))})
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / revision).write_text(commit)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    found = programs.run("-c", OFFLINE, env=environment)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[:2] == ["hf:me/flowers None 2 data/train-0.parquet/0", "hf:me/flowers v1 3 data/train-0.parquet/0"]
    assert lines[2].startswith("MachineError hf:me/others: not in the cache, and the hub was not asked, because")
    assert lines[3] == "InputError hf:no name: not the name of a data set of the hub, as in hf:owner/name"
    assert len(lines) == 4
