"""Every way a tar can be wrong: refused in one line that names tar, member and byte; nothing is unpacked."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.data import ImagesConfig, VideosConfig, evaluation
from smalti.errors import BadFile, InputError
from tests.packing import pack, ppm

GOOD = {"1.ppm": ppm("1"), "1.cls": b"0", "2.ppm": ppm("2"), "2.cls": b"1"}


def refused(path: Path, kind: type = ImagesConfig, **fields: object) -> str:
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        kind.parse({"path": path, **fields}).build()
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    assert sorted(path.parent.rglob("*")) == before
    return message.replace(f"{path.parent}/", "")


def odd(path: Path, name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> Path:
    """A tar with a good sample, then a member of this kind and name."""
    with tarfile.open(pack(path, GOOD), "a", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type = kind
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def test_a_tar_cut_before_its_end_mark_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.tar", GOOD).read_bytes()
    end = len(whole.rstrip(b"\0")) + 511 & ~511
    for length in [*range(1, end, 171), *range(512, end + 1, 512)]:
        (tmp_path / "a.tar").write_bytes(whole[:length])
        message = refused(tmp_path / "a.tar")
        assert "(cut off)" in message or "no header at byte" in message
    (tmp_path / "a.tar").write_bytes(whole[: end + 512])
    assert len(ImagesConfig(path=tmp_path / "a.tar").build()) == 2


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    data = pack(tmp_path / "a.tar", GOOD).read_bytes()
    (tmp_path / "a.tar").write_bytes(data + data)
    assert refused(tmp_path / "a.tar").endswith("more data after the end mark at byte 4,096 (tars joined?)")


@pytest.mark.parametrize(("name", "packer"), [("gzip", gzip), ("bzip2", bz2), ("xz", lzma)])
def test_packed_tars_are_named_by_their_packer(name: str, packer: object, tmp_path: Path) -> None:
    data = pack(tmp_path / "a.tar", GOOD).read_bytes()
    (tmp_path / "a.tar").write_bytes(packer.compress(data))
    assert f"a.tar: is packed with {name}, so that members cannot be found; unpack it" in refused(tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    assert "neither a folder, a list" in refused(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
        (tarfile.LNKTYPE, {"linkname": "1.ppm"}),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
        (tarfile.BLKTYPE, {"devmajor": 8}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.GNUTYPE_SPARSE, {}),
        (b"V", {}),
    ],
)
def test_links_devices_pipes_and_sparse_files_are_refused(kind: bytes, fields: dict, tmp_path: Path) -> None:
    message = refused(odd(tmp_path / "a.tar", "3.ppm", kind, **fields))
    assert "a.tar: member 3.ppm at byte 4,096 is a link, device or sparse file, not a file" in message


def test_sparse_files_of_pax_are_refused(tmp_path: Path) -> None:
    path = odd(tmp_path / "a.tar", "3.ppm", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    assert "a sparse file at byte" in refused(path)


@pytest.mark.parametrize("name", ["../3.ppm", "/etc/3.ppm", "x/../../3.ppm", "x/..", "é/../" + "n" * 120 + ".ppm"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    assert "has a name that leads elsewhere; pack it anew" in refused(odd(tmp_path / "a.tar", name))


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    path = odd(tmp_path / "a.tar", "3.ppm", pax_headers={"path": "a\0.ppm"})
    assert r"member a\x00.ppm at byte" in refused(path)


def test_a_name_with_line_breaks_stays_on_one_line(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a\n\x1b[2J.ppm": ppm("1"), "a\n\x1b[2J.cls": b""})
    assert r"sample a\x0a\x1b[2J: its cls at byte" in refused(path)
    assert r"has no .mask (there are: left , right)" in refused(
        pack(tmp_path / "a.tar", {"a.left\n": b"", "a.right\n": b""}), member="mask"
    )


def faults_of(path: Path, **fields: object) -> list[BadFile]:
    """The faults of the bad samples, of which the good ones know nothing."""
    source = ImagesConfig.parse({"path": path, "size": None, "flip": False, **fields}).build()
    faults: list[BadFile] = []
    good = [batch.keys[0] for batch in evaluation(source, on_bad=faults.append)]
    assert len(good) + len(faults) == len(source)
    assert {"a.tar/1.ppm", "a.tar/2.ppm"} <= set(good)
    for fault in faults:
        assert (fault.code, fault.path.startswith(str(path))) == ("sample", True)
        assert str(fault).isprintable()
        assert len(fault.message) < 250
    return faults


def test_a_member_that_is_there_twice_costs_its_sample_and_no_other(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [*GOOD.items(), ("3.ppm", ppm("1")), ("x.txt", b""), ("3.PPM", ppm("2"))])
    (fault,) = faults_of(path)
    assert fault.message == "sample 3: its ppm is there twice, at byte 4,608 and at byte 6,144; pack it anew"
    source = ImagesConfig(path=path).build()
    assert [source.label(index) for index in range(3)] == [0, 1, None]
    alone = pack(tmp_path / "b.tar", [("1.ppm", ppm("1")), ("1.PPM", ppm("2"))])
    assert refused(alone).endswith("sample 1: its ppm is there twice, at byte 512 and at byte 1,536; pack it anew")


LARGE = b"9" * (1 << 20) + b"9"
NOTES = {
    "cls of no bytes": ({"3.cls": b" \n"}, "sample 3: its cls at byte 4,608 is empty"),
    "cls of two lines": ({"3.cls": b"1\n2"}, "sample 3: its cls at byte 4,608 is no line of text"),
    "huge cls": ({"3.cls": LARGE}, "sample 3: its cls at byte 4,608 has 1,048,577 bytes, at most 1,048,576 are read"),
    "no JSON": ({"3.json": b"{"}, "sample 3: its json at byte 4,608 is not valid JSON"),
    "deep JSON": ({"3.json": b"[" * 200_000}, "sample 3: its json at byte 4,608 is not valid JSON"),
    "no class": (
        {"3.json": b'{"label": [1]}'},
        "sample 3: its json at byte 4,608 has no whole number or name as class",
    ),
    "a bool": ({"3.json": b"true"}, "sample 3: its json at byte 4,608 has no whole number or name as class"),
    "half a character": ({"3.json": b'"\\ud800"'}, "sample 3: its json at byte 4,608 is no line of text"),
}
WHOLE = {
    "below 0": ({"3.json": b"-1"}, "a.tar: class -1 is no class number (0 to 1,000,000); correct it"),
    "no note": ({}, "a.tar: 1 of 3 samples have no class, the first is a.tar/3.ppm; give all a class, or none"),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_class_that_cannot_be_read_costs_its_sample_and_no_other(name: str, tmp_path: Path) -> None:
    notes, expected = NOTES[name]
    (fault,) = faults_of(pack(tmp_path / "a.tar", {**GOOD, **notes, "3.ppm": ppm("3")}))
    assert fault.message == expected


@pytest.mark.parametrize("name", WHOLE)
def test_classes_that_do_not_suit_each_other_are_refused(name: str, tmp_path: Path) -> None:
    notes, expected = WHOLE[name]
    assert refused(pack(tmp_path / "a.tar", {**GOOD, **notes, "3.ppm": ppm("3")})) == expected


MEDIA = {
    "several": ({"1.ppm": b"", "1.png": b""}, {}, "sample 1: has several media (png, ppm); set `member` to one"),
    "under longer names": ({"1.a.ppm": b"", "1.b.ppm": b""}, {}, "sample 1: has a.ppm, b.ppm; set `member` to one"),
    "a class without": ({"1.cls": b"1"}, {}, "sample 1: has no image or video (there are: cls)"),
    "another member": ({"1.ppm": b"", "1.txt": b""}, {"member": "png"}, "sample 1: has no .png (there are: ppm, txt)"),
    "none": ({"1.mp4": b"x"}, {}, "a.tar: no sample has a file of any of .jpg .jpeg"),
    "no members": ({}, {}, "a.tar: no sample has a file of any of .jpg .jpeg"),
}


@pytest.mark.parametrize("name", MEDIA)
def test_samples_without_one_medium_are_named(name: str, tmp_path: Path) -> None:
    members, fields, expected = MEDIA[name]
    assert expected in refused(pack(tmp_path / "a.tar", members), **fields)


def test_all_faults_of_all_tars_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pack(folder / "good.tar", GOOD)
    pack(folder / "double.tar", [("1.ppm", b""), ("1.ppm", b""), ("2.cls", b"x"), ("3.json", b"{")])
    (folder / "empty.tar").touch()
    (folder / "pointer.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (folder / "text.tar").write_text("no tar at all" * 99)
    (folder / "folder.tar").symlink_to(tmp_path / "nowhere")
    message = refused(folder)
    assert "set: 4 bad members or tars: " in message
    (tmp_path / "one").mkdir()
    pack(tmp_path / "one" / "double.tar", [(f"{i}.ppm", b"") for i in (1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6)])
    assert refused(tmp_path / "one").endswith("; and 1 more")


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    started = time.monotonic()
    assert "not a regular file but a folder, pipe, socket or device" in refused(tmp_path / "a.tar")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{0..3}.tar", "3 bad tars: no such file a-1.tar; no such file a-2.tar; no such file a-3.tar"),
        ("a-{3..0}.tar", "stands for no tars; write the smaller number first"),
        ("a-{0..999999999}.tar", "stands for more than 1,000,000 tars; raise `limit`"),
        ("{0..999}{0..999}{0..9}.tar", "stands for more than 1,000,000 tars; raise `limit`"),
        ("a-{0,x}.tar", "1 bad tars: no such file a-x.tar"),
        ("a-{" + "x" * 400 + ",y}.tar", "2 bad tars: no such file a-xxx"),
        ("a-{0.tar", "no such file"),
    ],
)
def test_wrong_patterns_are_refused(pattern: str, message: str, tmp_path: Path) -> None:
    pack(tmp_path / "a-0.tar", GOOD)
    assert message in refused(tmp_path / pattern)


def test_a_tar_that_changed_since_it_was_listed_gives_bad_files(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {**GOOD, "3.ppm": b"", "3.cls": b"1", "4.ppm": b"no picture", "4.cls": b"1"})
    source = ImagesConfig(path=path, size=8).build()
    faults: list[BadFile] = []
    assert [batch.keys[0] for batch in evaluation(source, on_bad=faults.append)] == ["a.tar/1.ppm", "a.tar/2.ppm"]
    assert [(fault.code, fault.path) for fault in faults] == [
        ("empty", f"{path}/3.ppm at byte 4,608"),
        ("format", f"{path}/4.ppm at byte 6,144"),
    ]
    with path.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(BadFile, match="the tar has become shorter since it was listed") as caught:
        source.load(0, torch.Generator())
    assert caught.value.code == "truncated"
    path.unlink()
    with pytest.raises(BadFile, match="no such file") as caught:
        source.load(0, torch.Generator())
    assert caught.value.code == "missing"


def test_videos_that_cannot_be_decoded_are_named_by_member(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"1.mp4": b"no video at all" * 99, "2.mp4": b""})
    source = VideosConfig(path=path).build()
    for index, code in enumerate(("format", "empty")):
        with pytest.raises(BadFile, match=rf"a\.tar/{index + 1}\.mp4 at byte") as caught:
            source.load(index, torch.Generator())
        assert caught.value.code == code


def test_flipped_bits_give_samples_or_one_line_and_nothing_else(tmp_path: Path) -> None:
    name = "d/" + "n" * 110
    members = {f"{name}.ppm": ppm("1"), f"{name}.cls": b"0", "é.ppm": ppm("2"), "é.cls": b"1"}
    whole = pack(tmp_path / "a.tar", members, tarfile.PAX_FORMAT).read_bytes()
    written = ImagesConfig(path=tmp_path / "a.tar", size=8).build().load(0, torch.Generator())
    generator = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for trial in range(300):
        broken = bytearray(whole)
        for place in generator.integers(len(whole), size=1 + trial % 3):
            broken[place] ^= 1 << generator.integers(8)
        (tmp_path / "a.tar").write_bytes(broken)
        try:
            pixels = ImagesConfig(path=tmp_path / "a.tar", size=8).build().load(0, torch.Generator())
        except InputError:
            outcomes["refused"] += 1
        else:
            outcomes["as written" if torch.equal(pixels, written) else "other pixels"] += 1
    assert outcomes["refused"] > 20, outcomes
    assert outcomes["as written"] > 20, outcomes


@pytest.mark.parametrize("field", ["1e3", "-5", "", "99999999999999999999", "5x"])
def test_a_damaged_pax_size_is_refused(field: str, tmp_path: Path) -> None:
    path = odd(tmp_path / "a.tar", "3.ppm", pax_headers={"size": field})
    assert refused(path).startswith("a.tar: 1 bad members or tars: a.tar: ")


@pytest.mark.parametrize("note", [b"x", b"99 path=a\n", b"9999999999 path=a\n", b"10 path=ab", b"3 a\n"])
def test_a_damaged_pax_header_is_refused(note: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(note)
    header = info.tobuf(tarfile.USTAR_FORMAT) + note.ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(header + pack(tmp_path / "b.tar", GOOD).read_bytes())
    assert "damaged pax header at byte 512" in refused(tmp_path / "a.tar")
