"""Reading video: an index of what is really in the file, then frames by number, in constant memory; and their pixels:
between the planes of a codec and 8-bit RGB, with swscale's exact arithmetic, and upright."""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from io import BytesIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from smalti.data.containers import HEAD_BYTES, Ending, ending_of, foreign_kind
from smalti.data.source import MAX_PIXELS, open_media
from smalti.data.video_index import EVER, decoded, decoder_faults, make_index, pace_of
from smalti.errors import BadFile
from smalti.text import one_line, printable

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif,flv,asf,ogg,mxf,nut,ivf,dv,rm,wtv,yuv4mpegpipe"
"""Demuxers of FFmpeg that may open a file. Playlists (hls, concat, dash) name other files, so they may not."""

_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


class VideoReader:
    """Frames of one video, upright, 8-bit RGB. Use it in a `with` block; see `open_video`."""

    def __init__(self, media: Path | bytes, max_pixels: int = MAX_PIXELS, name: str | None = None) -> None:
        self._name = name or (printable(media) if isinstance(media, Path) else "video")
        self._media, self._max_pixels = media, max_pixels
        self._reformatter = VideoReformatter()
        ending = _ending_of(media, self._name)
        if ending.is_cut:
            raise BadFile(self._name, "cut", f"{ending.what}, so it was cut; copy it again")
        self._container, self._stream, self._index = make_index(self._open, self._name, ends_whole=ending.is_known)
        try:
            self.size = self._first_size()
        except BaseException:
            self._container.close()
            raise

    size: tuple[int, int]
    """Height and width of the upright frame, in pixels as they are stored."""
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
        base, first = float(self.time_base), self._index.pts[0]
        return [(pts - first) * base for pts in self._index.pts]

    @property
    def fps(self) -> float:
        """Return the mean frame rate, from the time stamps without pauses; the declared rate where there is one frame.

        A pause is a gap of more than a second and of ten times the usual gap.
        """
        return pace_of(self._index.pts, self._stream.time_base, self._stream.average_rate).fps

    @property
    def pixel_aspect(self) -> Fraction:
        """Return the width of an upright pixel over its height, as declared. Frames are as stored, not stretched.

        A ratio above 10 or below 1/10 is damage, and taken as 1.
        """
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        aspect = aspect if Fraction(1, 10) <= aspect <= 10 else Fraction(1)
        return 1 / aspect if is_turned(self._matrix) else aspect

    @property
    def dropped(self) -> dict[str, int]:
        """Return the number of packets that give no frame, by reason: `hidden` (by an edit list), `empty` (the frame
        before is shown longer), `before the first keyframe`."""
        return self._index.dropped

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what frames at a constant rate do not show of the file, in words: what is dropped, and pauses."""
        notes = [f"{count:,} packets without a frame ({reason})" for reason, count in self.dropped.items()]
        pace = pace_of(self._index.pts, self._stream.time_base, self._stream.average_rate)
        if pace.pauses:
            notes.append(f"{pace.pauses:,} pauses of {pace.seconds:,.1f} s together are left out")
        return tuple(notes)

    def frames(self, start: int = 0, stop: int | None = None, stride: int = 1) -> Iterator[Tensor]:
        """Yield frames start, start + stride, ... below `stop`, each uint8 `h w 3`, in constant memory."""
        end = len(self) if stop is None else min(stop, len(self))
        return self.at(range(start, end, stride))

    def at(self, indices: Iterable[int], size: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """Yield the frames of these numbers, which must not fall; a number may repeat. Each is uint8 `h w 3`, scaled to
        `size` (height, width) in the pass that makes its colours if given (bicubic, antialiased).

        Decoding starts at the last keyframe before the first number, or at the beginning where the file does not say
        which packet is which frame. Raises BadFile where a frame is missing, damaged or of another size than the first.
        """
        queue = self._checked(indices)
        target = next(queue, None)
        if target is None:
            return
        expected = None
        for number, frame in self._decoded_from(target):
            if expected is not None and number != expected:
                break
            expected = number + 1
            if number < target:
                continue
            pixels = self._pixels(number, frame, size)
            while target == number:
                yield pixels
                target = next(queue, None)
                if target is None:
                    return
        what = f"frame {target if expected is None else expected} of {len(self)} cannot be decoded; copy the file again"
        raise BadFile(self._name, "corrupt", what)

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

    def _open(self) -> tuple[InputContainer, VideoStream]:
        """Open the file anew. Raises BadFile where there is no video in it that may be decoded."""
        media = self._media
        container = _open_container(f"file:{media}" if isinstance(media, Path) else BytesIO(media), media, self._name)
        try:
            with decoder_faults(self._name):
                stream = _choose_stream(container, self._name)
                stream.thread_type = "NONE"
            context = stream.codec_context
            context.thread_count = 1  # threaded decoding beside torch's threads can hang
            # A frame in the middle may be larger than the head says. Twice, for decoders fill up to whole blocks.
            context.options = {**context.options, "max_pixels": str(min(2 * self._max_pixels, 2**31 - 1))}
            _check_size(self._name, context.width, context.height, self._max_pixels)
            if context.color_trc in _HDR:
                what = f"is HDR ({_HDR[context.color_trc]}), which has no single 8-bit form; tone-map it first"
                raise BadFile(self._name, "hdr", what)
        except BaseException:
            container.close()
            raise
        return container, stream

    def _decoded_from(self, index: int) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (number, frame) in the order of presentation, from a frame at or before `index`."""
        if not self._index.is_by_time:
            self._reopen()
            start = EVER if self._index.starts_at_keyframe else None
            yield from enumerate(decoded(self._container, self._stream, self._name, start))
            return
        pts, keyframes = self._index.pts, self._index.keyframes
        last = max(0, bisect_right(keyframes, pts[index]) - 1)
        for key in (keyframes[last], keyframes[max(0, last - 1)]):
            with decoder_faults(self._name):
                self._container.seek(key, stream=self._stream, backward=True)
            frames = self._after(key)
            first = next(frames, None)
            if first is not None and first.pts == key:
                break  # else the seek went too far, as it does in MPEG-TS, which has no table of keyframes
        else:
            self._reopen()
            frames = self._after(keyframes[0])
            first = next(frames, None)
        for frame in () if first is None else chain((first,), frames):
            time = pts[-1] + 1 if frame.pts is None else frame.pts
            number = bisect_left(pts, time)
            if number < len(pts) and pts[number] == time:
                yield number, frame
            elif time >= pts[0]:
                what = "its frames have other times than its packets; write it anew"
                raise BadFile(self._name, "timestamps", what)

    def _after(self, key: int) -> Iterator[VideoFrame]:
        """Decode from the keyframe of time `key`, without the frames before it, which may need others before them."""
        frames = decoded(self._container, self._stream, self._name, key)
        return (frame for frame in frames if frame.pts is None or frame.pts >= key)

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = self._open()

    def _pixels(self, index: int, frame: VideoFrame, size: tuple[int, int] | None) -> Tensor:
        if frame.is_corrupt:
            raise BadFile(self._name, "corrupt", f"frame {index} of {len(self)} is damaged; copy the file again")
        shape = (frame.width, frame.height) if is_turned(self._matrix) else (frame.height, frame.width)
        if shape != self.size:
            what = (
                f"frame {index} is {shape[1]} x {shape[0]}, the first {self.size[1]} x {self.size[0]}; split the file"
            )
            raise BadFile(self._name, "size-change", what)
        with decoder_faults(self._name):
            stored = size[::-1] if size is not None and is_turned(self._matrix) else size
            return torch.from_numpy(turn_upright(rgb_of(frame, self._reformatter, stored), self._matrix))

    def _first_size(self) -> tuple[int, int]:
        for _, frame in self._decoded_from(0):
            # Of one frame alone: a frame whose side data have been looked at holds itself, and some hundreds of them
            # lie in memory until Python looks for such circles.
            with decoder_faults(self._name):
                self._matrix = display_matrix(frame)
            _check_size(self._name, frame.width, frame.height, self._max_pixels)
            return turn_upright(np.empty((frame.height, frame.width, 0), np.uint8), self._matrix).shape[:2]
        raise BadFile(self._name, "no-frames", "has no frame that can be decoded")


def open_video(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> VideoReader:
    """Open a video file: count its frames, and check that it is whole.

    The first pass reads packets (some 300 MB/s); it finds what headers do not tell: the true number of frames, their
    times, where the keyframes are, and whether the file was cut. Where packets are not surely frames (no time stamps,
    uncommon containers and codecs), the second pass decodes them all, once, to count. Frames come in the decoder's
    order. Rotation and mirroring are applied. Only local files are opened, and playlists are not followed.

    Raises BadFile with one of the codes missing, not-a-file, empty, permission, unreadable, lfs-pointer, format,
    no-video (audio or cover art only), codec, no-frames, no-keyframe, cut, timestamps, corrupt, bomb, hdr, size-change.
    """
    return VideoReader(Path(path), max_pixels)


def _ending_of(media: Path | bytes, name: str) -> Ending:
    if isinstance(media, bytes):
        if not media:
            raise BadFile(name, "empty", "has no bytes; write it again")
        return ending_of(BytesIO(media))
    with open_media(media) as file:  # the checks that all media share
        try:
            return ending_of(file)
        except OSError as error:
            raise BadFile(name, "unreadable", f"cannot be read: {one_line(error)}") from None


def _open_container(file: str | BytesIO, media: Path | bytes, name: str) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        return av.open(file, "r", options=options, metadata_errors="ignore")
    except TypeError:  # the call does not fit this PyAV: no file is to blame
        raise
    except Exception as error:  # FFmpegError, ValueError, UnicodeDecodeError, ... by the content
        raise _not_opened(media, name, error) from None


def _not_opened(media: Path | bytes, name: str, error: Exception) -> BadFile:
    """Return why a file could not be opened: it is of a kind that is not read, or damaged."""
    head = media[:HEAD_BYTES] if isinstance(media, bytes) else _head(media)
    kind = foreign_kind(head)
    if kind is not None:
        return BadFile(name, "format", f"is no video but {kind}; convert it, or take it out")
    reason = one_line((error.strerror if isinstance(error, av.FFmpegError) else str(error)) or type(error).__name__)
    if _ending_of(media, name).is_known:
        return BadFile(name, "format", f"not a whole video file: {reason}; copy it again, or write it anew")
    what = "is in none of the formats that are read (MP4, MOV, MKV, WebM, AVI, MPEG, FLV, WMV, Ogg, MXF, GIF ...)"
    return BadFile(name, "format", f"{what}, or its head is damaged: {reason}; convert it")


def _head(path: Path) -> bytes:
    with open(os.fspath(path), "rb") as file:  # noqa: PTH123 - names may be no text
        return file.read(HEAD_BYTES)


def _choose_stream(container: InputContainer, name: str) -> VideoStream:
    if all(s.type not in ("video", "audio", "subtitle") for s in container.streams):
        raise BadFile(name, "format", "not a whole video file: its streams are of no known kind; copy it again")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise BadFile(name, "no-video", "has no video stream (audio or cover art only)")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise BadFile(name, "codec", "its video is coded in a way that is not known here; convert it")
    return stream


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        what = f"declares frames of {width} x {height} pixels, at most {max_pixels:,} are read"
        raise BadFile(name, "bomb", what)


_BICUBIC, _FULL_CHROMA_OUT, _FULL_CHROMA_IN, _ACCURATE, _BIT_EXACT = 4, 1 << 13, 1 << 14, 1 << 18, 1 << 19
_TO_RGB = _BICUBIC | _FULL_CHROMA_OUT | _ACCURATE | _BIT_EXACT
"""Flags of swscale, as numbers, for PyAV 17 has no names for them. Without these it cuts fractions off in place of
rounding and repeats each chroma sample: 1 to 1.5 levels darker a generation, and 31 dB where 49 dB are possible."""
_TO_PLANES = _BICUBIC | _FULL_CHROMA_IN | _ACCURATE | _BIT_EXACT

SMPTE170M, LIMITED = 6, 1
"""Matrix and range of the planes that `planes_of` makes: BT.601, 16 to 235, which is what swscale takes by default."""


def rgb_of(frame: VideoFrame, reformatter: VideoReformatter, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the pixels of a decoded frame as uint8 `h w 3`, by the matrix and range that the frame names.

    A frame that names none is taken as BT.601 in the limited range, as by FFmpeg. Chroma is interpolated (bicubic);
    with `size` (height, width) luma and chroma are scaled to it in the same pass.
    """
    # One thread: a scaler with threads that is alive at a fork hangs the child when it frees it (measured).
    if frame.format.is_rgb or len(frame.format.components) < 3 or not frame.format.is_planar:
        pixels = reformatter.reformat(frame, format="rgb24", threads=1, interpolation=_TO_RGB).to_ndarray()
        return pixels if size is None else scaled_by_swscale(pixels, size)
    height, width = size or (frame.height, frame.width)
    # To planes of RGB and together again is the same to the bit and 2 to 3 times as fast as packed RGB directly.
    planes = reformatter.reformat(frame, width, height, format="gbrp", threads=1, interpolation=_TO_RGB)
    return _together(planes.planes[number] for number in (2, 0, 1))


def scaled_by_swscale(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return uint8 `h w 3` scaled to `size` (height, width) by the filter with which `rgb_of` scales.

    Channel by channel: swscale would scale RGB by way of its YUV, up to 9 levels away.
    """
    channels = (av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[..., c]), format="gray") for c in range(3))
    scaler = VideoReformatter()
    scaled = (scaler.reformat(one, *size[::-1], format="gray", threads=1, interpolation=_TO_RGB) for one in channels)
    return _together(one.planes[0] for one in scaled)


def _together(planes: Iterable[VideoPlane]) -> np.ndarray:
    """Return the planes of red, green and blue as uint8 `h w 3`."""
    channels = []
    for plane in planes:
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(plane.height, plane.line_size)
        channels.append(rows[:, : plane.width])
    pixels = np.empty((*channels[0].shape, 3), np.uint8)
    for number, channel in enumerate(channels):
        pixels[..., number] = channel
    return pixels


def planes_of(pixels: np.ndarray, format: str, reformatter: VideoReformatter) -> VideoFrame:
    """Return uint8 `h w 3` as a frame of Y, U and V planes in BT.601 and the limited range, and marked as such."""
    image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    planes = reformatter.reformat(image, format=format, threads=1, interpolation=_TO_PLANES)
    planes.colorspace, planes.color_range = SMPTE170M, LIMITED
    return planes


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of the display transform x' = a x + c y, y' = b x + d y, as signs and zeros."""
    try:
        data: Any = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]  # its stub says str
    except ValueError:  # beside data that PyAV has no name for (EXIF) it gives none; a mirror cannot be seen then
        quarter = round(frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[quarter]
    if data is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    return (a, b, c, d)


def is_turned(matrix: tuple[int, int, int, int]) -> bool:
    """Return whether a display transform turns by a quarter, so that height and width change places."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def turn_upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Apply a display transform, which is a flip, a quarter turn or both; other angles go to the nearest of these."""
    a, b, c, d = matrix
    across, down = a, d
    if is_turned(matrix):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    if across < 0:
        pixels = pixels[:, ::-1]
    if down < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
