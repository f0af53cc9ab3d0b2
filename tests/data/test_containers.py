"""Every container and codec that PyAV can make: the decoder's frames, all of them, in its order, however reached."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from smalti.data import open_video
from smalti.data.video_index import fill_times, pace_of
from smalti.errors import BadFile
from tests.containers import CASES, CONTAINERS, ENCODERS, FRAMES, decoded_by_pyav, make_file, turned

REPRO = Path(__file__).parent / "repro"


def check_against_decoder(path: Path, probes: tuple[int, ...] = (-1, 0, 9, 5, 16)) -> int:
    """The law of reading; returns the number of frames."""
    expected = decoded_by_pyav(path)
    with open_video(path) as reader:
        frames = [frame.numpy() for frame in reader.frames()]
        assert len(frames) == len(reader) == len(expected.pixels)
        for number, (frame, pixels) in enumerate(zip(frames, expected.pixels, strict=True)):
            assert np.array_equal(frame, pixels), f"frame {number}"
        for number in (n % len(frames) for n in probes):
            assert np.array_equal(next(reader.at([number])).numpy(), frames[number]), f"at({number})"
        assert all(after > before for before, after in pairwise(reader.pts))
        assert len(reader.times) == len(frames)
        return len(frames)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_frame_of_every_codec_comes_in_the_decoders_order(suffix: str, tmp_path: Path) -> None:
    for codec in CONTAINERS[suffix][1]:
        wanted = 6 if codec == "dv" else FRAMES  # whose frames are 720 x 576
        path = make_file(tmp_path, suffix, codec, wanted)
        try:
            count = check_against_decoder(path)
        except (AssertionError, BadFile) as error:
            raise AssertionError(f"{codec} in {suffix}: {error}") from error
        assert count >= wanted - 3, f"{codec} in {suffix}: {count} frames"
        path.unlink()


def test_there_are_sixty_kinds_of_files_and_more() -> None:
    assert len(CASES) >= 60
    assert {codec for _, codec in CASES} == set(ENCODERS)


@pytest.mark.parametrize(("name", "count"), [("14_untimed_packets.mkv", 20), ("17_gap.mp4", 20)])
def test_frames_without_time_stamps_and_beside_a_pause_are_all_there(name: str, count: int) -> None:
    assert check_against_decoder(REPRO / name) == count


def test_untimed_frames_get_times_between_their_neighbours() -> None:
    with open_video(REPRO / "14_untimed_packets.mkv") as reader:
        assert np.allclose(np.diff(reader.times), 0.1)
        assert reader.fps == pytest.approx(10)


def test_a_pause_is_no_part_of_the_frame_rate_and_is_said() -> None:
    with open_video(REPRO / "17_gap.mp4") as reader:
        assert reader.fps == pytest.approx(10)
        assert reader.times[-1] > 600
        assert reader.notes == ("1 pauses of 600.0 s together are left out",)


def test_filled_times_rise_and_keep_what_is_known() -> None:
    generator = np.random.default_rng(0)
    for trial in range(300):
        truth = np.cumsum(generator.integers(1, 9, 1 + trial % 30)).tolist()
        known = generator.random(len(truth)) < (trial % 5) / 4
        times = fill_times([t if k else None for t, k in zip(truth, known, strict=True)], Fraction(4))
        assert len(times) == len(truth)
        assert all(after > before for before, after in pairwise(times))
        if all(known):
            assert times == truth
    assert fill_times([None, None, 8, None, 16], Fraction(4)) == [0, 4, 8, 12, 16]
    assert fill_times([0, 8, 4, 12], Fraction(4)) == [0, 8, 10, 12]


def test_a_rate_is_the_mean_unless_there_are_pauses() -> None:
    for gaps in ([40] * 9, [33, 34, 33], [20, 90, 40, 60], [1000, 1500]):
        pts = np.cumsum([0, *gaps]).tolist()
        pace = pace_of(pts, Fraction(1, 1000), None)
        assert (pace.pauses, pace.fps) == (0, pytest.approx(len(gaps) / (sum(gaps) / 1000)))
    pace = pace_of([0, 40, 80, 5080, 5120, 9120], Fraction(1, 1000), None)
    assert (pace.pauses, pace.fps, pace.seconds) == (2, pytest.approx(25), pytest.approx(8.92))
    assert pace_of([0], Fraction(1, 1000), Fraction(30)).fps == 30
    assert pace_of([0, 1 << 60], Fraction(1, 1000), None).fps == 0.001


def test_a_film_whose_edit_list_hides_every_frame_is_named() -> None:
    with pytest.raises(BadFile, match="hides all 8 frames") as caught:
        open_video(REPRO / "03_all_packets_discarded.mp4")
    assert caught.value.code == "no-frames"


def stream_copied(source: Path, target: Path, start: float, seconds: float) -> None:
    """A clip as `ffmpeg -ss START -t SECONDS -c copy` makes it: whole packets from the keyframe before, the first ones
    before time 0, so that the muxer writes an edit list."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream, copy = old.streams.video[0], None
        old.seek(int(start / stream.time_base), stream=stream)
        copy = new.add_stream_from_template(stream)
        shift = int(start / stream.time_base)
        for packet in old.demux(stream):
            if packet.dts is None or packet.pts is None or packet.dts >= shift + int(seconds / stream.time_base):
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            new.mux(packet)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts"])
@pytest.mark.parametrize("gop", [8, 300])
def test_stream_copied_clips_are_whole(suffix: str, gop: int, tmp_path: Path) -> None:
    """With one keyframe far before, most packets of a clip are hidden, and the others end a frame or two before the
    duration that the head declares: such clips were refused as cut."""
    source = make_file(tmp_path, "mp4", "h264", count=200, g=str(gop))
    generator = np.random.default_rng(1)
    read = 0
    for _ in range(8):
        start, seconds = generator.uniform(3, 6), generator.uniform(0.3, 1)
        target = tmp_path / f"clip.{suffix}"
        stream_copied(source, target, start, seconds)
        if decoded_by_pyav(target).pixels:
            read += bool(check_against_decoder(target, probes=(-1, 0)))
        else:
            with pytest.raises(BadFile) as caught:
                open_video(target)
            assert caught.value.code == "no-frames"
    assert read >= 5


def test_dropped_packets_are_counted_by_reason(tmp_path: Path) -> None:
    source = make_file(tmp_path, "mkv", "mpeg4 with B")
    with av.open(str(source)) as old, av.open(str(tmp_path / "late.mkv"), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in old.demux(stream) if p.size):
            if number >= 3:
                packet.stream = copy
                new.mux(packet)
    with open_video(tmp_path / "late.mkv") as reader:
        left_out = reader.dropped["before the first keyframe"]
        assert left_out >= 4
        assert len(reader) == 24 - 3 - left_out
        assert len(list(reader.frames())) == len(reader)
        assert str(left_out) in reader.notes[0]


def test_anamorphic_film_keeps_its_pixels_and_says_their_shape(tmp_path: Path) -> None:
    with open_video(REPRO / "11_anamorphic.mp4") as reader:
        assert reader.pixel_aspect == Fraction(16, 15)
    for turn, expected in ((0, Fraction(4, 3)), (90, Fraction(3, 4)), (180, Fraction(4, 3)), (270, Fraction(3, 4))):
        path = tmp_path / f"{turn}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
            for _ in range(2):
                frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with open_video(turned(path, turn)) as reader:
            assert reader.pixel_aspect == expected


def test_bytes_are_read_as_the_file_is(tmp_path: Path) -> None:
    from smalti.data.video_reader import VideoReader

    for suffix, codec in (("mp4", "h264"), ("mpg", "h264"), ("gif", "gif"), ("ts", "mpeg2 with B")):
        path = make_file(tmp_path, suffix, codec)
        with open_video(path) as file, VideoReader(path.read_bytes()) as data:
            assert file.pts == data.pts
            for number in (20, 0, 7):
                assert torch.equal(next(file.at([number])), next(data.at([number])))
