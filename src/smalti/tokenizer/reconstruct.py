"""Picture and video files through a tokenizer and back to files: any size, any length, memory that does not grow."""

import io
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from smalti.data.images import read_image
from smalti.data.videos import open_video, write_video
from smalti.errors import ConfigError
from smalti.files import write_bytes
from smalti.metrics import SMALTI
from smalti.metrics.report import capped_psnr
from smalti.tokenizer.score import round_trip
from smalti.tokenizer.tiles import choose_tile, decode_tiles, encode_tiles
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import crop_to, size_of, to_uint8, to_video

Progress = Callable[[int, int], None]
"""(frames done, frames in all)."""

TILED_ABOVE = 4_000_000
"""Pixels of a picture above which it goes tile by tile, where that changes no token."""

_PIXELS_AT_ONCE = 1 << 20
"""Pixels of a chunk of video; one group of the tokenizer's time stride is always taken whole."""

_CRF = 12
"""Finer than the usual 18: what is seen should be the tokenizer's loss, not the video codec's."""


class Reconstructed(NamedTuple):
    """What was written, what it cost in tokens, and how near it is to its source."""

    source: Path
    path: Path
    height: int
    width: int
    frames: int
    fps: float | None
    """None for a picture."""
    tokens: int
    bits: float
    """log2(codebook_size) for each token."""
    bits_per_pixel: float
    psnr: float
    """In dB on pixels rounded to 8 bits, the mean over frames; a frame without error counts as 100."""
    seconds: float


class Tally:
    """Tokens and errors of the frames that have passed."""

    def __init__(self) -> None:
        self.tokens = 0
        self.psnrs: list[float] = []

    def add(self, frame: UInt8[Tensor, "h w 3"], made: UInt8[Tensor, "h w 3"]) -> None:
        """Count one frame and its reconstruction."""
        # Differences of 8-bit values and their squares are exact in int32 (16 bits are one too few).
        error = (frame.int() - made.int()).square().double().mean()
        self.psnrs.append(capped_psnr(float(error), SMALTI))


def reconstruct_image(tokenizer: Tokenizer, source: Path, target: Path, *, side_by_side: bool = False) -> Reconstructed:
    """Write the reconstruction of a picture as PNG, or original and reconstruction `side_by_side` in one.

    Any size. Above `TILED_ABOVE` pixels a tile-exact tokenizer works tile by tile, with the same tokens. `target`
    appears whole or not at all. Raises BadFile for a picture that cannot be read.
    """
    begun, tally = time.perf_counter(), Tally()
    frame = read_image(source)
    height, width, _ = frame.shape
    whole = height * width <= TILED_ABOVE or not tokenizer.is_tile_exact
    made, ids = (round_trip if whole else _round_trip_in_tiles)(tokenizer, to_video(frame))
    picture = to_uint8(made.cpu())[0, 0]
    tally.tokens = ids.numel()
    tally.add(frame, picture)
    write_png(target, _beside(frame, picture) if side_by_side else picture)
    return _reconstructed(tokenizer, source, target, (1, height, width), None, tally, begun)


def reconstruct_video(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    *,
    side_by_side: bool = False,
    clip: int | None = None,
    progress: Progress | None = None,
) -> Reconstructed:
    """Write the reconstruction of a video as MP4 at the frame rate of the source, or both `side_by_side` in one.

    Any size and length: frames are read, encoded, decoded and written as they come, so memory depends on the size of a
    frame and not on how many there are. A video of varying frame rate is written at its mean rate; sound is left out.
    With `clip`, every so many frames are a video of their own, which is the one way for a tokenizer that is not causal.
    `target` appears whole or not at all. Raises BadFile for a video that cannot be read, ConfigError for a tokenizer
    that is not causal without `clip`.
    """
    check_causal(tokenizer, clip)
    begun, tally = time.perf_counter(), Tally()
    with open_video(source) as reader:
        height, width = reader.size
        count, fps = len(reader), reader.fps

        def written() -> Iterator[Tensor]:
            for frame, made in stream_frames(tokenizer, reader.frames(), tally, clip=clip):
                tally.add(frame, made)
                if progress is not None:
                    progress(len(tally.psnrs), count)
                yield _beside(frame, made) if side_by_side else made

        frames = write_video(target, written(), fps, crf=_CRF)
    return _reconstructed(tokenizer, source, target, (frames, height, width), fps, tally, begun)


@torch.inference_mode()
def stream_frames(
    tokenizer: Tokenizer, frames: Iterable[Tensor], tally: Tally, *, chunk: int | None = None, clip: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(frame, reconstruction) of each of `frames`, all uint8 `h w 3`, in constant memory; `tally` counts tokens.

    The ids of each chunk of `chunk` frames go straight into the decoder. Tokens and frames do not depend on
    `chunk`, which None chooses by the size of the frames; but for float32 sums in another order, one level at most.
    With `clip`, every so many frames are encoded and decoded as a video of their own. Raises ConfigError for a
    tokenizer that is not causal without `clip`.
    """
    check_causal(tokenizer, clip)
    device, waiting = next(tokenizer.parameters()).device, deque[Tensor]()
    source = iter(frames)
    first = next(source, None)
    if first is None:
        return
    height, width, _ = first.shape
    source, length = chain([first], source), clip or chunk or chunk_frames(height, width, tokenizer.strides[0])

    def chunks() -> Iterator[Tensor]:
        while group := list(islice(source, length)):
            waiting.extend(group)
            yield to_video(torch.stack(group)).to(device)

    def counted(ids: Iterable[Tensor]) -> Iterator[Tensor]:
        for part in ids:
            tally.tokens += part.numel()
            yield part

    if clip is None:
        videos = tokenizer.decode_stream(counted(tokenizer.encode_stream(chunks())))
    else:
        videos = (tokenizer.decode(ids) for ids in counted(tokenizer.encode(video) for video in chunks()))
    for video in videos:
        # The last group of frames may be longer than what is left: it was filled up.
        made = crop_to(video, (min(video.shape[2], len(waiting)), height, width))
        for picture in to_uint8(made.cpu())[0]:
            yield waiting.popleft(), picture


def write_png(path: Path, picture: UInt8[Tensor, "h w 3"]) -> None:
    """Write a picture as PNG, whole or not at all."""
    data = io.BytesIO()
    Image.fromarray(picture.numpy()).save(data, "PNG")
    write_bytes(path, data.getvalue())


def chunk_frames(height: int, width: int, stride: int) -> int:
    """Frames to take at once: a multiple of the time stride, with about `_PIXELS_AT_ONCE` pixels."""
    return stride * max(1, _PIXELS_AT_ONCE // (height * width * stride))


@torch.inference_mode()
def _round_trip_in_tiles(tokenizer: Tokenizer, video: Tensor) -> tuple[Tensor, Tensor]:
    """`round_trip`, tile by tile."""
    tile = choose_tile(tokenizer)
    ids = encode_tiles(tokenizer, video.to(next(tokenizer.parameters()).device), tile)
    return crop_to(decode_tiles(tokenizer, ids, tile), size_of(video)), ids


def _beside(frame: Tensor, made: Tensor) -> Tensor:
    return torch.cat([frame, made], 1)


def check_causal(tokenizer: Tokenizer, clip: int | None, option: str = "--clip 17") -> None:
    """Raise ConfigError for a tokenizer that is not causal, unless videos are cut into clips."""
    if not tokenizer.is_causal and clip is None:
        raise ConfigError(
            "this tokenizer is not causal (its norms see the whole clip), so it cannot stream a video; cut it into "
            f"clips with {option}, or use a tokenizer with norm 'position' or 'frame'"
        )


def _reconstructed(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    size: tuple[int, int, int],
    fps: float | None,
    tally: Tally,
    begun: float,
) -> Reconstructed:
    frames, height, width = size
    bits = math.log2(tokenizer.codebook_size) * tally.tokens
    return Reconstructed(
        source=source,
        path=target,
        height=height,
        width=width,
        frames=frames,
        fps=fps,
        tokens=tally.tokens,
        bits=bits,
        bits_per_pixel=bits / (frames * height * width),
        psnr=math.fsum(tally.psnrs) / len(tally.psnrs),
        seconds=time.perf_counter() - begun,
    )
