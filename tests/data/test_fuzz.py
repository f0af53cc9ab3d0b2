"""Damage of real media: each file is read, or refused by name, and nothing else happens."""

import io
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.data import BadFileLog, ImagesConfig, VideosConfig, evaluation, open_video, read_image
from smalti.data.bundled import photos
from smalti.data.video_reader import VideoReader
from smalti.errors import BadFile, InputError
from smalti.tokens.config import TokenizeOptions
from tests.containers import make_file
from tests.damage import READ, Kind, trials
from tests.packing import cells, pack, ppm, table

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


def read_whole_video(media: Path | bytes) -> int:
    """Read a video as the commands do: its facts, all its frames, one from the middle, and those at a frame rate."""
    with VideoReader(media, MOST_PIXELS) as reader:
        facts = reader.fps, reader.pixel_aspect, reader.notes, reader.times, reader.size
        assert 0.001 <= facts[0] < float("inf")
        frames = sum(1 for _ in reader.frames())
        assert frames == len(reader) > 0
        next(reader.at([frames // 2]))
        list(reader.at(TokenizeOptions(fps=5).frames_of(reader.times)[:20]))
        return frames


def read_source(kind: type, path: Path, **fields: object) -> object:
    """Read all samples of a source; its bad files are its own refusals."""
    log, good = BadFileLog(), 0
    source = kind.parse({"path": path, "size": 16, **fields}).build()
    with suppress(InputError):  # at the end, where all were bad
        for _ in evaluation(source, on_bad=log):
            good += 1
    assert good + log.total == len(source)
    if log.total:
        raise BadFile(path, "some", f"{log.total} of {len(source)} samples are bad")
    return good


def of_video(suffix: str, folder: Path) -> Kind:
    path, turns = make_file(folder, suffix, VIDEOS[suffix], count=10), iter(range(10**9))

    def read() -> int:
        """Read it, every fourth time from memory, as members of tars and cells of tables are; it is `bytes` then,
        and `video` in a message about frame rates."""
        return read_whole_video(path.read_bytes() if next(turns) % 4 == 3 else path)

    return Kind(path, read, exact=False, names=("bytes", "video: "))


def of_image(suffix: str, folder: Path) -> Kind:
    path, whole = folder / f"image.{suffix}", io.BytesIO()
    with Image.open(photos("heldout") / "astronaut.jpg") as photo:
        photo.resize((96, 64)).save(whole, IMAGES[suffix])
    path.write_bytes(whole.getvalue())
    return Kind(path, lambda: read_image(path, max_pixels=MOST_PIXELS).shape, exact=False)


def of_packed(suffix: str, folder: Path) -> Kind:
    """A tar or a Parquet file of images or of videos, read as a source."""
    path = folder / f"a.{suffix.split()[-1]}"
    if suffix == "tar":
        pack(path, {**{f"{i}.ppm": ppm(str(i)) for i in range(4)}, **{f"{i}.cls": b"1" for i in range(4)}})
    elif suffix == "parquet":
        table(path, {"image": cells([ppm(str(i)) for i in range(4)]), "label": [0, 1, 1, 0]})
    else:
        video = make_file(folder, "mp4", "h264", count=4).read_bytes()
        table(path, {"video": cells([video] * 3), "label": [0, 1, 2]})
        return Kind(path, lambda: read_source(VideosConfig, path, frames=3), exact=False)
    return Kind(path, lambda: read_source(ImagesConfig, path), exact=False)


MAKERS = {
    **{f"video {suffix}": of_video for suffix in VIDEOS},
    **{f"image {suffix}": of_image for suffix in IMAGES},
    **{f"packed {suffix}": of_packed for suffix in ("tar", "parquet", "videos.parquet")},
}


def kind_of(name: str, folder: Path) -> Kind:
    return MAKERS[name](name.split(" ", 1)[1], folder)


@pytest.mark.parametrize("name", MAKERS)
def test_damaged_media_are_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    found = trials(kind_of(name, tmp_path), 28)
    assert found[READ] < 28, found  # the damage is seen


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_thousand_damages_of_media_are_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    found = trials(kind_of(name, tmp_path), 1000)
    print(f"{name}: {dict(found)}")
    assert 0 < found[READ] < 1000


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
def seeded() -> None:
    torch.manual_seed(0)
