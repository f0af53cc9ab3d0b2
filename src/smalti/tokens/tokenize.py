"""Inputs to one shard: the one function that every engine calls. What it writes follows from the plan alone."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smalti.data.images import decode_image
from smalti.data.video_reader import VideoReader
from smalti.errors import BadFile, ConfigError, MachineError
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import frames_to_ids, images_to_ids
from smalti.tokens.media import Item, digest_of, items_of, open_medium, shown
from smalti.tokens.plan import Plan
from smalti.tokens.shard import Fault, Report, Row, id_type, write_shard

Watch = Callable[[int, int], None]
"""Told (item, tokens of the shard so far) before every item and after every chunk of a video; `WRITING` at the end."""

WRITING = -1

_PIXELS_AT_ONCE = 1 << 18
"""Pixels of a chunk of video. Measured on 144 x 256: 4 frames at once take the time of 16, and less than 28."""


class _Picture(NamedTuple):
    item: Item
    pixels: Tensor
    caption: str | None
    digest: bytes


def make_shard(
    plan: Plan,
    shard: int,
    root: Path,
    tokenizer: Tokenizer,
    *,
    avoid: Mapping[int, BadFile] | None = None,
    watch: Watch | None = None,
) -> Report:
    """Make shard number `shard` of the plan from the inputs below `root`, and write it.

    Items in `avoid` are not touched: their faults, found by whoever saw them kill a process, go into the report.
    Raises MachineError where the disk refuses, ConfigError for a video and a tokenizer that is not causal where
    the plan has no clips.
    """
    maker = _Maker(plan, tokenizer, watch or (lambda item, tokens: None))
    with _fixed_arithmetic(plan.options.threads):
        for item in items_of(plan, shard, root):
            fault = (avoid or {}).get(item.number)
            maker.take(item._replace(fault=fault) if fault else item)
        maker.flush()
    maker.watch(WRITING, maker.tokens)
    return write_shard(plan, maker.report(shard), maker.rows)


def probe_item(
    plan: Plan, shard: int, root: Path, tokenizer: Tokenizer, number: int, *, watch: Watch | None = None
) -> None:
    """Do all that one item of a shard needs, and write nothing: to see whether it can be done at all."""
    maker = _Maker(plan, tokenizer, watch or (lambda item, tokens: None))
    with _fixed_arithmetic(plan.options.threads):
        for item in items_of(plan, shard, root):
            if item.number == number:
                maker.take(item)
        maker.flush()


@torch.inference_mode()
def warm_up(tokenizer: Tokenizer) -> None:
    """Encode a grey picture: the first call loads kernels and libraries, for which no item should be blamed."""
    Image.init()
    side = 8 * tokenizer.strides[2]
    tokenizer.encode(torch.zeros(1, 3, 1, side, side, device=tokenizer.device))


class _Maker:
    """Gathers the rows of a shard and the faults of what does not become one."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, watch: Watch) -> None:
        self.plan, self.options, self.tokenizer, self.watch = plan, plan.options, tokenizer, watch
        self.view, self.kind = plan.options.view, id_type(plan.about.codebook_size)
        self.rows: list[Row] = []
        self.bad: list[Fault] = []
        self.skipped: list[Fault] = []
        self.listed = 0
        self.tokens = 0  # for the watch: those of a video that ends badly are counted too
        self._waiting: list[_Picture] = []

    def take(self, item: Item) -> None:
        """Add one medium, or its fault."""
        self.listed += 1
        try:
            if item.fault is not None:
                raise item.fault
            self.watch(item.number, self.tokens)
            with _unchanged(item), _told(item):
                if self.plan.inputs.is_video(item.key):
                    self.flush()
                    self._add_video(item)
                else:
                    self._add_picture(item)
        except BadFile as bad:
            self.bad.append(Fault.of(item.key, bad))

    def flush(self) -> None:
        """Encode the pictures that wait for their batch to fill."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            with _told(waiting[0].item):
                ids = self._encode_pictures(torch.stack([picture.pixels for picture in waiting]))
        except BadFile as bad:
            if len(waiting) > 1:
                told = f"a batch of {len(waiting)} pictures, the first {bad}"
                raise MachineError(f"{told}; take a smaller batch") from None
            self.bad.append(Fault.of(waiting[0].item.key, bad))
            return
        for picture, own in zip(waiting, ids, strict=True):
            size = (1, picture.pixels.shape[0], picture.pixels.shape[1])
            self._add(picture.item, own[None], size, picture.caption, picture.digest)

    def report(self, shard: int) -> Report:
        """What has been gathered; the file is not written yet."""
        ok = self.listed - len(self.bad) - len(self.skipped)
        frames = sum(row.size[0] for row in self.rows)
        pixels = sum(row.size[0] * row.size[1] * row.size[2] for row in self.rows)
        tokens = sum(row.ids.size for row in self.rows)
        faults = tuple(self.bad), tuple(self.skipped)
        return Report(shard, self.listed, ok, len(self.rows), tokens, frames, pixels, 0, "", *faults)

    def _add_picture(self, item: Item) -> None:
        assert item.store is not None
        with open_medium(item.store.media(item.place)) as file:
            digest = digest_of(file)
            pixels = decode_image(file, item.store.where(item.place), self.options.max_pixels)
        if self._too_small(item, (pixels.shape[0], pixels.shape[1])):
            return
        picture = _Picture(item, shown(self.view, pixels, item.key), item.store.caption(item.place), digest)
        if self._waiting and self._waiting[0].pixels.shape != picture.pixels.shape:
            self.flush()
        self._waiting.append(picture)
        if len(self._waiting) == self.options.batch:
            self.flush()

    def _add_video(self, item: Item) -> None:
        assert item.store is not None
        options, media, name = self.options, item.store.media(item.place), item.store.where(item.place)
        if options.clip is None and not self.tokenizer.is_causal:
            raise ConfigError(f"{name}: a video, and a tokenizer that is not causal: cut it into clips, with clip 17")
        with open_medium(media) as file:
            digest = digest_of(file)
        with VideoReader(media, options.max_pixels, name) as reader:
            if self._too_small(item, reader.size):
                return
            chosen = options.frames_of(reader.times)
            if len(chosen) < options.min_frames:
                self.skipped.append(Fault(item.key, "few-frames", f"{len(chosen)} frames, below {options.min_frames}"))
                return
            caption, rows = item.store.caption(item.place), list[Row]()
            pts = np.asarray(reader.pts, np.int64)[chosen]
            fps = options.fps or reader.fps / options.stride
            frames = (shown(self.view, frame, item.key) for frame in reader.at(chosen))
            kept: deque[Tensor] = deque(maxlen=options.overlap)
            for clip in options.clips_of(len(chosen)):
                fresh = islice(frames, clip.frames - len(kept) if clip.start else clip.frames)
                ids, side = self._encode_clip(chain(list(kept), _keep(fresh, kept)), item)
                row = self._row(item, ids, (clip.frames, *side), caption, digest)
                key = item.key if options.clip is None else f"{item.key}#{clip.start:06d}"
                own = pts[clip.start : clip.start + clip.frames]
                time_base = f"{reader.time_base.numerator}/{reader.time_base.denominator}"
                rows.append(row._replace(key=key, fps=fps, pts=own, time_base=time_base, start=clip.start))
        self.rows += rows  # all clips of a video, or none

    def _add(self, item: Item, ids: np.ndarray, size: tuple[int, int, int], caption: str | None, digest: bytes) -> None:
        self.rows.append(self._row(item, ids, size, caption, digest))
        self.tokens += ids.size

    def _row(self, item: Item, ids: np.ndarray, size: tuple[int, int, int], caption: str | None, digest: bytes) -> Row:
        classes = item.label, item.class_name
        return Row(item.key, ids, size, None, None, None, 0, *classes, caption, item.key, digest)

    def _too_small(self, item: Item, size: tuple[int, int]) -> bool:
        if min(size) >= self.options.min_side:
            return False
        what = f"{size[1]} x {size[0]} pixels, the short side is below {self.options.min_side}"
        self.skipped.append(Fault(item.key, "small", what))
        return True

    def _encode_pictures(self, pixels: Tensor) -> np.ndarray:
        """Encode images of one size to ids `b h w`."""
        return images_to_ids(self.tokenizer, pixels)[:, 0].cpu().numpy().astype(self.kind)

    def _encode_clip(self, frames: Iterable[Tensor], item: Item) -> tuple[np.ndarray, tuple[int, int]]:
        """Encode frames that come one at a time to (ids `t h w`, (height, width))."""
        source, parts = iter(frames), list[np.ndarray]()
        first = next(source)
        for ids in frames_to_ids(self.tokenizer, chain([first], source), pixels=_PIXELS_AT_ONCE):
            parts.append(ids[0].cpu().numpy().astype(self.kind))
            self.tokens += ids.numel()
            self.watch(item.number, self.tokens)
        return np.concatenate(parts), (first.shape[0], first.shape[1])


def _keep(frames: Iterable[Tensor], kept: deque[Tensor]) -> Iterator[Tensor]:
    for frame in frames:
        kept.append(frame)
        yield frame


@contextmanager
def _unchanged(item: Item) -> Iterator[None]:
    """Refuse a medium whose file, tar or table changes while it is read."""

    def stamp() -> tuple[int, int] | None:
        try:
            status = item.path.stat()
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns

    before = stamp()
    yield
    if stamp() != before:
        raise BadFile(item.key, "changed", "has changed while it was read; let its writer end, and make a new set")


@contextmanager
def _told(item: Item) -> Iterator[None]:
    """What the memory or the network refuses becomes the fault of the item."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise BadFile(item.key, "memory", "needs more memory than there is; take a smaller size, or clips") from None
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        raise BadFile(item.key, "not-finite", f"cannot be encoded: {error}") from None


@contextmanager
def _fixed_arithmetic(threads: int) -> Iterator[None]:
    """A fixed number of threads; on a GPU the same kernels each time, in float32 proper."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)
