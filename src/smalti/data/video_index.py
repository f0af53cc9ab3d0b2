"""The frames that a video has: found from its packets, or by decoding it once where those do not tell."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from smalti.errors import BadFile, SmaltiError
from smalti.text import one_line

if TYPE_CHECKING:
    _Packet = Packet[Any]
else:
    _Packet = Packet  # not generic in PyAV 17, and tests read annotations while they run

_MATROSKA = {"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "prores", "ffv1"}
_PACKET_IS_FRAME: dict[str, set[str]] = {
    "mov": {*_MATROSKA, "dnxhd", "png", "qtrle", "h263"},
    "matroska": _MATROSKA,
    "webm": _MATROSKA,
    "avi": {"mpeg4", "mjpeg", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "msmpeg4v3", "msmpeg4v2"},
    "flv": {"h264", "hevc", "av1", "vp9", "flv1"},
    "mpegts": {"h264", "hevc", "mpeg1video", "mpeg2video"},
    "mpeg": {"mpeg1video", "mpeg2video"},
    "asf": {"wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v3"},
    "mxf": {"prores", "dnxhd", "jpeg2000"},
}
"""Codecs whose packets are frames, with true time stamps and keyframe marks, by container. Made here and compared with
the decoder for each pair; all others are decoded once to count (tests/data/test_containers.py)."""

_LEAST_MPEG4 = 16
"""Bytes of a packet of MPEG-4 that surely has an image; a shorter one may say that nothing is coded (7 bytes)."""
LEAST_FPS = 0.001
"""Lowest frame rate that a video is said to have; time stamps that say less are damaged."""
_PAUSE_SECONDS, _PAUSE_FRAMES = 1.0, 10
"""A gap between two frames is a pause if it is longer than a second and than 10 median gaps."""


EVER = -(1 << 63)
"""A time before all others."""


class FrameIndex(NamedTuple):
    """The frames that the decoder gives, in its order."""

    pts: list[int]
    """Presentation times, rising, in units of the stream's time base; those that the file lacks are filled in."""
    keyframes: list[int]
    """Times of the frames at which decoding may start, rising; empty where it must start at the beginning."""
    dropped: dict[str, int]
    """Number of packets that give no frame, by reason: `hidden`, `empty`, `before the first keyframe`."""

    starts_at_keyframe: bool = True
    """Whether decoding begins at the first packet that is marked as a keyframe, and not at the first of all."""

    @property
    def is_by_time(self) -> bool:
        """Whether a decoded frame is found by its time stamp, and not by counting from the beginning."""
        return bool(self.keyframes)


class _Packets(NamedTuple):
    """Facts of a pass over all packets of a file."""

    frames: FrameIndex
    packets: int
    """Packets of the stream that have bytes."""
    keyframes: int
    end: float
    """End of the last packet of any stream, in seconds."""
    doubt: bool
    """Whether packets may not be frames, one by one and in the order of their times."""


@contextmanager
def decoder_faults(name: str) -> Iterator[None]:
    """Turn whatever the libraries raise over the content of a file into a BadFile, on one line."""
    try:
        yield
    except SmaltiError:
        raise
    except Exception as error:  # FFmpegError, ValueError, UnicodeDecodeError, OverflowError, MemoryError, EOFError ...
        reason = one_line((error.strerror if isinstance(error, av.FFmpegError) else str(error)) or type(error).__name__)
        what = f"cannot be decoded to its end: {reason}; copy it again, or write it anew"
        raise BadFile(name, "corrupt", what) from None


def packets_of(container: InputContainer, stream: VideoStream | None, name: str) -> Iterator[_Packet]:
    """Yield the packets of a stream, or of all, to the end; their faults are bad files."""
    with decoder_faults(name):
        packets = cast("Iterator[_Packet]", container.demux() if stream is None else container.demux(stream))
    while True:
        with decoder_faults(name):
            packet = next(packets, None)
        if packet is None:
            return
        yield packet


def decoded(container: InputContainer, stream: VideoStream, name: str, from_pts: int | None) -> Iterator[VideoFrame]:
    """Decode from here on, beginning at the first keyframe of time `from_pts` or later, or where this is None at the
    first packet of all. Packets without bytes are passed over: for the decoder they would be the end."""
    waits = from_pts is not None
    for packet in packets_of(container, stream, name):
        if packet.size == 0:
            continue
        if waits and from_pts is not None:
            time = time_of(packet)
            if not packet.is_keyframe or (time is not None and time < from_pts):
                continue
            waits = False
        with decoder_faults(name):
            frames = packet.decode()
        yield from frames
    with decoder_faults(name):
        frames = stream.codec_context.decode(None)
    yield from frames


def time_of(packet: _Packet) -> int | None:
    """Return when a packet is shown, or else decoded; None where the file does not say."""
    return packet.dts if packet.pts is None else packet.pts


def make_index(
    open_again: Callable[[], tuple[InputContainer, VideoStream]], name: str, *, ends_whole: bool
) -> tuple[InputContainer, VideoStream, FrameIndex]:
    """Return an open file with its index. Raises BadFile where it was cut or has no frame that can be decoded.

    With `ends_whole` the container has said that nothing is missing at its end, and its duration is not asked.
    """
    container, stream = open_again()
    try:
        packets = _read_packets(container, stream, name)
        _check(container, stream, packets, name, ends_whole)
        if not packets.doubt:
            return container, stream, packets.frames
        container.close()
        container, stream = open_again()
        index = _count_frames(container, stream, packets, name)
        container.close()
        container, stream = open_again()
        return container, stream, index
    except BaseException:
        container.close()
        raise


def _read_packets(container: InputContainer, stream: VideoStream, name: str) -> _Packets:
    pts, keyframes, dropped, end, last = list[int](), list[int](), Counter[str](), 0.0, None
    context = stream.codec_context
    family, codec = container.format.name.split(",")[0], context.codec.canonical_name
    doubt = codec not in _PACKET_IS_FRAME.get(family, ())
    count = keys = 0
    is_rising = True
    for packet in packets_of(container, None, name):
        time = time_of(packet)
        if time is not None and packet.time_base is not None:
            end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index or (packet.size == 0 and time is None):
            continue  # another stream, or the mark at the end of this one
        if packet.size == 0:
            dropped["empty"] += 1
            doubt = True
            continue
        count += 1
        keys += packet.is_keyframe
        if packet.is_discard:
            dropped["hidden"] += 1
        elif not keys:
            dropped["before the first keyframe"] += 1
        elif codec == "vp8" and not bytes(packet)[0] & 0x10:
            continue  # a hidden frame, which only serves as a reference (RFC 6386, 9.1)
        elif packet.pts is None or packet.is_corrupt or (codec == "mpeg4" and packet.size < _LEAST_MPEG4):
            doubt = True
        elif not keyframes or packet.pts >= keyframes[0]:
            pts.append(packet.pts)
        else:
            dropped["before the first keyframe"] += 1
        if packet.is_keyframe and packet.pts is not None:
            keyframes.append(packet.pts)
        is_rising = is_rising and (packet.pts is not None and (last is None or packet.pts > last))
        last = packet.pts
    doubt = (
        doubt or not keyframes or len(set(pts)) < len(pts) or (is_rising and bool(context.has_b_frames) and count > 2)
    )
    return _Packets(FrameIndex(sorted(pts), sorted(keyframes), dict(dropped)), count, keys, end, doubt)


def _check(container: InputContainer, stream: VideoStream, packets: _Packets, name: str, ends_whole: bool) -> None:
    """Raise BadFile where the file is cut, or no packet is left that could be shown."""
    if not packets.packets:
        raise BadFile(name, "no-frames", "its video stream has no frames")
    if "mp4" in container.format.name and packets.packets < stream.frames:  # its table of frames is exact
        raise BadFile(name, "cut", f"holds {packets.packets} of {stream.frames} frames; copy it again")
    if not ends_whole and container.duration:
        declared = container.duration / av.time_base
        seconds = packets.end - min(0, container.start_time or 0) / av.time_base
        if seconds < declared - 2 * seconds / packets.packets - 0.005 * declared:
            raise BadFile(name, "cut", f"ends after {seconds:.2f} of {declared:.2f} seconds; copy it again")
    if packets.frames.dropped.get("hidden") == packets.packets:
        what = f"its edit list hides all {packets.packets} frames of it; export it anew, without edits"
        raise BadFile(name, "no-frames", what)


def _count_frames(container: InputContainer, stream: VideoStream, packets: _Packets, name: str) -> FrameIndex:
    """Decode the whole stream once, and take the frames that come out as they come."""
    stream.codec_context.thread_count = 1
    times, first_is_key = list[int | None](), True
    # Where packets are marked as keyframes, those before the first give no frame, or one of grey.
    for frame in decoded(container, stream, name, EVER if packets.keyframes else None):
        if not times:  # some decoders mark neither keyframes nor the kinds of frames
            first_is_key = bool(frame.key_frame) or frame.pict_type == PictureType.NONE
        times.append(frame.pts)
    if not times:
        raise BadFile(name, "no-frames", "has no frame that can be decoded")
    if not packets.keyframes and not first_is_key:
        raise BadFile(name, "no-keyframe", "has no keyframe to start decoding at; cut it at a keyframe")
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    step = 1 / (rate * stream.time_base) if stream.time_base else Fraction(1)
    return FrameIndex(fill_times(times, step), [], packets.frames.dropped, packets.keyframes > 0)


def fill_times(times: Sequence[int | None], step: Fraction) -> list[int]:
    """Return rising times: those that are there and rise, the others evenly between them, at the ends by `step`."""
    known, last = list[tuple[int, int]](), None
    for place, time in enumerate(times):
        if time is not None and (last is None or time > last):
            known.append((place, time))
            last = time
    if not known:
        known = [(0, 0)]
    filled = [known[0][1] - round(step * (known[0][0] - place)) for place in range(known[0][0])]
    for (place, time), (after, end) in pairwise(known):
        filled += [time + (end - time) * (i - place) // (after - place) for i in range(place, after)]
    place, time = known[-1]
    filled += [time + round(step * (i - place)) for i in range(place, len(times))]
    for i in range(1, len(filled)):
        filled[i] = max(filled[i], filled[i - 1] + 1)
    return filled


class Pace(NamedTuple):
    """The frame rate of a video, and the pauses that a constant rate leaves out."""

    fps: float
    pauses: int
    seconds: float
    """Length of all pauses, beyond one frame each."""


def pace_of(pts: Sequence[int], time_base: Fraction | None, declared: Fraction | None) -> Pace:
    """Return the mean rate of frames by their times, pauses left out; the declared rate where there is one frame."""
    if len(pts) < 2 or not time_base:
        return Pace(float(declared or 1), 0, 0.0)
    gaps = [after - before for before, after in pairwise(pts)]
    longest = max(_PAUSE_FRAMES * median(gaps), _PAUSE_SECONDS / float(time_base))
    pauses = [gap for gap in gaps if gap > longest]
    count = len(gaps) - len(pauses)
    fps = max(LEAST_FPS, count / float((pts[-1] - pts[0] - sum(pauses)) * time_base))
    return Pace(fps, len(pauses), float(sum(pauses) * time_base) - len(pauses) / fps)
