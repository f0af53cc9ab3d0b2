"""Images and videos as small files of entropy-coded tokens, and back: any size and length, in constant memory."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from itertools import count, groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from smalti.codec.block import block_to_bytes, bytes_to_block
from smalti.codec.entropy import Model
from smalti.codec.format import IMAGE_KIND, CodedBlock, Head, Reader, Writer
from smalti.codec.prior import Prior, shipped_prior
from smalti.codec.search import Search, SearchResult, check_searchable
from smalti.data.files import VIDEO_SUFFIXES
from smalti.data.images import read_image
from smalti.data.source import open_media
from smalti.data.video_writer import write_media
from smalti.data.videos import open_video
from smalti.errors import ConfigError, IntegrityError
from smalti.files import new_file, remove_leftovers
from smalti.text import Progress, printable
from smalti.tokenizer.frames import (
    check_causal,
    frames_to_ids,
    groups_of,
    ids_to_frames,
    ids_to_image,
    images_to_ids,
)
from smalti.tokenizer.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 16
"""Approximate number of tokens in a block of video: tables are learnt anew in each, which costs a few hundred bytes."""
LEAST_PRICE, MOST_PRICE = 10.0, 1e6
"""Prices of a bit between which that of a goal is sought: one changes nothing, the other has the fewest bits."""
ATTEMPTS = 7
"""Bisections of that range: the price is then known to 9 %, the bits to 1 %."""


class Compressed(NamedTuple):
    """A `.smt` file that was written, and what it costs."""

    source: Path
    path: Path
    height: int
    width: int
    frames: int
    fps: float | None
    """None for an image."""
    tokens: int
    """Those that are held are counted, too."""
    bytes: int
    """Size of the whole file."""
    ideal_bytes: float
    """The sum of -log2 of the models' probabilities of all symbols, and static tables, over 8."""
    uniform_bytes: float
    """log2(codebook_size) for every token, over 8."""
    bits_per_pixel: float
    """8 * bytes over the pixels of all frames."""
    ratio: float
    """Bytes of the source file over `bytes`."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Parts of the source that the frames do not show, in words: packets without a frame, pauses."""
    psnr: float | None = None
    """Mean over the frames in dB, of 8-bit pixels; None without a search."""
    price: float | None = None
    """Price of a bit in a search: the squared error in 8-bit values that it is worth."""
    held: int = 0
    """Tokens that a search left out, for their pixels in the frame before are near enough."""


class Goal(NamedTuple):
    """Aim of a search of ids: one of three."""

    price: float | None = None
    """Squared error in 8-bit values that a bit is worth; 0 is quality alone."""
    bits: float | None = None
    """The best quality at so many bits per pixel of the whole file."""
    psnr: float | None = None
    """The fewest bits at so many dB, the mean over the frames."""

    def is_kept(self, written: Compressed) -> bool:
        """Whether a file keeps a goal of bits or of PSNR."""
        if self.bits is not None:
            return written.bits_per_pixel <= self.bits
        return self.psnr is None or (written.psnr or 0.0) >= self.psnr

    def rank(self, written: Compressed) -> tuple[bool, float, float]:
        """Return what is larger for a better file: one that keeps the goal and is best in what is free, or comes
        nearest."""
        fewest, quality, is_kept = -float(written.bytes), written.psnr or 0.0, self.is_kept(written)
        is_size_first = is_kept == (self.psnr is not None)
        return (is_kept, fewest, quality) if is_size_first else (is_kept, quality, fewest)

    def shortfall(self, written: Compressed) -> str:
        """Return in words that no file kept it, and what the nearest has."""
        if self.bits is not None:
            return f"bits: {self.bits:g} per pixel were not reached; the smallest file has {written.bits_per_pixel:.4f}"
        return f"psnr: {self.psnr:g} dB were not reached; the best file has {written.psnr:.2f}"


class Decompressed(NamedTuple):
    """An image or video file that was written."""

    source: Path
    path: Path
    height: int
    width: int
    first: int
    """Number of the first frame."""
    frames: int
    fps: float | None
    """None for an image."""
    seconds: float


class CompressedInfo(NamedTuple):
    """Facts of a `.smt` file from its head and its seek table."""

    head: Head
    frames: int
    tokens: int
    blocks: int
    bytes: int

    def plain(self) -> dict[str, Any]:
        """Return all facts as plain data; the frame rate as text, for it is a fraction."""
        head = self.head.plain() | {"rate": None if self.head.rate is None else str(self.head.fps)}
        head["pixel_aspect"] = None if head["pixel_aspect"] is None else str(Fraction(*head["pixel_aspect"]))
        counts = {name: value for name, value in self._asdict().items() if name != "head"}
        pixels = self.frames * self.head.height * self.head.width
        return {**head, **counts, "bits_per_pixel": 8 * self.bytes / pixels}


def compress_file(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    *,
    model: Model | None = None,
    prior: Prior | None = None,
    group: int | None = None,
    goal: Goal | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Write an image, or a video by its suffix, as `.smt`, whole or not at all.

    `model` None is `prior` with the given one, or with the one that ships with the package for this tokenizer, and
    where there is none `adaptive`.

    Frames are coded as they are read; sound and pauses are left out, a varying frame rate becomes its mean. With
    `group`, every so many frames of a video are encoded without those before: decoding can start at each, and a
    tokenizer that is not causal has no other way. Without, the whole is one stream, and decoding starts at its
    beginning. With a `goal` ids are searched (see `smalti.codec.search`); for a goal of bits or of PSNR the source is
    coded several times, and the file is held in memory.

    Raises BadFile for media that cannot be read, ConfigError for a video and a tokenizer that is not causal without
    `group`, for an image with `group`, for a goal without a prior, and for one that is not reached.
    """
    begin = time.perf_counter()
    is_video = source.suffix.lower() in VIDEO_SUFFIXES
    if goal is not None:
        check_searchable(tokenizer, is_video=is_video)
        if model not in (None, "prior"):
            raise ConfigError(f"`price`, `bits` and `psnr` need the model 'prior'; `model` is {model!r}: leave it out")
    chosen = _choose_prior(tokenizer, model, prior)
    if goal is not None and chosen is None:
        raise ConfigError(
            "`price`, `bits` and `psnr` weigh bits by a prior for this tokenizer: train one with `smalti prior`, give"
            " it as `prior`"
        )
    job = _Job(tokenizer, source, model or ("prior" if chosen else "adaptive"), chosen, group, is_video)
    remove_leftovers(target.parent)
    with new_file(target) as file:
        if goal is None or goal.price is not None:
            written = job.write(file, None if goal is None else goal.price, progress)
        else:
            data, written = _reach(goal, job, progress)
            file.write(data)
    return written._replace(path=target, seconds=time.perf_counter() - begin)


class _Job(NamedTuple):
    """One source to code with one tokenizer and one model."""

    tokenizer: Tokenizer
    source: Path
    model: Model
    prior: Prior | None
    group: int | None
    is_video: bool

    def write(self, file: BinaryIO | BytesIO, price: float | None, progress: Progress | None) -> Compressed:
        """Write a whole file: the encoder's ids, or with a price those of a search."""
        tokenizer, source, qualities = self.tokenizer, self.source, list[float]()
        search = None if price is None or self.prior is None else Search(tokenizer, self.prior, price)

        def noted(results: Iterable[SearchResult]) -> Iterator[Tensor]:
            for one in results:
                qualities.extend(one.psnr)
                yield one.ids

        def written(head: Head, blocks: Iterable[tuple[int, Tensor]]) -> Compressed:
            done = _write(file, source, head, blocks, (self.model, self.prior))
            return done._replace(psnr=sum(qualities) / len(qualities), price=price) if search else done

        if not self.is_video:
            if self.group is not None:
                raise ConfigError(f"{printable(source)}: `group` cuts videos, and this is an image")
            frame = read_image(source)
            head = _head(tokenizer, (frame.shape[0], frame.shape[1]), None, prior=self.prior)
            ids = next(noted([search.image(frame, progress)])) if search else images_to_ids(tokenizer, frame[None])
            return written(head, [(1, ids)])
        check_causal(tokenizer, self.group, "`group` 17")
        if tokenizer.first_frames > 1:
            raise ConfigError(
                f"{printable(source)}: a video, and a tokenizer whose first latent holds {tokenizer.first_frames}"
                " frames: a .smt file has no place for that; `smalti tokenize` has"
            )
        with open_video(source) as reader:

            def frames() -> Iterator[Tensor]:
                for number, frame in enumerate(reader.frames(), start=1):
                    yield frame
                    if progress is not None:
                        progress(number, len(reader))

            def encode(part: Iterable[Tensor]) -> Iterator[Tensor]:
                return noted(search.video(part)) if search else frames_to_ids(tokenizer, part, first=1)

            rate = Fraction(reader.fps).limit_denominator(100_000)
            aspect = None if reader.pixel_aspect == 1 else reader.pixel_aspect.as_integer_ratio()
            holds = search is not None and search.may_hold
            head = _head(tokenizer, reader.size, rate, self.group or 0, self.prior)
            head = head.replace({"pixel_aspect": aspect, "holds": holds})
            return written(head, _blocks_of(encode, frames(), head))._replace(notes=reader.notes)


def _reach(goal: Goal, job: _Job, progress: Progress | None) -> tuple[bytes, Compressed]:
    """Return the file that comes nearest to a goal from the side that keeps it, by bisection of the price.

    Raises ConfigError where no attempt keeps it."""
    count = 0

    def noted(done: int, total: int | None = None, note: str = "") -> None:
        if progress is not None:
            progress(done, total, f"attempt {count} of {1 + ATTEMPTS}")

    def attempt(price: float) -> tuple[bytes, Compressed]:
        nonlocal count
        count += 1
        file = BytesIO()
        written = job.write(file, price, noted)
        return file.getvalue(), written

    tries = [attempt(0.0 if goal.psnr is not None else MOST_PRICE)]
    low, high = math.log(LEAST_PRICE), math.log(MOST_PRICE)
    for _ in range(ATTEMPTS):
        middle = (low + high) / 2
        tries.append(attempt(math.exp(middle)))
        if goal.is_kept(tries[-1][1]) == (goal.psnr is not None):  # a higher price: fewer bits, mostly a lower PSNR
            low = middle
        else:
            high = middle
    best = max(tries, key=lambda one: goal.rank(one[1]))
    if not goal.is_kept(best[1]):
        raise ConfigError(f"{printable(job.source)}: {goal.shortfall(best[1])}")
    return best


def decompress_file(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    *,
    frames: tuple[int, int | None] | None = None,
    prior: Prior | None = None,
    progress: Progress | None = None,
) -> Decompressed:
    """Write what a `.smt` file holds: an image as PNG, a video as MP4, MKV or MOV, whole or not at all.

    `prior` is the one that ids were coded with, where that is not one that ships with the package.
    With `frames` = (first, end), the frames first to end - 1 of a video alone. Raises as `read_frames` does, and
    ConfigError where `target` does not suit.
    """
    begin, head = time.perf_counter(), read_info(source).head
    fps = None if head.rate is None else float(head.fps)
    first, end = frames or (0, None)
    decoded = read_frames(tokenizer, source, first, end, prior=prior, progress=progress)
    written = write_media(target, decoded, fps, None if head.pixel_aspect is None else Fraction(*head.pixel_aspect))
    return Decompressed(source, target, head.height, head.width, first, written, fps, time.perf_counter() - begin)


def read_frames(
    tokenizer: Tokenizer,
    path: Path,
    first: int = 0,
    end: int | None = None,
    *,
    prior: Prior | None = None,
    progress: Progress | None = None,
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """Decode the frames first to end - 1 of a `.smt` file, one after the other; all of them unless said otherwise.

    The head and the seek table are checked first, then each block as it is read; those before the group of `first` and
    those after `end` are not. Frames are computed in pieces that depend on the file alone, so a part has the bits of
    the whole on the same machine. Raises InputError where there is no file, IntegrityError for one that is damaged or
    of another tokenizer or prior, ConfigError for frames that are not in it.
    """
    name = printable(path)
    with _opened(path) as reader:
        head, entries = reader.head, reader.table()
        prior = _check_maker(head, tokenizer, prior, name)
        total = entries[-1].start + entries[-1].frames
        last = total if end is None else end
        if not 0 <= first < last <= total:
            raise ConfigError(f"{name}: has frames 0:{total}; {first}:{last} are not among them")
        start = head.group_start(first)
        blocks = (reader.block(entry) for entry in entries if start <= entry.start < last)
        for number, frame in enumerate(_decode_blocks(tokenizer, blocks, head, prior, name), start=start):
            if first <= number < last:
                yield frame
                if progress is not None:
                    progress(number + 1 - first, last - first)


def stream_frames(
    tokenizer: Tokenizer, file: BinaryIO | BytesIO, name: str, prior: Prior | None = None
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """Decode all frames of a file that is read once, from its beginning: a pipe, or one that is still being written.

    Frames come before the end was seen, so only a stream that ends without an error was whole. `name` is what errors
    call the file. Raises as `read_frames` does.
    """
    reader = Reader(file, name)
    prior = _check_maker(reader.head, tokenizer, prior, name)
    yield from _decode_blocks(tokenizer, reader.blocks(), reader.head, prior, name)


def read_info(path: Path) -> CompressedInfo:
    """Read the facts of a `.smt` file. Raises InputError where there is none, IntegrityError where head or foot is
    damaged."""
    with _opened(path) as reader:
        head, entries = reader.head, reader.table()
        latents = sum(head.latents(entry.start, entry.frames) for entry in entries)
        frames = sum(entry.frames for entry in entries)
        return CompressedInfo(head, frames, latents * math.prod(head.grid), len(entries), path.stat().st_size)


@contextmanager
def _opened(path: Path) -> Iterator[Reader]:
    with open_media(path) as file:
        yield Reader(file, printable(path))


def _choose_prior(tokenizer: Tokenizer, model: Model | None, prior: Prior | None) -> Prior | None:
    """Return the prior that a new file may be coded with. Raises ConfigError for one that does not suit."""
    if model not in (None, "prior"):
        if prior is not None:
            raise ConfigError(f"`prior` is for the model 'prior'; `model` is {model!r}")
        return None
    prior = prior or shipped_prior(tokenizer.fingerprint)
    if prior is None and model == "prior":
        raise ConfigError("the model 'prior' needs one for this tokenizer; train it with `smalti prior`, give `prior`")
    if prior is not None and prior.tokenizer != tokenizer.fingerprint:
        raise ConfigError(
            f"`prior` is one for the ids of the tokenizer {prior.tokenizer[:16]}..., this one is "
            f"{tokenizer.fingerprint[:16]}...; train another with `smalti prior`"
        )
    return prior


def _check_maker(head: Head, tokenizer: Tokenizer, prior: Prior | None, name: str) -> Prior | None:
    """Return the prior of a file, the given one or a shipped one. Raises IntegrityError where tokenizer or prior is
    another than that of the file."""
    info = tokenizer.info
    is_mine = info.fingerprint.startswith(head.tokenizer)  # format 2 has the first half
    head.info.replace({"fingerprint": info.fingerprint if is_mine else head.tokenizer}).check(info, name)
    if head.prior is None:
        return None
    own = prior or shipped_prior(info.fingerprint)
    if own is None or own.digest != head.prior:
        other = "none is given" if own is None else f"this one is {own.digest}"
        raise IntegrityError(f"{name}: coded with the prior {head.prior}, {other}: give the one that it was coded with")
    return own


def _head(
    tokenizer: Tokenizer, size: tuple[int, int], rate: Fraction | None, group: int = 0, prior: Prior | None = None
) -> Head:
    """Make the head of a new file of frames of `size` = (height, width); an image has no `rate`."""
    head = Head(
        kind=IMAGE_KIND if rate is None else "video",
        tokenizer=tokenizer.fingerprint,
        levels=tokenizer.levels,
        strides=tokenizer.strides,
        height=size[0],
        width=size[1],
        rate=None if rate is None else (rate.numerator, rate.denominator),
        block=1,
        group=group,
        prior=prior.digest if prior else None,
    )
    return head if rate is None else head.replace({"block": max(1, BLOCK_TOKENS // math.prod(head.grid))})


def _blocks_of(
    encode: Callable[[Iterable[Tensor]], Iterator[Tensor]], frames: Iterable[Tensor], head: Head
) -> Iterator[tuple[int, Tensor]]:
    """Encode a video to (frames, ids `1 t h w`) of each block."""
    for group in groups_of(frames, head.group or None):
        numbers = count()
        counted = (frame for frame, _ in zip(group, numbers, strict=False))  # next(numbers): frames taken so far
        waiting, written = None, 0
        for ids in encode(counted):
            waiting = ids if waiting is None else torch.cat([waiting, ids], 1)
            while waiting.shape[1] > head.block:  # there is more, so this block is full
                full = head.room(written)
                yield full, waiting[:, : head.block]
                waiting, written = waiting[:, head.block :], written + full
        assert waiting is not None, "a group has a frame"
        yield next(numbers) - written, waiting


def _write(
    file: BinaryIO | BytesIO,
    source: Path,
    head: Head,
    blocks: Iterable[tuple[int, Tensor]],
    model: tuple[Model, Prior | None],
) -> Compressed:
    """Write (frames, ids `1 t h w`) of all blocks to a file, coded by a model and its prior."""
    tokens, held, bits, writer = 0, 0, 0.0, Writer(file, head)
    for frames, block in blocks:
        ids = block[0].cpu().numpy().astype(np.int64)
        data, ideal, left_out = block_to_bytes(ids, head.levels, *model, holds=head.holds)
        writer.add(frames, data)
        tokens, bits, held = tokens + block.numel(), bits + ideal, held + left_out
    writer.close()
    return Compressed(
        source=source,
        path=source,
        height=head.height,
        width=head.width,
        frames=writer.frames,
        fps=None if head.rate is None else float(head.fps),
        tokens=tokens,
        bytes=writer.bytes,
        ideal_bytes=bits / 8,
        uniform_bytes=tokens * math.log2(math.prod(head.levels)) / 8,
        bits_per_pixel=8 * writer.bytes / (writer.frames * head.height * head.width),
        ratio=source.stat().st_size / writer.bytes,
        seconds=0.0,
        held=held,
    )


def _decode_blocks(
    tokenizer: Tokenizer, blocks: Iterable[CodedBlock], head: Head, prior: Prior | None, name: str
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """Decode the frames of blocks that follow each other, the first of which starts a group."""
    size = head.height, head.width
    for _, group in groupby(blocks, lambda block: head.group_start(block.start)):
        pieces = ((block.frames, _ids_of(block, head, prior, name)) for block in group)
        if head.is_image:
            yield from (ids_to_image(tokenizer, ids, size) for _, ids in pieces)
        else:
            yield from ids_to_frames(tokenizer, pieces, size)


def _ids_of(block: CodedBlock, head: Head, prior: Prior | None, name: str) -> Int[Tensor, "1 t h w"]:
    shape = (head.latents(block.start, block.frames), *head.grid)
    try:
        starts = head.group_start(block.start) == block.start
        return bytes_to_block(block.data, shape, head, prior, starts=starts)[None]
    except ValueError as error:
        raise IntegrityError(f"{name}: the block of frame {block.start} cannot be decoded: {error}") from None
