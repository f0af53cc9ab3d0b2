"""Inputs to one shard: the one function that every engine calls. What it writes follows from the plan alone."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smalti.data.images import decode_image
from smalti.data.parquet import ParquetStore
from smalti.data.source import Store, memory_as_bad_file, open_media
from smalti.data.tars import TarStore
from smalti.data.video_reader import VideoReader
from smalti.data.views import CropResize, ViewConfig, viewed
from smalti.errors import BadFile, ConfigError, MachineError
from smalti.families import load
from smalti.text import Progress, printable
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import frames_to_ids, images_to_ids
from smalti.tokens.plan import Plan, PlannedInput, WorkerConfig
from smalti.tokens.shard import BadItem, ShardReport, TokenRow, id_type, is_done, write_shard

OnItem = Callable[[int, int], None]
"""Callback `on_item(item, tokens)` with the number of an item and the tokens of the shard so far: before every item,
after every chunk of a video, and at the end with `WRITING` as the item."""

WRITING = -1

_CHUNK_PIXELS = 1 << 18
"""Pixels of a chunk of video. Measured on 144 x 256: 4 frames at once take the time of 16, and less than 28."""


class WorkProgress(NamedTuple):
    """Counts of what is done."""

    shards: int
    """Shards done now or before, of those that are to be done."""
    items: int
    """Items of this run."""
    tokens: int
    """Tokens of this run."""
    bad: int
    """Bad items of this run."""


NOTHING_DONE = WorkProgress(0, 0, 0, 0)
OnWork = Callable[[WorkProgress], None]


def report_to(progress: Progress | None, plan: Plan, shards: Sequence[int]) -> OnWork:
    """Return a callback that reports to `progress`: files, or shards where it is not known before how many media an
    input holds; with items and tokens a second as the note."""
    if progress is None:
        return lambda work: None
    by_files = plan.inputs.kind == "files"
    counts = plan.input_counts() if by_files else []
    total = sum(counts[shard] for shard in shards) if by_files else len(shards)
    begin = time.monotonic()

    def on_work(work: WorkProgress) -> None:
        seconds = max(1e-9, time.monotonic() - begin)
        rates = f"{work.items / seconds:,.1f} items/s, {work.tokens / seconds:,.0f} tokens/s"
        note = f"{'files' if by_files else 'shards'}, {rates}{f', {work.bad:,} bad' if work.bad else ''}"
        progress(work.items if by_files else work.shards, total, note)

    return on_work


class Item(NamedTuple):
    """A medium of a shard, or a tar or table that could not be read."""

    number: int
    """Place in the shard."""
    key: str
    store: Store | None
    place: int
    """Index in the store."""
    label: int | None
    class_name: str | None
    path: Path
    """The file, tar or table."""
    fault: BadFile | None = None


class _Image(NamedTuple):
    item: Item
    pixels: Tensor
    caption: str | None
    digest: bytes


def make_shards(plan: Plan, worker: WorkerConfig, shards: Sequence[int], on_work: OnWork | None = None) -> None:
    """Make these shards in this process, one after the other, where a decoder that hangs or crashes ends it all.

    Raises as `make_shard` does, and IntegrityError for another tokenizer than the plan's.
    """
    tokenizer = open_tokenizer_of(plan, worker)
    on_work = on_work or (lambda work: None)
    progress = NOTHING_DONE
    for shard in shards:
        before, items = progress, 0

        def on_item(item: int, tokens: int, before: WorkProgress = before) -> None:
            nonlocal items
            items = max(items, item)
            on_work(before._replace(items=before.items + items, tokens=before.tokens + tokens))

        if not is_done(plan, shard):
            report = make_shard(plan, shard, Path(worker.root), tokenizer, on_item=on_item)
            counts = before.items + report.listed, before.tokens + report.tokens, before.bad + len(report.bad)
            progress = WorkProgress(before.shards, *counts)
        progress = progress._replace(shards=progress.shards + 1)
        on_work(progress)


def make_shard(
    plan: Plan,
    shard: int,
    root: Path,
    tokenizer: Tokenizer,
    *,
    skip: Mapping[int, BadFile] | None = None,
    on_item: OnItem | None = None,
) -> ShardReport:
    """Make shard number `shard` of the plan from the inputs below `root`, and write it.

    Items in `skip` are not touched: their faults, found by whoever saw them kill a process, go into the report. Raises
    MachineError where the disk refuses, ConfigError for a video and a tokenizer that is not causal where the plan has
    no clips.
    """
    maker = _ShardMaker(plan, tokenizer, on_item)
    with _fixed_arithmetic(plan.options.threads):
        for item in items_of(plan, shard, root):
            fault = (skip or {}).get(item.number)
            maker.take(item._replace(fault=fault) if fault else item)
        maker.flush()
    maker.on_item(WRITING, maker.tokens)
    return write_shard(plan, maker.report(shard), maker.rows)


def probe_item(
    plan: Plan, shard: int, root: Path, tokenizer: Tokenizer, number: int, *, on_item: OnItem | None = None
) -> None:
    """Do all that one item of a shard needs, and write nothing: to see whether it can be done at all."""
    maker = _ShardMaker(plan, tokenizer, on_item)
    with _fixed_arithmetic(plan.options.threads):
        for item in items_of(plan, shard, root):
            if item.number == number:
                maker.take(item)
        maker.flush()


def open_tokenizer_of(plan: Plan, worker: WorkerConfig) -> Tokenizer:
    """Load the tokenizer of a worker. Raises IntegrityError where it is not that of the plan."""
    tokenizer = load(worker.tokenizer, worker.device)
    plan.tokenizer_info.check(tokenizer.info, plan.folder)
    precision = plan.options.precision
    return tokenizer if precision is None else tokenizer.compute_in(getattr(torch, precision))


@torch.inference_mode()
def warm_up(tokenizer: Tokenizer) -> None:
    """Encode a grey image: the first call loads kernels and libraries, for which no item should be blamed."""
    Image.init()
    side = 8 * tokenizer.strides[2]
    tokenizer.encode(torch.zeros(1, 3, 1, side, side, device=tokenizer.device))


def items_of(plan: Plan, shard: int, root: Path) -> Iterator[Item]:
    """Yield the media of a shard in the order of the plan, and one item for a tar or table that cannot be read."""
    number = 0
    for planned in plan.inputs_of(shard):
        path = root / planned.name
        try:
            _check_size(path, planned)
            store = plan.inputs.open(root, planned.name, planned.caption)
        except BadFile as bad:
            yield Item(number, printable(planned.name), None, 0, None, None, path, bad)
            number += 1
            continue
        for index in range(len(store)):
            label, name = _class_of(store, index, planned, plan.classes)
            yield Item(number, store.key(index), store, index, label, name, path)
            number += 1


def open_medium(media: Path | bytes) -> BinaryIO | BytesIO:
    """Open a medium for reading. Raises BadFile."""
    return BytesIO(media) if isinstance(media, bytes) else open_media(media)


def media_digest(file: BinaryIO | BytesIO) -> bytes:
    """Return the sha256 of an open file, and go back to its beginning."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0)
    return digest.digest()


def apply_view(view: ViewConfig, frame: Tensor, key: str) -> Tensor:
    """Return the crop of an image or frame `h w 3` that a token set shows. Raises BadFile, naming `key`."""
    return torch.from_numpy(view_of(view, (frame.shape[0], frame.shape[1]), key).apply(frame.numpy()))


def view_of(view: ViewConfig, size: tuple[int, int], key: str) -> CropResize:
    """Return the crop of images or frames of that height and width. Raises BadFile, naming `key`."""
    return view.view(size, torch.Generator().manual_seed(0), key)  # the views of token sets are not random


def _class_of(
    store: Store, index: int, planned: PlannedInput, classes: tuple[str, ...]
) -> tuple[int | None, str | None]:
    """Return (number, name) of a medium's class. Names that one tar or table numbers for itself have no number here."""
    if isinstance(store, TarStore | ParquetStore):
        label = store.label(index)
        if label is None:
            return None, None
        return label if store.numbered else None, store.classes[label]
    return planned.label, None if planned.label is None else classes[planned.label]


def _check_size(path: Path, planned: PlannedInput) -> None:
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return  # opening it will raise the error with its reason
    if size != planned.bytes:
        what = f"had {planned.bytes:,} bytes when the plan was made and has {size:,}; bring it back, or make a new set"
        raise BadFile(printable(path), "changed", what)


class _ShardMaker:
    """Gathers the rows of a shard and the faults of what does not become one."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, on_item: OnItem | None) -> None:
        self.plan, self.options, self.tokenizer = plan, plan.options, tokenizer
        self.on_item = on_item or (lambda item, tokens: None)
        self.view, self.id_type = plan.options.view, id_type(plan.tokenizer_info.codebook_size)
        self.rows: list[TokenRow] = []
        self.bad: list[BadItem] = []
        self.skipped: list[BadItem] = []
        self.listed = 0
        self.tokens = 0  # for `on_item`: those of a video that ends badly are counted too
        self._waiting: list[_Image] = []

    def take(self, item: Item) -> None:
        """Add one medium, or its fault."""
        self.listed += 1
        try:
            if item.fault is not None:
                raise item.fault
            self.on_item(item.number, self.tokens)
            with _unchanged(item), _as_bad_file(item):
                if self.plan.inputs.is_video(item.key):
                    self.flush()
                    self._add_video(item)
                else:
                    self._add_image(item)
        except BadFile as bad:
            self.bad.append(BadItem.of(item.key, bad))

    def flush(self) -> None:
        """Encode the images that wait for their batch to fill."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            with _as_bad_file(waiting[0].item):
                ids = self._encode_images(torch.stack([image.pixels for image in waiting]))
        except BadFile as bad:
            if len(waiting) > 1:
                raise MachineError(f"a batch of {len(waiting)} images, the first {bad}; take a smaller batch") from None
            self.bad.append(BadItem.of(waiting[0].item.key, bad))
            return
        for image, image_ids in zip(waiting, ids, strict=True):
            size = (1, image.pixels.shape[0], image.pixels.shape[1])
            self.rows.append(self._row(image.item, image_ids[None], size, image.caption, image.digest))
            self.tokens += image_ids.size

    def report(self, shard: int) -> ShardReport:
        """Return the counts of what has been gathered; size and digest of the file follow when it is written."""
        ok = self.listed - len(self.bad) - len(self.skipped)
        frames = sum(row.size[0] for row in self.rows)
        pixels = sum(row.size[0] * row.size[1] * row.size[2] for row in self.rows)
        tokens = sum(row.ids.size for row in self.rows)
        left_out = tuple(self.bad), tuple(self.skipped)
        return ShardReport(shard, self.listed, ok, len(self.rows), tokens, frames, pixels, 0, "", *left_out)

    def _add_image(self, item: Item) -> None:
        assert item.store is not None
        with open_medium(item.store.media(item.place)) as file:
            digest = media_digest(file)
            pixels = decode_image(file, item.store.where(item.place), self.options.max_pixels)
        if self._too_small(item, (pixels.shape[0], pixels.shape[1])):
            return
        image = _Image(item, apply_view(self.view, pixels, item.key), item.store.caption(item.place), digest)
        if self._waiting and self._waiting[0].pixels.shape != image.pixels.shape:
            self.flush()
        self._waiting.append(image)
        if len(self._waiting) == self.options.batch:
            self.flush()

    def _add_video(self, item: Item) -> None:
        assert item.store is not None
        options, media, name = self.options, item.store.media(item.place), item.store.where(item.place)
        if options.clip is None and not self.tokenizer.is_causal:
            raise ConfigError(f"{name}: a video, and a tokenizer that is not causal: cut it into clips, with clip 17")
        with open_medium(media) as file:
            digest = media_digest(file)
        with VideoReader(media, options.max_pixels, name) as reader:
            if self._too_small(item, reader.size):
                return
            numbers = options.frames_of(reader.times)
            if len(numbers) < options.min_frames:
                self.skipped.append(
                    BadItem(item.key, "few-frames", f"{len(numbers)} frames, below {options.min_frames}")
                )
                return
            caption, rows = item.store.caption(item.place), list[TokenRow]()
            pts = np.asarray(reader.pts, np.int64)[numbers]
            fps = options.fps or reader.fps / options.stride
            aspect = None if reader.pixel_aspect == 1 else "/".join(map(str, reader.pixel_aspect.as_integer_ratio()))
            frames = viewed(reader, numbers, view_of(self.view, reader.size, item.key))
            shared: deque[Tensor] = deque(maxlen=options.overlap)
            for clip in options.clips_of(len(numbers)):
                fresh = islice(frames, clip.frames - len(shared) if clip.start else clip.frames)
                ids, side = self._encode_clip(chain(list(shared), _remember(fresh, shared)), item)
                row = self._row(item, ids, (clip.frames, *side), caption, digest)
                key = item.key if options.clip is None else f"{item.key}#{clip.start:06d}"
                own = pts[clip.start : clip.start + clip.frames]
                time_base = f"{reader.time_base.numerator}/{reader.time_base.denominator}"
                row = row._replace(key=key, fps=fps, pts=own, time_base=time_base, start=clip.start)
                rows.append(row._replace(pixel_aspect=aspect))
        self.rows += rows  # all clips of a video, or none

    def _row(
        self, item: Item, ids: np.ndarray, size: tuple[int, int, int], caption: str | None, digest: bytes
    ) -> TokenRow:
        classes = item.label, item.class_name
        return TokenRow(item.key, ids, size, None, None, None, 0, *classes, caption, item.key, digest)

    def _too_small(self, item: Item, size: tuple[int, int]) -> bool:
        if min(size) >= self.options.min_side:
            return False
        what = f"{size[1]} x {size[0]} pixels, the short side is below {self.options.min_side}"
        self.skipped.append(BadItem(item.key, "small", what))
        return True

    def _encode_images(self, pixels: Tensor) -> np.ndarray:
        """Encode images of one size to ids `b h w`."""
        return images_to_ids(self.tokenizer, pixels)[:, 0].cpu().numpy().astype(self.id_type)

    def _encode_clip(self, frames: Iterable[Tensor], item: Item) -> tuple[np.ndarray, tuple[int, int]]:
        """Encode frames that come one at a time to (ids `t h w`, (height, width))."""
        source, parts = iter(frames), list[np.ndarray]()
        first = next(source)
        for ids in frames_to_ids(self.tokenizer, chain([first], source), pixels=_CHUNK_PIXELS):
            parts.append(ids[0].cpu().numpy().astype(self.id_type))
            self.tokens += ids.numel()
            self.on_item(item.number, self.tokens)
        return np.concatenate(parts), (first.shape[0], first.shape[1])


def _remember(frames: Iterable[Tensor], last: deque[Tensor]) -> Iterator[Tensor]:
    """Yield the frames and keep the last ones for the next clip."""
    for frame in frames:
        last.append(frame)
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
def _as_bad_file(item: Item) -> Iterator[None]:
    """Turn what the memory or the network refuses into a fault of the item."""
    try:
        with memory_as_bad_file(item.key):
            yield
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        raise BadFile(item.key, "not-finite", f"cannot be encoded: {error}") from None


@contextmanager
def _fixed_arithmetic(threads: int) -> Iterator[None]:
    """Compute with a fixed number of threads; on a GPU with the same kernels each time, in float32 proper."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)
