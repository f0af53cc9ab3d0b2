"""What is held out and what is left out: every file is a sample, held out, a copy, or counted by its reason."""

import os
import shutil
from pathlib import Path

import pytest

from smalti.data import ImagesConfig, VideosConfig
from smalti.data.tars import TarStore
from smalti.training.samples import hold_out
from tests.packing import cells, pack, ppm, table


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for i in range(count):
        (path / f"{i:03d}.ppm").write_bytes(ppm(str(i)))
    return path


@pytest.mark.parametrize(
    ("total", "asked", "held"), [(1, 5, 0), (2, 5, 1), (9, 5, 1), (40, 32, 4), (60, 3, 3), (60, 0, 0), (7, 0, 0)]
)
def test_at_most_a_tenth_is_held_out_and_nothing_is_on_both_sides(total: int, asked: int, held: int, tmp_path) -> None:
    source = ImagesConfig(path=folder_of(tmp_path / "data", total)).build()
    parts = hold_out(source, asked, seed=0)
    trained = [parts.train.key(i) for i in range(len(parts.train))]
    kept = [source.key(i) for i in parts.held_out]
    assert (len(kept), parts.copies) == (held, 0)
    assert sorted(trained + kept) == [source.key(i) for i in range(total)]


def test_the_choice_is_a_function_of_seed_and_names_alone(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", 50)
    shutil.copytree(one, tmp_path / "two")
    pack(tmp_path / "three.tar", {path.name: path.read_bytes() for path in sorted(one.iterdir(), reverse=True)})
    names = []
    for path in (one, tmp_path / "two", tmp_path / "three.tar"):
        source = ImagesConfig(path=path).build()
        parts = hold_out(source, 5, seed=3)
        names.append({source.key(i).removeprefix("three.tar/") for i in parts.held_out})
    assert names[0] == names[1]
    assert len(names[2]) == 5  # a tar's names begin with its own
    chosen = {frozenset(hold_out(ImagesConfig(path=one).build(), 5, seed=seed).held_out) for seed in range(20)}
    assert len(chosen) > 15
    for name in ("zz.ppm", "0.ppm"):  # another file moves none of those that stay trained on to the other side
        (tmp_path / "two" / name).write_bytes(ppm(name))
    source = ImagesConfig(path=tmp_path / "two").build()
    assert {source.key(i) for i in hold_out(source, 5, seed=3).held_out} <= names[0] | {"zz.ppm", "0.ppm"}


def test_every_sample_is_held_out_as_often_as_another(tmp_path: Path) -> None:
    source = ImagesConfig(path=folder_of(tmp_path / "data", 30)).build()
    counts = [0] * 30
    for seed in range(400):
        for i in hold_out(source, 3, seed).held_out:
            counts[i] += 1
    assert sum(counts) == 1200
    assert all(abs(count - 40) < 5 * 6 for count in counts)  # 40 +- 6


@pytest.mark.parametrize("packing", ["files", "tars"])
def test_no_bytes_are_on_both_sides(packing: str, tmp_path: Path) -> None:
    """Copies under other names, of the same size as other files too; a file that cannot be read is no copy."""
    data = folder_of(tmp_path / "data", 40)
    before = ImagesConfig(path=data).build()
    kept = [before.key(i) for i in hold_out(before, 4, seed=1).held_out]
    for name in kept:
        shutil.copy(data / name, data / f"zz copy of {name}")
    (data / "broken.ppm").symlink_to("nowhere")
    path = data
    if packing == "tars":
        path = pack(tmp_path / "data.tar", {p.name: p.read_bytes() for p in sorted(data.iterdir()) if p.exists()})
    source = ImagesConfig(path=path).build()
    parts = hold_out(source, 4, seed=1)
    digests = [{source.store.digest(i) for i in parts.train.indices}, {source.store.digest(i) for i in parts.held_out}]
    assert not digests[0] & digests[1]
    assert len(parts.train) + len(parts.held_out) + parts.copies == len(source)
    assert parts.copies or packing == "tars"


def test_each_entry_of_a_folder_is_listed_or_counted(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", 4)
    (data / "sub").mkdir()
    os.link(data / "000.ppm", data / "sub" / "again.ppm")
    (data / "sub" / "once more.ppm").symlink_to("../001.ppm")
    (data / "sub" / "up").symlink_to("..")
    for name in (".hidden.ppm", "notes.txt", "sub/film.mp4"):
        (data / name).write_bytes(b"x")
    store = ImagesConfig(path=data).build().store
    assert store.left_out == {
        "links to files that are listed": 2,
        "links to folders that are searched": 1,
        "hidden files or folders": 1,
        "files of other kinds": 2,
    }
    assert len(store) + sum(store.left_out.values()) == len([p for p in data.rglob("*") if p.name != "sub"])
    assert VideosConfig(path=data).build().store.left_out["files of other kinds"] == 5


def test_what_a_tar_holds_beside_its_samples_is_counted(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"0.ppm": ppm("0"), "1.mp4": b"x", ".hidden": b"x", "README": b"x", "2.ppm": ppm("2")})
    store = TarStore(tmp_path, ["a.tar"], (".ppm",))
    assert len(store) == 2
    assert store.left_out == {"samples of other kinds": 1, "members that are hidden or have no suffix": 2}


def test_tables_that_do_not_match_are_counted(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        table(tmp_path / f"{name}.parquet", {"image": cells([ppm(name)])})
    store = ImagesConfig(path=tmp_path, match="train-*").build().store
    assert (len(store), store.left_out) == (2, {"files that do not fit train-*": 1})
