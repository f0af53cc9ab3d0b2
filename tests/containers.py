"""Files of every container and codec that PyAV can make here, and what its own decoder gives for them."""

import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

FRAMES = 24
EXACT = 4 | 1 << 13 | 1 << 18 | 1 << 19
"""Flags of swscale: bicubic, full_chroma_int, accurate_rnd, bitexact."""

_X264 = {"g": "8", "preset": "veryfast", "threads": "1"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=8:bframes=2:pools=none:frame-threads=1"}
_VPX = {"cpu-used": "8", "lag-in-frames": "8", "auto-alt-ref": "1", "deadline": "realtime", "g": "9"}
_DNXHR = {"profile": "dnxhr_lb"}

ENCODERS: dict[str, tuple[str, str, dict[str, str], tuple[int, int]]] = {
    "h264": ("libx264", "yuv420p", {**_X264, "bf": "2"}, (48, 64)),
    "h264 without B": ("libx264", "yuv420p", {**_X264, "bf": "0"}, (48, 64)),
    "h264 open GOP": ("libx264", "yuv420p", {**_X264, "bf": "2", "x264-params": "open-gop=1"}, (48, 64)),
    "h264 10 bits": ("libx264", "yuv420p10le", {**_X264, "bf": "2"}, (48, 64)),
    "hevc": ("libx265", "yuv420p", _X265, (48, 64)),
    "av1": ("libsvtav1", "yuv420p", {"preset": "12", "svtav1-params": "lookahead=4:lp=1"}, (64, 64)),
    "vp8": ("libvpx", "yuv420p", _VPX, (48, 64)),
    "vp9": ("libvpx-vp9", "yuv420p", _VPX, (48, 64)),
    "mpeg4": ("mpeg4", "yuv420p", {"g": "8"}, (48, 64)),
    "mpeg4 with B": ("mpeg4", "yuv420p", {"g": "8", "bf": "2"}, (48, 64)),
    "mpeg2": ("mpeg2video", "yuv420p", {"g": "8"}, (48, 64)),
    "mpeg2 with B": ("mpeg2video", "yuv420p", {"g": "8", "bf": "2"}, (48, 64)),
    "mpeg1": ("mpeg1video", "yuv420p", {"g": "8"}, (48, 64)),
    "mpeg1 with B": ("mpeg1video", "yuv420p", {"g": "8", "bf": "2"}, (48, 64)),
    "msmpeg4": ("msmpeg4", "yuv420p", {}, (48, 64)),
    "msmpeg4v2": ("msmpeg4v2", "yuv420p", {}, (48, 64)),
    "wmv1": ("wmv1", "yuv420p", {"g": "8"}, (48, 64)),
    "wmv2": ("wmv2", "yuv420p", {"g": "8"}, (48, 64)),
    "flv1": ("flv", "yuv420p", {"g": "8"}, (144, 176)),
    "h261": ("h261", "yuv420p", {}, (144, 176)),
    "h263": ("h263", "yuv420p", {"g": "8"}, (144, 176)),
    "rv20": ("rv20", "yuv420p", {}, (48, 64)),
    "mjpeg": ("mjpeg", "yuvj420p", {}, (48, 64)),
    "jpeg2000": ("jpeg2000", "yuv420p", {}, (48, 64)),
    "ffv1": ("ffv1", "yuv422p", {}, (48, 64)),
    "ffvhuff": ("ffvhuff", "yuv420p", {}, (48, 64)),
    "huffyuv": ("huffyuv", "yuv422p", {}, (48, 64)),
    "utvideo": ("utvideo", "yuv420p", {}, (48, 64)),
    "magicyuv": ("magicyuv", "yuv444p", {}, (48, 64)),
    "prores": ("prores_ks", "yuv422p10le", {}, (48, 64)),
    "dnxhd": ("dnxhd", "yuv422p", _DNXHR, (128, 256)),
    "cineform": ("cfhd", "yuv422p10le", {}, (48, 64)),
    "dv": ("dvvideo", "yuv420p", {}, (576, 720)),
    "snow": ("snow", "yuv420p", {"strict": "-2"}, (48, 64)),
    "svq1": ("svq1", "yuv410p", {}, (48, 64)),
    "cinepak": ("cinepak", "rgb24", {}, (48, 64)),
    "msvideo1": ("msvideo1", "rgb555le", {}, (48, 64)),
    "qtrle": ("qtrle", "rgb24", {}, (48, 64)),
    "rpza": ("rpza", "rgb555le", {"strict": "-2"}, (48, 64)),
    "flashsv": ("flashsv", "bgr24", {}, (48, 64)),
    "zmbv": ("zmbv", "bgr0", {}, (48, 64)),
    "png": ("png", "rgb24", {}, (48, 64)),
    "gif": ("gif", "rgb8", {}, (48, 64)),
    "rawvideo": ("rawvideo", "yuv420p", {}, (48, 64)),
    "v210": ("v210", "yuv422p10le", {}, (48, 96)),
}
"""(encoder, pixel format, options, (height, width)) by a name for people."""

_COMMON = ("h264", "h264 without B", "hevc", "av1", "vp9", "mpeg4", "mpeg4 with B", "mpeg2 with B", "mjpeg", "ffv1")
CONTAINERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mp4": ("mp4", (*_COMMON, "h264 open GOP", "h264 10 bits", "mpeg2", "mpeg1", "mpeg1 with B", "png", "jpeg2000")),
    "mov": ("mov", (*_COMMON[:3], "mpeg4 with B", "mjpeg", "prores", "dnxhd", "cineform", "qtrle", "png", "svq1",
                    "magicyuv", "h263", "v210", "dv", "msmpeg4")),
    "3gp": ("3gp", ("h264", "mpeg4", "h263")),
    "3g2": ("3g2", ("h264", "mpeg4")),
    "f4v": ("f4v", ("h264",)),
    "fragmented.mp4": ("ismv", ("h264", "hevc", "mjpeg")),
    "mkv": ("matroska", (*_COMMON, "h264 open GOP", "h264 10 bits", "vp8", "mpeg2", "mpeg1", "mpeg1 with B", "prores",
                         "snow", "rawvideo", "msmpeg4")),
    "webm": ("webm", ("vp8", "vp9", "av1")),
    "avi": ("avi", (*(name for name in _COMMON if name != "hevc"), "mpeg2",
                    "mpeg1 with B", "msmpeg4", "msmpeg4v2", "wmv2", "huffyuv", "ffvhuff", "utvideo",
                    "magicyuv", "cinepak", "msvideo1", "zmbv", "rawvideo", "h261", "snow", "dv", "cineform", "png")),
    "ts": ("mpegts", ("h264", "h264 without B", "h264 open GOP", "hevc", "mpeg4", "mpeg4 with B", "mpeg2",
                      "mpeg2 with B", "mpeg1", "mpeg1 with B")),
    "mpg": ("mpeg", ("mpeg2", "mpeg2 with B", "mpeg1", "mpeg1 with B", "h264", "h264 without B", "hevc")),
    "vob": ("vob", ("mpeg2", "mpeg2 with B")),
    "flv": ("flv", ("flv1", "h264", "h264 without B", "hevc", "av1", "vp9", "flashsv")),
    "asf": ("asf", ("wmv1", "wmv2", "msmpeg4", "h264", "h264 without B", "mpeg4", "mpeg4 with B", "mpeg2 with B",
                    "mpeg1 with B", "mjpeg", "rpza")),
    "ogg": ("ogg", ("vp8",)),
    "gif": ("gif", ("gif",)),
    "mxf": ("mxf", ("h264", "mpeg2 with B", "prores", "dnxhd", "jpeg2000", "dv", "ffv1")),
    "nut": ("nut", ("h264", "mpeg4 with B", "mpeg2 with B", "ffv1", "snow", "rpza", "rawvideo")),
    "ivf": ("ivf", ("vp8", "vp9", "av1")),
    "dv": ("dv", ("dv",)),
    "rm": ("rm", ("rv20",)),
    "wtv": ("wtv", ("mpeg2 with B", "h264")),
    "y4m": ("yuv4mpegpipe", ("rawvideo",)),
}  # fmt: skip
"""(muxer of FFmpeg, names of `ENCODERS`) by suffix."""

CASES = [(suffix, codec) for suffix, (_, codecs) in CONTAINERS.items() for codec in codecs]


class Decoded(NamedTuple):
    """The output of PyAV's decoder, from the first packet to the last, with one thread."""

    pts: list[int | None]
    pixels: list[np.ndarray]
    """8-bit RGB by swscale with exact rounding."""


def moving_frames(size: tuple[int, int], count: int = FRAMES) -> Iterator[np.ndarray]:
    """Coloured stripes that move, and a box over them; each frame differs from each other one."""
    y, x = np.mgrid[: size[0], : size[1]]
    for i in range(count):
        stripes = np.stack([(3 * x + 5 * i) % 256, (4 * y + 3 * i) % 256, (x + y + 9 * i) % 256], -1)
        frame = (64 + stripes // 2).astype(np.uint8)
        left = 2 * i % (size[1] // 2)
        frame[size[0] // 4 : size[0] // 2, left : left + size[1] // 4] = ((230 - 6 * i) % 256, (30 + 5 * i) % 256, 60)
        yield frame


def make_file(folder: Path, suffix: str, codec: str, count: int = FRAMES, **more: str) -> Path:
    """Write a file of this container and codec at 25 frames a second, with more options of the encoder."""
    muxer, (encoder, pixels, options, size) = CONTAINERS[suffix][0], ENCODERS[codec]
    path = folder / f"{codec.replace(' ', '-')}.{suffix}"
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(encoder, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.options, stream.codec_context.thread_count = {**options, **more}, 1
        for i, image in enumerate(moving_frames(size, count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path: Path, turn: int, mirror: bool = False) -> Path:
    """Write into an MP4 that players turn it counterclockwise by 0, 90, 180 or 270 degrees, then mirror it sideways.

    The matrix of the track's header (ISO/IEC 14496-12, 8.3.2); PyAV writes it since 18.
    """
    data = bytearray(path.read_bytes())
    assert data.count(b"tkhd") == 1
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    side = -1 if mirror else 1
    numbers = (side * cosine, -sine, 0, side * sine, cosine, 0, 0, 0)
    fields = data.index(b"tkhd") + 8  # after the type, the version and the flags
    start = fields + (20, 32)[data[fields - 4]] + 16
    struct.pack_into(">9i", data, start, *(number << 16 for number in numbers), 1 << 30)
    path.write_bytes(data)
    return path


def decoded_by_pyav(path: Path) -> Decoded:
    """Decode a whole file as PyAV does it by itself."""
    pts, pixels, reformatter = list[int | None](), list[np.ndarray](), VideoReformatter()
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            pts.append(frame.pts)
            rgb = reformatter.reformat(frame, format="rgb24", threads=1, interpolation=EXACT)
            pixels.append(rgb.to_ndarray())
    return Decoded(pts, pixels)


SITINGS = ("", "left", "topleft:interl=1")
"""Positions of chroma that ffmpeg's filter `scale` is told: it does not ask the frames, as swscale and smalti do, and
takes chroma in the middle unless it is told. H.264, HEVC and MPEG have it at the left pixels, DV at
the upper left and by field."""


def table(folder: Path, ffmpeg: str | None = None) -> Iterator[str]:
    """Yield the rows of a table in Markdown: counts, order, colours and times of smalti beside PyAV and ffmpeg."""
    from smalti.data import open_video

    yield "| container | codec | frames: smalti, PyAV, ffmpeg | largest difference: PyAV, ffmpeg | ms: smalti, PyAV |"
    yield "|---|---|---|---|---|"
    for suffix, codec in CASES:
        path = make_file(folder, suffix, codec)
        decoded_by_pyav(path)  # once before the clock runs, so that libraries are loaded and the file is in memory
        begin = time.perf_counter()
        with open_video(path) as reader:
            found = [frame.numpy() for frame in reader.frames()]
        middle = time.perf_counter()
        expected = decoded_by_pyav(path).pixels
        end = time.perf_counter()
        count, apart, place = "-", "-", ""
        for place in SITINGS if ffmpeg else ():
            other = _decoded_by_ffmpeg(ffmpeg or "", path, found[0].shape, place)
            count, apart = str(len(other)), str(_largest(found, list(other)))
            if int(apart) <= 1:
                break
        counts = [len(found), len(expected), count]
        apart = f"{_largest(found, expected)}, {apart}{place and f' ({place})'}"
        times = f"{1e3 * (middle - begin):.0f}, {1e3 * (end - middle):.0f}"
        yield f"| {suffix} | {codec} | {', '.join(map(str, counts))} | {apart} | {times} |"
        path.unlink()


def _largest(found: list[np.ndarray], expected: list[np.ndarray]) -> int:
    """The largest difference of a level over all frames, in their order."""
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(found, expected, strict=False))


def _decoded_by_ffmpeg(ffmpeg: str, path: Path, shape: tuple[int, ...], place: str = "") -> np.ndarray:
    scale = f"scale=flags=bicubic+accurate_rnd+full_chroma_int{place and f':in_chroma_loc={place}'},format=rgb24"
    command = [ffmpeg, "-v", "quiet", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    command += ["-vf", scale, "-f", "rawvideo", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, *shape)


if __name__ == "__main__":
    # python -m tests.containers [path of an ffmpeg]
    with tempfile.TemporaryDirectory() as made:
        for line in table(Path(made), *sys.argv[1:]):
            print(line, flush=True)
