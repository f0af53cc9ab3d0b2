"""WebDataset tars: the samples of the files that were packed, in any order of reading, without unpacking."""

import json
import os
import random
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data import ImagesConfig, VideosConfig, bundled
from smalti.data.tars import Member, read_members
from smalti.text import printable
from tests.packing import pack, ppm

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = [
    "a.ppm",
    "sub/b.ppm",
    "sub/deep/é.ppm",
    "n" * 90 + ".ppm",
    "d" * 80 + "/" + "e" * 80 + ".ppm",
    "with space.ppm",
]
LONG = ["f" * 200 + ".ppm", "g" * 120 + "/" + "h" * 250 + ".ppm", "名" * 70 + ".ppm", "line\nbreak.ppm", "\udcff.ppm"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(path: Path, **fields: object) -> ImagesConfig:
    return ImagesConfig.parse({"path": path, "size": None, "flip": False, **fields})


@pytest.mark.parametrize("format", FORMATS)
def test_samples_of_a_tar_are_those_of_its_files(format: str, tmp_path: Path) -> None:
    names = NAMES if format == "ustar" else [*NAMES, *LONG]
    path = pack(tmp_path / "a.tar", {name: ppm(name) for name in names}, FORMATS[format])
    source = config(path).build()
    assert [source.key(i) for i in range(len(source))] == [f"a.tar/{printable(name)}" for name in names]
    for index, name in enumerate(names):
        (tmp_path / "one.ppm").write_bytes(ppm(name))
        alone = ImagesConfig(path=tmp_path / "one.ppm", size=None, flip=False).build()
        assert torch.equal(source.load(index, rng()), alone.load(0, rng()))


def test_any_order_of_reading_gives_the_same_samples(tmp_path: Path) -> None:
    for tar in range(3):
        pack(tmp_path / f"{tar}.tar", {f"{i}.ppm": ppm(f"{tar}.{i}") for i in range(5)})
    whole = [config(tmp_path).build().load(i, rng(i)) for i in range(15)]
    source = config(tmp_path).build()
    order = random.Random(0).choices(range(15), k=60)
    assert all(torch.equal(source.load(i, rng(i)), whole[i]) for i in order)


@given(
    st.lists(st.tuples(st.binary(max_size=2000), st.text("ab/_-\u00e9\udc80\n ", min_size=1, max_size=180)), max_size=6)
)
@settings(max_examples=80, deadline=None)
def test_headers_say_where_every_byte_is(members: list[tuple[bytes, str]]) -> None:
    files = [(f"m{i}{name.rstrip('/')}x", data) for i, (data, name) in enumerate(members)]
    with TemporaryDirectory() as folder:
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            with pack(Path(folder) / "a.tar", files, format).open("rb") as file:
                found = list(read_members(file))
                assert [member.name for member in found] == [name for name, _ in files]
                for member, (_, data) in zip(found, files, strict=True):
                    file.seek(member.offset)
                    assert file.read(member.size) == data


@pytest.mark.parametrize("format", ["v7", "ustar", "gnu", "posix"])
def test_tars_of_gnu_tar_are_read(format: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    for name in ("b.ppm", "sub/a.ppm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ppm(name))
    subprocess.run(["tar", f"--format={format}", "--sort=name", "-cf", tmp_path / "a.tar", "."], cwd=folder, check=True)
    source = config(tmp_path / "a.tar").build()
    assert [source.key(i) for i in range(len(source))] == ["a.tar/./b.ppm", "a.tar/./sub/a.ppm"]


def test_a_size_may_stand_in_a_pax_header_alone(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tar", ppm("a")
    info = tarfile.TarInfo("a.ppm")
    info.pax_headers = {"size": str(len(data)), "comment": "x" * 3000}
    header = info.tobuf(tarfile.PAX_FORMAT)  # its own size is 0, as for files of 8 GB and more
    path.write_bytes(header + data.ljust(512, b"\0") + bytes(1024))
    with path.open("rb") as file:
        assert list(read_members(file)) == [Member("a.ppm", len(header), len(data))]


# ---- samples


def test_a_sample_is_the_members_of_one_key_and_its_class_is_beside_it(tmp_path: Path) -> None:
    members = {
        "x/1.PPM": ppm("1"),
        "x/1.cls": b"7\n",
        "x/1.txt": b"a caption",
        "x/2.cls": b"3",
        "x/2.seg.png": b"not read",
        "x/2.ppm": ppm("2"),
        "x/.hidden.ppm": b"not read",
        "README": b"not read",
        "notes.txt": b"not read",
    }
    source = config(pack(tmp_path / "a.tar", members)).build()
    assert [(source.key(i), source.label(i)) for i in range(len(source))] == [
        ("a.tar/x/1.PPM", 7),
        ("a.tar/x/2.ppm", 3),
    ]
    assert source.classes == tuple(map(str, range(8)))


@pytest.mark.parametrize(
    ("suffix", "notes", "labels", "classes"),
    [
        ("cls", [b"dog", b"cat\n"], [1, 0], ("cat", "dog")),
        ("json", [b'{"label": 2}', b'{"cls": 0, "text": "x"}'], [2, 0], ("0", "1", "2")),
        ("json", [b'{"label": "dog"}', b'"cat"'], [1, 0], ("cat", "dog")),
        ("json", [b"1", b"0"], [1, 0], ("0", "1")),
        ("json", [b'{"width": 3}', b"null"], [None, None], ()),
        ("txt", [b"1", b"2"], [None, None], ()),
    ],
)
def test_classes_are_read_from_cls_and_json(
    suffix: str, notes: list[bytes], labels: list, classes: tuple, tmp_path: Path
) -> None:
    members = {}
    for i, note in enumerate(notes):
        members |= {f"{i}.ppm": ppm(str(i)), f"{i}.{suffix}": note}
    source = config(pack(tmp_path / "a.tar", members)).build()
    assert ([source.label(0), source.label(1)], source.classes) == (labels, classes)


def test_the_class_in_cls_stands_before_the_one_in_json(tmp_path: Path) -> None:
    members = {"1.json": json.dumps({"label": 4}).encode(), "1.cls": b"2", "1.ppm": ppm("1")}
    assert config(pack(tmp_path / "a.tar", members)).build().label(0) == 2


def test_member_picks_one_of_several_media(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"1.left.ppm": ppm("left"), "1.right.ppm": ppm("right")})
    found = {member: config(path, member=member).build() for member in ("left.ppm", "right.ppm")}
    for member, source in found.items():
        assert (len(source), source.key(0)) == (1, f"a.tar/1.{member}")
    assert not torch.equal(found["left.ppm"].load(0, rng()), found["right.ppm"].load(0, rng()))


def test_videos_of_a_tar_are_those_of_its_files(tmp_path: Path) -> None:
    video_files = sorted(bundled.videos("heldout").iterdir())
    members = {video_file.name: video_file.read_bytes() for video_file in video_files}
    fields = {"frames": 5, "size": 24, "stride": 2}
    packed = VideosConfig(path=pack(tmp_path / "a.tar", {**members, "x.jpg": b"of another kind"}), **fields).build()
    loose = VideosConfig(path=bundled.videos("heldout"), **fields).build()
    assert len(packed) == len(loose) == 4
    assert all(torch.equal(packed.load(i, rng(i)), loose.load(i, rng(i))) for i in range(4))


# ---- which tars


def test_a_folder_a_list_and_a_pattern_name_the_same_tars(tmp_path: Path) -> None:
    names = [f"set/part-{i:02d}.tar" for i in range(8, 12)]
    (tmp_path / "set").mkdir()
    for name in names:
        pack(tmp_path / name, {"a.ppm": ppm(name)})
    (tmp_path / "list.txt").write_text("\n".join(names))
    patterns = ["part-{08..11}.tar", "part-{08,09,10,11}.tar", "{part}-{08..11}.{tar}"]
    for path in (tmp_path, tmp_path / "list.txt", *(tmp_path / "set" / pattern for pattern in patterns)):
        source = config(path).build()
        assert [source.store.where(i).split("/")[-2] for i in range(len(source))] == [Path(name).name for name in names]


def test_a_tar_with_braces_in_its_name_is_a_tar(tmp_path: Path) -> None:
    path = pack(tmp_path / "a{0..3}.tar", {"a.ppm": ppm("a")})
    assert len(config(path).build()) == 1


# ---- cost


def test_memory_does_not_grow_with_the_size_of_the_members(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (1, 200):
        path = tmp_path / f"{megabytes}.tar"
        with path.open("wb") as file:  # the files are holes: nothing is written
            for i in range(4):
                info = tarfile.TarInfo(f"{i}.ppm")
                info.size = megabytes << 20
                file.write(info.tobuf(tarfile.USTAR_FORMAT))
                file.seek(info.size, os.SEEK_CUR)
            file.write(bytes(1024))
        config(path).build()
        tracemalloc.start()
        assert len(config(path).build()) == 4
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 10_000


def test_a_sample_reads_its_own_bytes_and_no_others(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = pack(tmp_path / "a.tar", {f"{i}.ppm": ppm(str(i), (300, 400)) for i in range(20)})
    before = bytes_read()
    source = config(path).build()
    listed = bytes_read()
    source.load(10, rng())
    loaded = bytes_read()
    assert listed - before < 0.1 * path.stat().st_size
    assert loaded - listed < 1.1 * 300 * 400 * 3 + 20_000
