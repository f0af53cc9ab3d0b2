"""Clips and video files: which frames make a clip, and that any frame is the same however it is reached."""

import gc
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data import VideosConfig, bundled, open_video, read_clip, write_video
from smalti.data.clips import clip_indices
from smalti.data.video_reader import scaled_by_swscale
from smalti.data.views import ViewConfig, viewed
from tests.containers import turned

PLACES = st.floats(0, 1)


def moving(count: int = 30, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    """Frames `t h w 3`: a smooth image that moves to the right."""
    x = torch.linspace(0, 6, size[1] + count)
    row = 127 + 100 * torch.sin(x)
    frames = torch.stack([row[i : i + size[1]].expand(size[0], -1) for i in range(count)])
    return frames[..., None].expand(-1, -1, -1, 3).to(torch.uint8).contiguous()


def encode(path: Path, frames: torch.Tensor, pts: list[int], codec: str = "libx264", **options: str) -> Path:
    """Frames with time stamps in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = options
        for pixels, time in zip(frames, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), PLACES)
@settings(max_examples=100, deadline=None)
def test_a_clip_by_stride_is_evenly_spaced_inside_the_video(
    length: int, frames: int, stride: int, place: float
) -> None:
    times = [i / 24 for i in range(length)]
    indices, is_short = clip_indices(times, frames, stride=stride, place=place)
    assert len(indices) == frames
    assert is_short == ((frames - 1) * stride + 1 > length)
    assert indices[0] >= 0
    assert indices == [min(indices[0] + i * stride, length - 1) for i in range(frames)]
    if not is_short:
        assert indices[-1] == indices[0] + (frames - 1) * stride


def test_every_start_comes_equally_often() -> None:
    times = [i / 24 for i in range(20)]
    starts = [clip_indices(times, 17, place=p).indices[0] for p in np.linspace(0, 1, 4000, endpoint=False)]
    assert np.bincount(starts).tolist() == [1000] * 4
    assert clip_indices(times, 17, place=1.0).indices[0] == 3
    assert clip_indices(times, 17, place=0.0).indices[0] == 0


@given(st.lists(st.integers(5, 200), min_size=1, max_size=50), st.integers(1, 12), st.integers(1, 60), PLACES)
@settings(max_examples=100, deadline=None)
def test_a_clip_by_rate_takes_the_nearest_frame_in_time(gaps: list[int], frames: int, fps: int, place: float) -> None:
    times = [t / 1000 for t in np.cumsum([0, *gaps])]
    indices, is_short = clip_indices(times, frames, fps=fps, place=place)
    start = place * max(0.0, times[-1] - (frames - 1) / fps)
    for i, index in enumerate(indices):
        wanted = start + i / fps
        assert abs(times[index] - wanted) <= min(abs(t - wanted) for t in times) + 1e-9
    assert indices == sorted(indices)
    assert is_short or start + (frames - 1) / fps <= times[-1] + max(gaps) / 1000


def test_a_variable_rate_is_sampled_by_time_within_half_a_frame(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pts = np.cumsum([0, *generator.integers(20, 90, 59)]).tolist()
    frames = torch.stack([torch.full((32, 32, 3), 4 * i, dtype=torch.uint8) for i in range(60)])
    path = encode(tmp_path / "vfr.mkv", frames, pts, crf="1")
    with open_video(path) as reader:
        assert np.allclose(reader.times, np.array(pts) / 1000, atol=0.0011)
    clip = read_clip(path, 20, fps=10)
    found = np.rint(clip[:, 16, 16, 0].numpy() / 4).astype(int)
    for i, index in enumerate(found):
        gap = max(pts[min(index + 1, 59)] - pts[index], pts[index] - pts[max(index - 1, 0)])
        assert abs(pts[index] - 100 * i) <= gap / 2 + 2


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "9", "bf": "3"}),
        ("a.mp4", "libx264", {"g": "10", "bf": "2", "x264-params": "open-gop=1"}),
        ("a.mkv", "libx264", {"g": "100"}),
        ("a.webm", "libvpx-vp9", {"g": "7", "auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}),
        ("a.ts", "libx264", {"g": "8", "bf": "2"}),
        ("a.avi", "mpeg4", {"g": "6"}),
        ("a.avi", "mpeg4", {"g": "12", "bf": "2"}),
        ("a.mkv", "ffv1", {}),
    ],
)
def test_any_frame_is_the_same_however_it_is_reached(name: str, codec: str, options: dict, tmp_path: Path) -> None:
    path = encode(tmp_path / name, moving(), [40 * i for i in range(30)], codec, **options)
    with open_video(path) as reader:
        whole = list(reader.frames())
        assert len(whole) == len(reader) == 30
        for start in (29, 0, 17, 8, 9, 20):
            assert torch.equal(next(reader.at([start])), whole[start])
        strided = list(reader.frames(3, 28, 4))
        assert all(torch.equal(a, b) for a, b in zip(strided, whole[3:28:4], strict=True))
        repeated = list(reader.at([4, 4, 11, 29, 29]))
        assert all(torch.equal(a, whole[i]) for a, i in zip(repeated, (4, 4, 11, 29, 29), strict=True))


def test_frames_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(5), 25)
    with open_video(tmp_path / "a.mp4") as reader:
        for wrong in ([5], [-1], [3, 2], [0, 99]):
            with pytest.raises(IndexError):
                list(reader.at(wrong))
        assert list(reader.at([])) == []


@pytest.mark.parametrize("size", [(32, 48), (31, 48), (32, 47), (33, 35), (2, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_written_video_reads_back_at_its_size_and_rate(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    frames = moving(9, size)
    path = tmp_path / "new" / f"a{suffix}"
    assert write_video(path, iter(frames), 23.976, crf=4) == 9
    with open_video(path) as reader:
        assert reader.size == size
        assert reader.fps == pytest.approx(23.976, rel=0.02)
        assert torch.stack(list(reader.frames())).sub(0.0).sub(frames).abs().mean() < 4
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_colours_come_back_through_the_file(tmp_path: Path) -> None:
    colours = torch.tensor([[200, 40, 30], [20, 180, 60], [30, 60, 220], [240, 230, 20]], dtype=torch.uint8)
    frames = colours.repeat_interleave(16, 0).expand(3, 16, 64, 3).contiguous()
    write_video(tmp_path / "a.mp4", frames, 24, crf=1)
    found = read_clip(tmp_path / "a.mp4")[1, 8, 8::16]
    assert (found.float() - colours.float()).abs().max() <= 3


def test_all_frames_of_a_clip_share_one_view(tmp_path: Path) -> None:
    still = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    big = still.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(9, -1, -1, -1).contiguous()
    write_video(tmp_path / "a.mkv", big, 25, crf=0)
    source = VideosConfig(path=tmp_path, frames=5, size=32).build()
    for seed in range(5):
        clip = source.load(0, torch.Generator().manual_seed(seed)).float()
        assert (clip - clip[:1]).abs().mean() < 2


def test_places_follow_the_option() -> None:
    video_file = bundled.videos("heldout") / "march.mp4"
    whole = read_clip(video_file)
    for sampling, start in (("first", 0), ("center", 12)):
        config = VideosConfig(path=video_file, frames=17, size=None, flip=False, sampling=sampling)
        assert torch.equal(config.build().load(0, torch.Generator().manual_seed(0)), whole[start : start + 17])
    drawn = VideosConfig(path=video_file, frames=17, size=None, flip=False).build()
    first = [drawn.load(0, torch.Generator().manual_seed(i))[0] for i in range(6)]
    starts = [next(i for i in range(25) if torch.equal(frame, whole[i])) for frame in first]
    assert len(set(starts)) > 3


def test_all_frames_and_a_stride_are_an_option() -> None:
    config = VideosConfig(path=bundled.videos("heldout") / "march.mp4", frames=None, stride=8, size=(18, 32))
    assert config.build().load(0, torch.Generator().manual_seed(0)).shape == (6, 18, 32, 3)


def test_a_frame_that_was_read_does_not_wait_for_the_garbage_collector(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", torch.zeros(60, 32, 32, 3, dtype=torch.uint8), 24)
    gc.collect()
    gc.disable()
    try:
        with open_video(tmp_path / "a.mp4") as reader:
            assert sum(1 for _ in reader.frames()) == 60
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) < 10
    finally:
        gc.enable()


WRITTEN = """
import hashlib, sys, torch
from smalti.data import write_video
rng, digest = torch.Generator().manual_seed(0), hashlib.sha256()
for height, width in ((32, 32), (64, 64), (96, 64), (128, 80), (96, 96), (96, 128)):
    for number in range(3):
        coarse = torch.rand(9, 3, 4, 4, generator=rng)
        frames = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").mul(120).add(60)
        write_video(sys.argv[1], iter(frames.permute(0, 2, 3, 1).to(torch.uint8)), 24, crf=12)
        digest.update(open(sys.argv[1], "rb").read())
print(digest.hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc fills fresh memory if asked")
def test_the_bytes_of_a_small_video_do_not_depend_on_what_fresh_memory_holds(tmp_path):
    found = set()
    for fill in ("0", "1", "170"):
        command = [sys.executable, "-c", WRITTEN, str(tmp_path / "a.mp4")]
        done = subprocess.run(command, env=os.environ | {"MALLOC_PERTURB_": fill}, capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


SWSCALE = {"crop_order": "after", "resize": "swscale-bicubic", "crop": "center", "flip": False}


@pytest.mark.parametrize("size", [(36, 60), (24, 24), (72, 130), (90, 150)])
def test_frames_scaled_as_their_colours_are_made_are_those_scaled_after(size, tmp_path):
    """Luma and chroma are scaled where else three channels are, so that rounding differs, and cut pixels."""
    write_video(tmp_path / "a.mp4", moving(6, (90, 150)), fps=25)
    with open_video(tmp_path / "a.mp4") as reader:
        wanted = [scaled_by_swscale(frame.numpy(), size).astype(int) for frame in reader.at([1, 1, 4])]
        found = [frame.numpy().astype(int) for frame in reader.at([1, 1, 4], size)]
        whole = list(reader.at([2]))
        assert torch.equal(next(reader.at([2], (90, 150))), whole[0])
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == (*size, 3)
        assert abs(a - b).max() <= 3
        assert abs((a - b).mean()) < 0.3


def test_frames_of_rgb_and_turned_ones_are_scaled_alike(tmp_path):
    write_video(tmp_path / "a.mp4", moving(3, (64, 96)), fps=25)
    for degrees, size in ((90, (48, 20)), (180, (20, 48))):
        shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
        with open_video(turned(tmp_path / "b.mp4", degrees)) as reader, open_video(tmp_path / "a.mp4") as plain:
            found = next(reader.at([1], size)).numpy()
            assert np.array_equal(found, np.rot90(next(plain.at([1], (20, 48))).numpy(), degrees // 90))
    with av.open(str(tmp_path / "rgb.mkv"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = 64, 96, "rgb24", {"qp": "0"}
        frame = moving(1, (64, 96))[0].numpy()
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with open_video(tmp_path / "rgb.mkv") as reader:
        assert np.array_equal(next(reader.at([0], (20, 48))).numpy(), scaled_by_swscale(frame, (20, 48)))


def test_clips_token_sets_and_reconstructions_see_the_same_scaled_frames(tmp_path):
    write_video(tmp_path / "a.mp4", moving(5, (64, 96)), fps=25)
    clip = VideosConfig(path=tmp_path, size=(32, 40), frames=5, **SWSCALE).build().load(0, torch.Generator())
    with open_video(tmp_path / "a.mp4") as reader:
        scaled = torch.stack(list(reader.at(range(5), (32, 48))))
        view = ViewConfig(size=(32, 40), **SWSCALE).view(reader.size, torch.Generator())
        assert torch.equal(torch.stack(list(viewed(reader, range(5), view))), clip)
    assert torch.equal(scaled[:, :, 4:44], clip)
