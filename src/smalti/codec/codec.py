"""Pictures and film as small files of entropy-coded tokens, and back: any size and length, in constant memory."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from smalti.codec.entropy import Model, encode_ids
from smalti.codec.format import Head, Origin, Reader, Writer
from smalti.codec.frames import decode_blocks, encode_blocks, encode_picture, head_for
from smalti.data.images import read_image
from smalti.data.source import open_media
from smalti.data.videos import open_video, write_video
from smalti.errors import ConfigError
from smalti.files import new_file, remove_leftovers
from smalti.text import printable
from smalti.tokenizer.reconstruct import check_causal, write_png
from smalti.tokenizer.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""(frames done, frames in all)."""

_CRF = 12
"""Of the film that is written: as fine as that of `reconstruct`."""


class Compressed(NamedTuple):
    """What was written, and what it costs."""

    source: Path
    path: Path
    height: int
    width: int
    frames: int
    fps: float | None
    """None for a picture."""
    tokens: int
    bytes: int
    """Of the whole file."""
    ideal_bytes: float
    """What the models ask for: the sum of -log2 of the probabilities of all symbols, and static tables, over 8."""
    uniform_bytes: float
    """log2(codebook_size) for every token, over 8."""
    bits_per_pixel: float
    """8 * bytes over the pixels of all frames."""
    ratio: float
    """Bytes of the source file over `bytes`."""
    seconds: float


class Decompressed(NamedTuple):
    """What was written."""

    source: Path
    path: Path
    height: int
    width: int
    first: int
    """The number of the first frame."""
    frames: int
    fps: float | None
    seconds: float


class About(NamedTuple):
    """What is in a file, by its head and its seek table."""

    head: Head
    frames: int
    tokens: int
    blocks: int
    bytes: int

    def plain(self) -> dict[str, Any]:
        """All of it as plain data; the rate as text, for it is a fraction."""
        head = self.head.plain() | {"rate": None if self.head.rate is None else str(self.head.fps)}
        counts = {name: value for name, value in self._asdict().items() if name != "head"}
        pixels = self.frames * self.head.height * self.head.width
        return {**head, **counts, "bits_per_pixel": 8 * self.bytes / pixels}


def compress_image(tokenizer: Tokenizer, source: Path, target: Path, *, model: Model = "adaptive") -> Compressed:
    """Write a picture as `.smt`, whole or not at all. Raises BadFile for a picture that cannot be read."""
    begun, frame = time.perf_counter(), read_image(source)
    head = head_for(tokenizer, (frame.shape[0], frame.shape[1]), None)
    return _compress(source, target, head, [(1, encode_picture(tokenizer, frame))], model, begun)


def compress_video(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    *,
    model: Model = "adaptive",
    group: int | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Write a video as `.smt`, as its frames are read; sound is left out, a varying frame rate becomes its mean.

    With `group`, every so many frames are a video of their own: decoding can start at each, and a tokenizer that is not
    causal has no other way. Without, the whole is one stream, and decoding starts at its beginning. `target` appears
    whole or not at all. Raises BadFile for a video that cannot be read, ConfigError for a tokenizer that is not causal
    without `group`.
    """
    check_causal(tokenizer, group, "--group 17")
    begun = time.perf_counter()
    with open_video(source) as reader:

        def frames() -> Iterator[Tensor]:
            for number, frame in enumerate(reader.frames(), start=1):
                yield frame
                if progress is not None:
                    progress(number, len(reader))

        rate = Fraction(reader.fps).limit_denominator(100_000)
        head = head_for(tokenizer, reader.size, rate, group or 0)
        return _compress(source, target, head, encode_blocks(tokenizer, frames(), head), model, begun)


def decompress(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    *,
    frames: tuple[int, int | None] | None = None,
    progress: Progress | None = None,
) -> Decompressed:
    """Write what a `.smt` file holds: a picture as PNG, a video as MP4, MKV or MOV, whole or not at all.

    With `frames` = (first, end), the frames first to end - 1 of a video alone. Raises as `decode_frames` does, and
    ConfigError where `target` does not suit.
    """
    begun, head = time.perf_counter(), about(source).head
    made = decode_frames(tokenizer, source, *(frames or (0, None)), progress=progress)
    fps = None if head.rate is None else float(head.fps)
    if fps is None:
        if target.suffix.lower() != ".png":
            raise ConfigError(f"{printable(target)}: a picture is written as .png")
        write_png(target, next(made))
        count = 1
    else:
        count = write_video(target, made, fps, crf=_CRF)
    first = 0 if frames is None else frames[0]
    return Decompressed(source, target, head.height, head.width, first, count, fps, time.perf_counter() - begun)


def decode_frames(
    tokenizer: Tokenizer, path: Path, first: int = 0, end: int | None = None, *, progress: Progress | None = None
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """The frames first to end - 1 of a `.smt` file, one after the other; all of them unless said otherwise.

    The head and the seek table are checked first, then each block as it is read; those before the group of `first` and
    those after `end` are not. Frames are computed in pieces that depend on the file alone, so a part has the bits of
    the whole on the same machine. Raises InputError where there is no file, IntegrityError for one that is damaged or
    of another tokenizer, ConfigError for frames that are not in it.
    """
    name = printable(path)
    with _opened(path) as reader:
        head, entries = reader.head, reader.table()
        head.info.check(tokenizer.info, name)
        count = entries[-1].start + entries[-1].frames
        last = count if end is None else end
        if not 0 <= first < last <= count:
            raise ConfigError(f"{name}: has frames 0:{count}; {first}:{last} are not among them")
        start = head.group_start(first)
        blocks = (reader.block(entry) for entry in entries if start <= entry.start < last)
        for number, frame in enumerate(decode_blocks(tokenizer, blocks, head, name), start=start):
            if first <= number < last:
                yield frame
                if progress is not None:
                    progress(number + 1 - first, last - first)


def decode_stream(tokenizer: Tokenizer, file: Origin, name: str) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """All frames of a file that is read once, from its beginning: a pipe, or one that is still being written.

    Frames come before the end was seen, so only a stream that ends without an error was whole. `name` is what faults
    are named by. Raises as `decode_frames` does.
    """
    reader = Reader(file, name)
    reader.head.info.check(tokenizer.info, name)
    yield from decode_blocks(tokenizer, reader.blocks(), reader.head, name)


def about(path: Path) -> About:
    """What is in a `.smt` file. Raises InputError where there is none, IntegrityError where head or foot is damaged."""
    with _opened(path) as reader:
        head, entries = reader.head, reader.table()
        latents = sum(head.latents(entry.start, entry.frames) for entry in entries)
        frames = sum(entry.frames for entry in entries)
        return About(head, frames, latents * math.prod(head.grid), len(entries), path.stat().st_size)


@contextmanager
def _opened(path: Path) -> Iterator[Reader]:
    with open_media(path) as file:
        yield Reader(file, printable(path))


def _compress(
    source: Path, target: Path, head: Head, blocks: Iterable[tuple[int, Tensor]], model: Model, begun: float
) -> Compressed:
    """Write (frames, ids `1 t h w`) of all blocks to a new file."""
    remove_leftovers(target.parent)
    tokens, bits = 0, 0.0
    with new_file(target) as file:
        writer = Writer(file, head)
        for frames, ids in blocks:
            coded = encode_ids(ids[0].cpu().numpy().astype(np.int64), head.levels, model)
            writer.add(frames, coded.data)
            tokens, bits = tokens + ids.numel(), bits + coded.bits
        writer.close()
    pixels = writer.frames * head.height * head.width
    return Compressed(
        source=source,
        path=target,
        height=head.height,
        width=head.width,
        frames=writer.frames,
        fps=None if head.rate is None else float(head.fps),
        tokens=tokens,
        bytes=writer.bytes,
        ideal_bytes=bits / 8,
        uniform_bytes=tokens * math.log2(math.prod(head.levels)) / 8,
        bits_per_pixel=8 * writer.bytes / pixels,
        ratio=source.stat().st_size / writer.bytes,
        seconds=time.perf_counter() - begun,
    )
