"""Damage of real files (cut, flipped bytes, zeros): each is read, or refused by name, and nothing else happens."""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data import BadFileLog, ImagesConfig, VideosConfig, evaluation, open_video, read_image
from smalti.data.bundled import photos
from smalti.data.source import Source
from smalti.data.video_reader import VideoReader
from smalti.errors import BadFile, InputError
from smalti.tokens.config import TokenizeOptions
from tests.containers import make_file
from tests.packing import pack, ppm

MOST_PIXELS = 1_000_000
"""Frames that damage makes larger are refused, as a user can say it too."""

VIDEOS = {
    "mp4": "h264",
    "fragmented.mp4": "h264",
    "mov": "prores",
    "mkv": "hevc",
    "webm": "vp9",
    "avi": "mpeg4 with B",
    "ts": "mpeg2 with B",
    "mpg": "h264",
    "flv": "flv1",
    "asf": "wmv2",
    "ogg": "vp8",
    "mxf": "mpeg2 with B",
    "gif": "gif",
}
IMAGES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` broken forms of a file: in turn cut, with flipped bytes, and with a range of zeros; every other one
    in its first kilobyte, where the heads are."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        broken = bytearray(data)
        end = len(data) if number % 2 else min(len(data), 1024)
        kind = number % 3
        if kind == 0:
            yield bytes(broken[: generator.integers(1, end)])
            continue
        if kind == 1:
            for place in generator.integers(end, size=1 + number % 7):
                broken[place] ^= int(generator.integers(1, 256))
        else:
            place, length = generator.integers(end), int(generator.integers(1, 300))
            broken[place : place + length] = bytes(len(broken[place : place + length]))
        yield bytes(broken)


def read_whole_video(media: Path | bytes) -> None:
    """Read a video as the commands do: its facts, all its frames, one from the middle, and those at a frame rate."""
    with VideoReader(media, MOST_PIXELS) as reader:
        facts = reader.fps, reader.pixel_aspect, reader.notes, reader.times, reader.size
        assert 0.001 <= facts[0] < float("inf")
        frames = sum(1 for _ in reader.frames())
        assert frames == len(reader) > 0
        next(reader.at([frames // 2]))
        list(reader.at(TokenizeOptions(fps=5).frames_of(reader.times)[:20]))


def outcome(read: Callable[[], object]) -> str:
    """Return `read`, or the code of the BadFile that was raised; any other exception is a fault of smalti."""
    fault = None
    try:
        read()
    except BadFile as bad:
        fault = bad
    assert fault is None or (str(fault).isprintable() and len(fault.message) < 500)
    return "read" if fault is None else fault.code


def load_all(source: Source) -> str:
    log = BadFileLog()
    good = 0
    with suppress(InputError):  # at the end, where all were bad
        for _ in evaluation(source, on_bad=log):
            good += 1
    assert good + log.total == len(source)
    return "read" if not log.total else "some bad" if good else "all bad"


def check(counts: Counter[str], count: int) -> None:
    assert counts.total() == count
    assert counts["read"] < count, counts  # the damage is seen


def fuzz_video(suffix: str, count: int, folder: Path, seed: int = 0) -> Counter[str]:
    path = make_file(folder, suffix, VIDEOS[suffix], count=10)
    data, counts = path.read_bytes(), Counter[str]()
    for number, broken in enumerate(damaged(data, count, seed)):
        path.write_bytes(broken)
        media: Path | bytes = path if number % 4 else broken
        try:
            counts[outcome(lambda media=media: read_whole_video(media))] += 1
        except Exception as error:
            (folder / "found").write_bytes(broken)
            raise AssertionError(f"{suffix}, form {number} of seed {seed}: {error!r}") from error
    return counts


def fuzz_image(suffix: str, count: int, folder: Path, seed: int = 0) -> Counter[str]:
    path, data = folder / f"a.{suffix}", io.BytesIO()
    with Image.open(photos("heldout") / "astronaut.jpg") as photo:
        photo.resize((96, 64)).save(data, IMAGES[suffix])
    counts = Counter[str]()
    for broken in damaged(data.getvalue(), count, seed):
        path.write_bytes(broken)
        counts[outcome(lambda: read_image(path, max_pixels=MOST_PIXELS))] += 1
    return counts


def fuzz_packed(suffix: str, count: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Damage a tar or a Parquet file of images and a video, and read it as a source."""
    path = folder / f"a.{suffix}"
    video = make_file(folder, "mp4", "h264", count=4).read_bytes()
    if suffix == "tar":
        pack(path, {**{f"{i}.ppm": ppm(str(i)) for i in range(4)}, **{f"{i}.cls": b"1" for i in range(4)}})
        kind: type = ImagesConfig
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"video": [{"bytes": video, "path": "a"}] * 3, "label": [0, 1, 2]}), path)
        kind = VideosConfig
    fields = {"frames": 3} if kind is VideosConfig else {}
    data, counts = path.read_bytes(), Counter[str]()
    for broken in damaged(data, count, seed):
        path.write_bytes(broken)
        try:
            source = kind.parse({"path": path, "size": 16, **fields}).build()
        except InputError:
            counts["refused"] += 1
        else:
            counts[load_all(source)] += 1
    return counts


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_damaged_video_is_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    check(fuzz_video(suffix, 30, tmp_path), 30)


@pytest.mark.parametrize("suffix", IMAGES)
def test_a_damaged_image_is_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    check(fuzz_image(suffix, 60, tmp_path), 60)


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_damaged_tar_or_table_is_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    check(fuzz_packed(suffix, 60, tmp_path), 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_thousands_of_damaged_files_are_read_or_refused_by_name(seed: int, tmp_path: Path) -> None:
    total = Counter[str]()
    for suffix in VIDEOS:
        total += fuzz_video(suffix, 300, tmp_path, seed)
    for suffix in IMAGES:
        total += fuzz_image(suffix, 600, tmp_path, seed)
    for suffix in ("tar", "parquet"):
        total += fuzz_packed(suffix, 300, tmp_path, seed)
    print(dict(total))
    assert total["read"] > 100
    assert total.total() - total["read"] > 1000


def test_a_file_of_another_kind_is_named_and_not_told_to_be_copied(tmp_path: Path) -> None:
    kinds = {
        "Flash": b"FWS\x08" + bytes(600),
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>" * 20,
        "playlist": b"#EXTM3U\n#EXTINF:1,\nreal.ts\n" * 9,
        "zip": b"PK\3\4" + bytes(600),
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(600),
        "JPEG XL": b"\xff\x0a" + bytes(600),
        "Photoshop": b"8BPS\0\1" + bytes(600),
    }
    for name, data in kinds.items():
        path = tmp_path / "a.bin"
        path.write_bytes(data)
        for read in (open_video, read_image):
            with pytest.raises(BadFile) as caught:
                read(path)
            assert name in caught.value.message
            assert caught.value.code == "format"
            assert "copy it again" not in caught.value.message


def test_a_cut_jpeg_is_named_and_its_neighbours_are_read(tmp_path: Path) -> None:
    cut = (Path(__file__).parent / "repro" / "07_cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(cut)
    (tmp_path / "good.ppm").write_bytes(ppm("good"))
    log = BadFileLog()
    source = ImagesConfig(path=tmp_path, size=8).build()
    assert [batch.keys for batch in evaluation(source, on_bad=log)] == [("good.ppm",)]
    assert log.counts == {"truncated": 1}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Damage makes the libraries warn, which is not what is looked at here."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
