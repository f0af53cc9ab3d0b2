"""Reading video: an index of what is really in the file, then frames by number, in constant memory."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from io import BytesIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from smalti.data.source import MAX_PIXELS, open_media
from smalti.errors import BadFile
from smalti.text import one_line, printable

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif,flv,asf,ogg"
"""Demuxers of FFmpeg that may open a file. Playlists (hls, concat, dash) name other files, so they may not."""

_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


class _Index(NamedTuple):
    pts: list[int]
    """Presentation times of the frames that can be decoded, rising, in units of the stream's time base."""
    keyframes: list[int]


class VideoReader:
    """Frames of one video, upright, 8-bit RGB. Use it in a `with` block; see `open_video`."""

    def __init__(self, media: Path | bytes, max_pixels: int = MAX_PIXELS, name: str | None = None) -> None:
        self._name = name or (printable(media) if isinstance(media, Path) else "video")
        if isinstance(media, Path):
            open_media(media).close()  # the checks that all media share
        elif not media:
            raise BadFile(self._name, "empty", "has no bytes; write it again")
        self._container = _open(f"file:{media}" if isinstance(media, Path) else BytesIO(media), self._name)
        try:
            self._stream = _choose_stream(self._container, self._name)
            self._index = _index(self._container, self._stream, self._name)
            context = self._stream.codec_context
            context.thread_count = 1  # threaded decoding beside torch's threads can hang
            self._stream.thread_type = "NONE"
            self._reformatter = VideoReformatter()
            if context.width * context.height > max_pixels:
                what = f"declares frames of {context.width} x {context.height} pixels, at most {max_pixels:,} are read"
                raise BadFile(self._name, "bomb", what)
            if context.color_trc in _HDR:
                what = f"is HDR ({_HDR[context.color_trc]}), which has no single 8-bit form; tone-map it first"
                raise BadFile(self._name, "hdr", what)
            self.size = self._first_size()
        except BaseException:
            self._container.close()
            raise

    size: tuple[int, int]
    """Height and width of the upright frame."""
    _matrix: tuple[int, int, int, int]
    """Display transform, as declared by the first frame."""

    def __len__(self) -> int:
        """Return the number of frames, counted: headers may be wrong."""
        return len(self._index.pts)

    @property
    def pts(self) -> list[int]:
        """Return the presentation time of each frame, in units of `time_base`."""
        return self._index.pts

    @property
    def time_base(self) -> Fraction:
        """Return the seconds of one unit of `pts`."""
        return self._stream.time_base or Fraction(1, 90_000)

    @property
    def times(self) -> list[float]:
        """Return the presentation time of each frame, in seconds after the first."""
        base, first = float(self._stream.time_base or 0), self._index.pts[0]
        return [(pts - first) * base for pts in self._index.pts]

    @property
    def fps(self) -> float:
        """Return the mean frame rate, from the time stamps; the declared rate where there is one frame."""
        pts = self._index.pts
        if len(pts) > 1 and self._stream.time_base:
            return (len(pts) - 1) / float((pts[-1] - pts[0]) * self._stream.time_base)
        return float(self._stream.average_rate or 1)

    @property
    def pixel_aspect(self) -> Fraction:
        """Return the width of a pixel over its height, as declared. Frames are returned as stored, not stretched."""
        return self._stream.sample_aspect_ratio or Fraction(1)

    def frames(self, start: int = 0, stop: int | None = None, stride: int = 1) -> Iterator[Tensor]:
        """Yield frames start, start + stride, ... below `stop`, each uint8 `h w 3`, in constant memory."""
        end = len(self) if stop is None else min(stop, len(self))
        return self.at(range(start, end, stride))

    def at(self, indices: Iterable[int]) -> Iterator[Tensor]:
        """Yield the frames of these numbers, which must not fall; a number may repeat. Each is uint8 `h w 3`.

        Decoding starts at the last keyframe before the first number. A packet without an image (a hidden frame,
        a dropped frame of AVI) repeats the frame before it, as ffplay does, in at most one packet of twenty. Raises
        BadFile where more are missing, or a frame is damaged or of another size than the first.
        """
        queue = self._checked(indices)
        target = next(queue, None)
        if target is None:
            return
        current, pixels, decoded, missing = -1, None, 0, 0
        latest: VideoFrame | None = None
        for index, frame in chain(self._decoded_from(target), ((len(self), None),)):
            while target < index or (target == index and frame is not None):
                if target == index:
                    current, latest, pixels = index, frame, None
                missing += current != target
                if latest is None or missing > 1 + 0.05 * decoded:
                    what = f"frame {target} of {len(self)} cannot be decoded; copy the file again"
                    raise BadFile(self._name, "corrupt", what)
                pixels = self._pixels(current, latest) if pixels is None else pixels
                yield pixels
                target = next(queue, None)
                if target is None:
                    return
            current, latest, pixels, decoded = index, frame, None, decoded + 1

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, indices: Iterable[int]) -> Iterator[int]:
        last = 0
        for index in indices:
            if not last <= index < len(self):
                raise IndexError(f"{self._name}: frame {index} after {last}, of {len(self)} frames")
            yield (last := index)

    def _decoded_from(self, index: int) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (number, frame) in the order of presentation, from a keyframe at or before `index`."""
        pts, keyframes = self._index
        last = max(0, bisect_right(keyframes, pts[index]) - 1)
        try:
            for start in (keyframes[last], keyframes[max(0, last - 1)], min(pts[0], 0)):
                self._container.seek(start, stream=self._stream, backward=True)
                decoded = self._container.decode(self._stream)
                first = next(decoded, None)
                if first is not None and _time(first) <= pts[index]:
                    break  # else the seek went too far, as it does in MPEG-TS, which has no table of keyframes
            number = -1
            for frame in chain(() if first is None else (first,), decoded):
                number = max(number + 1, bisect_left(pts, _time(frame)))
                yield number, frame
        except av.FFmpegError as error:
            raise BadFile(self._name, "corrupt", f"cannot be decoded: {one_line(error.strerror)}") from None

    def _pixels(self, index: int, frame: VideoFrame) -> Tensor:
        if frame.is_corrupt:
            raise BadFile(self._name, "corrupt", f"frame {index} of {len(self)} is damaged; copy the file again")
        # One thread: a scaler with threads that is alive at a fork hangs the child when it frees it (measured).
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        pixels = _upright(rgb.to_ndarray(), self._matrix)
        if pixels.shape[:2] != self.size:
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            what = f"frame {index} is {size}, the first {self.size[1]} x {self.size[0]}; split the file"
            raise BadFile(self._name, "size-change", what)
        return torch.from_numpy(pixels)

    def _first_size(self) -> tuple[int, int]:
        for _, frame in self._decoded_from(0):
            # Of one frame alone: a frame whose side data have been looked at holds itself, and some hundreds of them
            # lie in memory until Python looks for such circles.
            self._matrix = _display_matrix(frame)
            shape = _upright(np.empty((frame.height, frame.width, 0), np.uint8), self._matrix).shape
            return shape[0], shape[1]
        raise BadFile(self._name, "no-frames", "has no frame that can be decoded")


def open_video(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> VideoReader:
    """Open a video file: count its frames from the packets, and check that it is whole.

    The first pass reads packets and decodes nothing (some 300 MB/s); it finds what headers do not tell: the true
    number of frames, their times, where the keyframes are, and whether the file was cut. Rotation and mirroring are
    applied. Only local files are opened, and playlists are not followed. Raises BadFile with one of the codes
    missing, not-a-file, empty, permission, unreadable, lfs-pointer, format, no-video (audio or cover art only),
    no-frames, no-keyframe, cut, timestamps, corrupt, bomb, hdr, size-change.
    """
    return VideoReader(Path(path), max_pixels)


def _open(file: str | BytesIO, name: str) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        return av.open(file, "r", options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise BadFile(name, "format", f"not a whole video file: {one_line(error.args[1])}; copy it again") from None


def _choose_stream(container: InputContainer, name: str) -> VideoStream:
    if all(s.type not in ("video", "audio", "subtitle") for s in container.streams):
        raise BadFile(name, "format", "not a whole video file: its streams are of no known kind; copy it again")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise BadFile(name, "no-video", "has no video stream (audio or cover art only)")
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def _index(container: InputContainer, stream: VideoStream, name: str) -> _Index:
    """Read all packets once. Raises BadFile where the file was cut or holds no frame that can be decoded."""
    pts, keyframes, count, end = [], [], 0, 0.0
    try:
        for packet in container.demux():
            time = packet.dts if packet.pts is None else packet.pts
            if time is None or packet.is_corrupt:  # the end mark of a stream, or a packet cut in the middle
                continue
            if packet.stream.codec_context.name == "vp8" and packet.size and not bytes(packet)[0] & 0x10:
                continue  # a hidden frame, which only serves as a reference (RFC 6386, 9.1)
            end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            count += 1
            if packet.is_keyframe:
                keyframes.append(time)
            if keyframes and time >= keyframes[0] and not packet.is_discard:
                pts.append(time)
    except av.FFmpegError as error:
        raise BadFile(
            name, "corrupt", f"cannot be read to its end: {one_line(error.strerror)}; copy it again"
        ) from None
    if not count:
        raise BadFile(name, "no-frames", "its video stream has no frames")
    if not keyframes:
        raise BadFile(name, "no-keyframe", "has no keyframe to start decoding at; cut it at a keyframe")
    declared = (container.duration or 0) / av.time_base
    seconds = end - min(0, container.start_time or 0) / av.time_base
    if "mp4" in container.format.name and count < stream.frames:  # its table of frames is exact
        raise BadFile(name, "cut", f"holds {count} of {stream.frames} frames; copy it again")
    if seconds < declared - 2 * seconds / count - 0.005 * declared:
        raise BadFile(name, "cut", f"ends after {seconds:.2f} of {declared:.2f} seconds; copy it again")
    doubles = len(pts) - len(set(pts))
    if doubles > 1 + 0.05 * len(pts):
        what = f"{doubles} of {len(pts)} frames share a time stamp (files joined?); write it anew"
        raise BadFile(name, "timestamps", what)
    pts.sort()
    for i in range(1, len(pts)):  # AVI guesses times, and gives the last two frames the same one
        pts[i] = max(pts[i], pts[i - 1] + 1)
    return _Index(pts, sorted(keyframes))


def _time(frame: VideoFrame) -> int:
    return frame.pts if frame.pts is not None else (frame.dts or 0)


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of the display transform x' = a x + c y, y' = b x + d y, as signs and zeros."""
    data: Any = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]  # its stub says str
    if data is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    return (a, b, c, d)


def _upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Apply a display transform, which is a flip, a quarter turn or both; other angles go to the nearest of these."""
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    if across < 0:
        pixels = pixels[:, ::-1]
    if down < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
