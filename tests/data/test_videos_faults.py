"""Every way a video can be broken or odd: named with a code, or read right; no frame stands in for another."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from smalti.data import BadFileLog, VideosConfig, evaluation, open_video, read_clip, write_video
from smalti.errors import BadFile, ConfigError, InputError, MachineError
from tests.containers import turned

RATE = 25


def make_video(
    path: Path,
    count: int = 32,
    size: tuple[int, int] = (48, 64),
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 8,
    pts: Sequence[int] | None = None,
    movflags: str = "",
    setup: object = None,
) -> Path:
    """A video whose frame i is grey of level 7 i, with a white upper left corner."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.options = {"g": str(gop)}
        if setup:
            setup(stream)
        for i in range(count):
            picture = np.full((*size, 3), 7 * i % 256, np.uint8)
            picture[: size[0] // 4, : size[1] // 4] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = (pts[i] if pts else i), Fraction(1, 1000 if pts else RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for i in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def levels(path: Path) -> list[int]:
    with open_video(path) as reader:
        return [int(frame[-1, -1, 0]) for frame in reader.frames()]


def bad(path: Path) -> BadFile:
    with pytest.raises(BadFile) as caught, open_video(path) as reader:
        list(reader.frames())
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov", "a.avi", "a.webm", "a.gif"])
def test_every_container_gives_all_its_frames_in_order(name: str, tmp_path: Path) -> None:
    codec, pixels = {"a.avi": ("mpeg4", "yuv420p"), "a.webm": ("libvpx", "yuv420p"), "a.gif": ("gif", "rgb8")}.get(
        name, ("libx264", "yuv420p")
    )
    path = make_video(tmp_path / name, codec=codec, pixels=pixels)
    found = levels(path)
    assert len(found) == 32
    assert np.abs(np.array(found) - 7 * np.arange(32)).max() <= (40 if name == "a.gif" else 8)
    with open_video(path) as reader:
        assert reader.fps == pytest.approx(RATE, rel=0.01)
        assert reader.size == (48, 64)


def test_cut_files_are_named(tmp_path: Path) -> None:
    moov_last = make_video(tmp_path / "a.mp4").read_bytes()
    for part in (0.2, 0.6, 0.9):
        (tmp_path / "cut.mp4").write_bytes(moov_last[: int(len(moov_last) * part)])
        assert bad(tmp_path / "cut.mp4").code == "cut"
    moov_first = make_video(tmp_path / "b.mp4", movflags="+faststart").read_bytes()
    for part in (0.5, 0.8, 0.98):
        (tmp_path / "cut.mp4").write_bytes(moov_first[: int(len(moov_first) * part)])
        assert bad(tmp_path / "cut.mp4").code in ("cut", "corrupt", "no-frames")
    mkv = make_video(tmp_path / "a.mkv", count=200).read_bytes()
    for part in (0.3, 0.5, 0.9):
        (tmp_path / "cut.mkv").write_bytes(mkv[: int(len(mkv) * part)])
        error = bad(tmp_path / "cut.mkv")
        assert error.code == "cut"
        assert f" of {len(mkv):,} bytes" in error.message


def test_empty_text_pipes_and_pointers_have_their_own_codes(tmp_path: Path) -> None:
    cases = {
        "empty": b"",
        "format": b"plain text " * 50,
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for code, data in cases.items():
        (tmp_path / "a.mp4").write_bytes(data)
        assert bad(tmp_path / "a.mp4").code == code
    os.mkfifo(tmp_path / "pipe.mp4")
    started = time.monotonic()
    assert bad(tmp_path / "pipe.mp4").code == "not-a-file"
    assert bad(tmp_path / "absent.mp4").code == "missing"
    assert time.monotonic() - started < 5


def test_playlists_and_addresses_are_not_followed(tmp_path: Path) -> None:
    make_video(tmp_path / "real.ts")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nreal.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile real.ts\n")
    assert bad(tmp_path / "list.m3u8").code == "format"
    assert bad(tmp_path / "list.mp4").code == "format"
    for address in ("http://127.0.0.1:9/a.mp4", "pipe:0", "concat:a.ts|b.ts"):
        assert bad(Path(address)).code == "missing"


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    assert bad(sound(tmp_path / "a.m4a")).code == "no-video"
    assert bad(sound(tmp_path / "a.mp4")).code == "no-video"


def test_cover_art_is_no_video() -> None:
    path = Path(__file__).parent / "repro" / "cover_art.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    assert bad(path).code == "no-video"


def remux(source: Path, target: Path, drop: int) -> Path:
    """Copy the packets without the first `drop` of them."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            if number >= drop:
                packet.stream = stream
                new.mux(packet)
    return target


def test_a_video_without_a_keyframe_is_named(tmp_path: Path) -> None:
    path = remux(make_video(tmp_path / "a.mkv", codec="mpeg4", gop=100), tmp_path / "b.mkv", drop=1)
    assert bad(path).code == "no-keyframe"


def test_a_video_that_starts_between_keyframes_begins_at_the_first_one(tmp_path: Path) -> None:
    path = remux(make_video(tmp_path / "a.mkv", codec="mpeg4", gop=8), tmp_path / "b.mkv", drop=3)
    found = levels(path)
    assert len(found) < 32 - 3
    assert np.abs(np.array(found) - 7 * np.arange(32 - len(found), 32)).max() <= 8


def test_damage_gives_right_frames_or_a_bad_file(tmp_path: Path) -> None:
    data = make_video(tmp_path / "a.mp4", size=(64, 96)).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(25):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 20):
            broken[at] ^= int(rng.integers(1, 256))
        (tmp_path / "b.mp4").write_bytes(bytes(broken))
        with suppress(BadFile), open_video(tmp_path / "b.mp4", max_pixels=1_000_000) as reader:
            assert len(list(reader.frames())) == len(reader)


def test_one_frame_is_a_video_and_short_ones_follow_the_option(tmp_path: Path) -> None:
    make_video(tmp_path / "one.mp4", 1)
    make_video(tmp_path / "three.mp4", 3)
    repeat = VideosConfig(path=tmp_path, frames=5, size=None, flip=False).build()
    rng = torch.Generator().manual_seed(0)
    assert [round(int(frame[-1, -1, 0]) / 7) for frame in repeat.load(1, rng)] == [0, 1, 2, 2, 2]
    assert repeat.load(0, rng).shape == (5, 48, 64, 3)
    faults: list[BadFile] = []
    skip = VideosConfig(path=tmp_path, frames=5, size=None, short="skip").build()
    with pytest.raises(InputError, match="all 2 files"):
        list(evaluation(skip, on_bad=faults.append))
    assert [fault.code for fault in faults] == ["short", "short"]
    with pytest.raises(BadFile, match="3 frames"):
        read_clip(tmp_path / "three.mp4", 5)


CORNERS = {(90, False): "ll", (180, False): "lr", (270, False): "ur", (0, True): "ur"}


@pytest.mark.parametrize(("turn", "mirror"), CORNERS)
def test_rotation_and_mirroring_are_applied(turn: int, mirror: bool, tmp_path: Path) -> None:
    path = turned(make_video(tmp_path / "a.mp4", 3), turn, mirror)
    with open_video(path) as reader:
        assert reader.size == ((64, 48) if turn in (90, 270) else (48, 64))
        frame = next(reader.frames())
        assert frame.shape[:2] == reader.size
    corner = CORNERS[turn, mirror]
    assert frame[2 if corner[0] == "u" else -3, 2 if corner[1] == "l" else -3, 0] > 230


@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("size", [(47, 63), (48, 64)])
def test_odd_sizes_and_ten_bits_are_read(pixels: str, size: tuple[int, int], tmp_path: Path) -> None:
    if pixels == "yuv420p10le" and size[0] % 2:
        pytest.skip("4:2:0 has no odd sizes")
    found = levels(make_video(tmp_path / "a.mp4", 8, size, pixels=pixels))
    assert np.abs(np.array(found) - 7 * np.arange(8)).max() <= 6


def test_hidden_frames_of_vp8_are_no_frames(tmp_path: Path) -> None:
    make_video(tmp_path / "a.webm", 36, codec="libvpx", gop=100)
    with av.open(str(tmp_path / "a.webm")) as old, av.open(str(tmp_path / "b.webm"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            if number in (10, 20, 35):
                data[0] &= ~0x10  # the bit that shows the frame
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            new.mux(copy)
    found = levels(tmp_path / "b.webm")
    expected = [7 * i for i in range(36) if i not in (10, 20, 35)]
    assert np.abs(np.array(found) - expected).max() <= 10


@pytest.mark.parametrize(("curve", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_by_name(curve: int, name: str, tmp_path: Path) -> None:
    def hdr(stream: av.VideoStream) -> None:
        stream.codec_context.color_trc = curve

    error = bad(make_video(tmp_path / "a.mp4", 3, pixels="yuv420p10le", setup=hdr))
    assert error.code == "hdr"
    assert name in error.message


def test_large_frames_are_refused_by_their_declared_size(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="64 x 48") as caught:
        open_video(make_video(tmp_path / "a.mp4", 3), max_pixels=64 * 48 - 1)
    assert caught.value.code == "bomb"


def test_a_change_of_size_is_never_passed_over(tmp_path: Path) -> None:
    parts = [make_video(tmp_path / f"{h}.ts", 12, (h, 64)).read_bytes() for h in (48, 32)]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    assert bad(tmp_path / "both.ts").code in ("size-change", "timestamps")


def test_a_file_that_grows_a_second_stream_keeps_to_the_first(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=RATE) for _ in range(2)]
        for stream, height in zip(streams, (48, 32), strict=True):
            stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
        for i in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.zeros((stream.height, 64, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, RATE)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert read_clip(tmp_path / "a.mkv").shape == (5, 48, 64, 3)


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff\n,:name.mp4")
    os.rename(make_video(tmp_path / "a.mp4", 3), strange)  # noqa: PTH104 - the name is no text
    assert read_clip(strange, 3).shape == (3, 48, 64, 3)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def frames() -> object:
        yield torch.zeros(16, 16, 3, dtype=torch.uint8)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_video(tmp_path / "a.mp4", frames(), 24)
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], 24)
    with pytest.raises(InputError, match="frame 1"):
        write_video(tmp_path / "a.mp4", [np.zeros((s, 16, 3), np.uint8) for s in (16, 18)], 24)
    with pytest.raises(ConfigError, match="written as"):
        write_video(tmp_path / "a.xyz", [], 24)
    with pytest.raises(MachineError):
        write_video(Path("/dev/null/a.mp4"), [np.zeros((16, 16, 3), np.uint8)], 24)
    assert list(tmp_path.iterdir()) == []


def test_a_log_names_each_bad_file_once_across_restarts(tmp_path: Path) -> None:
    log = BadFileLog(tmp_path / "run" / "bad_files.jsonl")
    (tmp_path / "x.mp4").write_bytes(b"12345")
    first, second = BadFile(tmp_path / "x.mp4", "cut", "ends early"), BadFile("gone.mp4", "missing", "no such file")
    for fault in (first, second, first, second, first):
        log(fault)
    assert log.total == 2
    again = BadFileLog(log.path)
    again(first)
    assert again.counts == {"cut": 1, "missing": 1}
    assert again.summary() == "2 bad files: 1 cut, 1 missing"
    rows = [__import__("json").loads(line) for line in log.path.read_text().splitlines()]
    assert [(row["code"], row["bytes"]) for row in rows] == [("cut", 5), ("missing", None)]


@pytest.mark.slow
def test_streaming_3000_frames_takes_no_more_memory_than_300(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 3000):
        path = make_video(tmp_path / f"{count}.mp4", count, (360, 640), gop=50)
        program = f"""
import resource
from smalti.data import open_video
with open_video({str(path)!r}) as reader:
    assert sum(1 for _ in reader.frames()) == {count}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        peaks.append(int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 16_000, f"peak RSS {peaks} kB"  # the frames themselves would be 1,870,000 kB
