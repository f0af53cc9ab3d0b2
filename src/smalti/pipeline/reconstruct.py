"""Images and videos through a tokenizer and back to files: any size, any length, memory that does not grow."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.data.files import VIDEO_SUFFIXES
from smalti.data.images import read_image
from smalti.data.source import check_bad_share, memory_as_bad_file
from smalti.data.video_writer import write_media
from smalti.data.videos import VideoReader, open_video
from smalti.data.views import CropResize, viewed
from smalti.devices import Precision
from smalti.errors import BadFile, ConfigError
from smalti.families.checkpoint import as_tokenizer
from smalti.families.names import TINY_IMAGE_2, TINY_VIDEO_2
from smalti.metrics import SMALTI
from smalti.metrics.report import capped_psnr
from smalti.pipeline.outputs import Outputs, media_jobs
from smalti.text import Progress, printable
from smalti.tokenizer.frames import check_causal, ids_to_image, images_to_ids, reconstruct_frames
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.tokens.config import TokenizeOptions

_BAND = 256
"""Rows that are compared at a time."""


class Reconstructed(NamedTuple):
    """A reconstruction that was written, what it cost in tokens, and how near it is to its source."""

    source: Path
    path: Path
    height: int
    width: int
    frames: int
    fps: float | None
    """None for an image."""
    tokens: int
    bits: float
    """log2(codebook_size) for each token."""
    bits_per_pixel: float
    psnr: float
    """In dB on pixels rounded to 8 bits, the mean over frames; a frame without error counts as 100."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Parts of the source that the frames do not show, in words: packets without a frame, pauses."""


class MediaView(NamedTuple):
    """The part of media that is reconstructed."""

    options: TokenizeOptions = TokenizeOptions()
    """Size and frame rate, as a token set has them."""
    first: int = 0
    """First frame of a video."""
    end: int | None = None
    """Frame before which it ends; None is its end."""

    @classmethod
    def of(
        cls,
        *,
        frames: tuple[int, int | None] | None = None,
        size: int | tuple[int, int] | None = None,
        fps: float | None = None,
    ) -> "MediaView":
        """Return the view of those options. Raises ConfigError that names the one that cannot be."""
        first, end = frames or (0, None)
        if first < 0 or (end is not None and end <= first):
            wanted = f"{first}:{'' if end is None else end}"
            raise ConfigError(f"frames: {wanted} has no frame; give the first and the one after the last, as 0:48")
        return cls(TokenizeOptions.parse({"size": size, "fps": fps}, where="reconstruct"), first, end)

    def numbers(self, reader: VideoReader, name: str) -> list[int]:
        """Return the numbers of the frames. Raises BadFile where the video has none of them."""
        chosen = self.options.frames_of(reader.times)
        numbers = [number for number in chosen if self.first <= number and (self.end is None or number < self.end)]
        if not numbers:
            raise BadFile(
                printable(name), "short", f"has {len(reader):,} frames, none of {self.first}:{self.end or ''}"
            )
        return numbers

    def of_image(self, source: Path) -> UInt8[Tensor, "h w 3"]:
        """Read an image and crop it. Raises BadFile."""
        pixels = read_image(source).numpy()
        crop = self.crop((pixels.shape[0], pixels.shape[1]))
        return torch.from_numpy(crop.apply(pixels))

    def crop(self, size: tuple[int, int]) -> CropResize:
        """Return the crop of frames of a size (height, width)."""
        return self.options.view.view(size, torch.Generator())


def reconstruct(
    tokenizer: Tokenizer | str | Path | None,
    inputs: Sequence[Path | str],
    out: Path | str = "reconstructed",
    *,
    side_by_side: bool = True,
    overwrite: bool = False,
    clip: int | None = None,
    max_bad: float = 1.0,
    frames: tuple[int, int | None] | None = None,
    size: int | tuple[int, int] | None = None,
    fps: float | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    progress: Progress | None = None,
    on_file: Callable[[Reconstructed | BadFile], None] | None = None,
) -> Outputs[Reconstructed]:
    """Encode and decode files and folders of images and videos, at their own size and length unless said, into the
    folder `out`.

    Images become PNG and videos MP4 at the frame rate of the source, beside the original if `side_by_side`.
    `tokenizer` is one, or a name as `smalti.load` takes it; None is smalti/tiny-image-2 for images and
    smalti/tiny-video-2 for videos. `clip` cuts videos into videos of so many frames, for tokenizers that are not
    causal. `frames` (first, end) takes a part of every video, to its last frame where `end` is None; `fps` the frames
    at that rate, by their times; `size` the center crop at that (height, width), or side of a square. `device` None is
    the best there is.
    `precision` None computes in the number format of the tokenizer's file; in bfloat16 some ids are others, as good.
    `progress` hears of every frame, `on_file` of every file: its result, or its fault.

    Files that cannot be read are left out and in `bad` of the result. Raises InputError where an input has no media or
    more than the share `max_bad` of the files cannot be read (the first 100 count as read until there are so many),
    ConfigError where a file exists that may not be replaced, or for a video and a tokenizer that is not causal.
    """
    check_arguments(reconstruct, locals())
    check_out_folder("out", out)
    check_least({"clip": (clip, 1), "max_bad": (max_bad, 0)})
    view = MediaView.of(frames=frames, size=size, fps=fps)
    jobs = media_jobs([Path(path) for path in inputs], Path(out), overwrite=overwrite)
    kinds = {job.is_video for job in jobs}
    if tokenizer is not None:
        models = dict.fromkeys(kinds, as_tokenizer(tokenizer, device, precision))
    else:
        shipped = {is_video: TINY_VIDEO_2 if is_video else TINY_IMAGE_2 for is_video in kinds}
        models = {is_video: as_tokenizer(name, device, precision) for is_video, name in shipped.items()}
    outputs = Outputs[Reconstructed](len(jobs), [], [])
    for number, job in enumerate(jobs, start=1):
        note = f"{job.source.name} ({number} of {len(jobs)})"
        result: Reconstructed | BadFile
        try:
            with memory_as_bad_file(printable(job.source)):
                result = reconstruct_file(
                    models[job.is_video],
                    job.source,
                    job.target,
                    side_by_side=side_by_side,
                    clip=clip,
                    view=view,
                    progress=None if progress is None else _with_note(progress, note),
                )
            outputs.done.append(result)
        except BadFile as fault:
            result = fault.bare()
            outputs.bad.append(result)
        if on_file is not None:
            on_file(result)
        check_bad_share(len(outputs.bad), number, max_bad)
    return outputs


def reconstruct_file(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    *,
    side_by_side: bool = False,
    clip: int | None = None,
    view: MediaView | None = None,
    progress: Progress | None = None,
) -> Reconstructed:
    """Write the reconstruction of an image as PNG, or of a video, by its suffix, as MP4; whole or not at all.

    Frames are read, encoded, decoded and written as they come, so memory depends on the size of a frame and not on how
    many there are. A video of varying frame rate is written at its mean rate, without pauses, and with the shape of
    its pixels; sound is left out. `view` takes a part of it. Raises BadFile for media that cannot be read, ConfigError
    for a video and a tokenizer that is not causal without `clip`.
    """
    begin, psnrs, tokens = time.perf_counter(), list[float](), 0
    view = view or MediaView()

    def written(frames: Iterable[tuple[Tensor, Tensor, int]], total: int) -> Iterator[Tensor]:
        nonlocal tokens
        for frame, image, so_far in frames:
            tokens = so_far
            psnrs.append(_psnr(frame, image))
            if progress is not None:
                progress(len(psnrs), total)
            yield torch.cat([frame, image], 1) if side_by_side else image

    if source.suffix.lower() in VIDEO_SUFFIXES:
        check_causal(tokenizer, clip)
        with open_video(source) as reader:
            numbers, crop = view.numbers(reader, str(source)), view.crop(reader.size)
            (height, width), fps = crop.size, view.options.fps or float(reader.fps)
            frames = reconstruct_frames(tokenizer, viewed(reader, numbers, crop), clip=clip)
            write_media(target, written(frames, len(numbers)), fps, reader.pixel_aspect)
            notes = reader.notes
    else:
        fps, notes = None, ()
        shown = view.of_image(source)
        height, width, _ = shown.shape
        ids = images_to_ids(tokenizer, shown[None])
        tokens = ids.numel()
        # Images of 64 million pixels take 192 MB each: side by side, both lie in what is written and nowhere else.
        shown = torch.cat([shown, shown], 1) if side_by_side else shown
        image = ids_to_image(tokenizer, ids, (height, width), into=shown[:, width:] if side_by_side else None)
        psnrs.append(_psnr(shown[:, :width], image))
        if progress is not None:
            progress(1, 1)
        write_media(target, [shown if side_by_side else image], None)
    bits = math.log2(tokenizer.codebook_size) * tokens
    return Reconstructed(
        source=source,
        path=target,
        height=height,
        width=width,
        frames=len(psnrs),
        fps=fps,
        tokens=tokens,
        bits=bits,
        bits_per_pixel=bits / (len(psnrs) * height * width),
        psnr=math.fsum(psnrs) / len(psnrs),
        seconds=time.perf_counter() - begin,
        notes=notes,
    )


def _with_note(progress: Progress, file: str) -> Progress:
    def report(done: int, total: int | None = None, note: str = "") -> None:
        progress(done, total, f"{file} {note}".rstrip())

    return report


def _psnr(frame: UInt8[Tensor, "h w 3"], image: UInt8[Tensor, "h w 3"]) -> float:
    # Differences of 8-bit values and their squares are exact in int32 (16 bits are one too few).
    # In bands: of 64 million pixels they take 768 MB.
    bands = zip(frame.split(_BAND), image.split(_BAND), strict=True)
    total = sum(int((a.int() - b.int()).square().sum()) for a, b in bands)
    return capped_psnr(total / frame.numel(), SMALTI)
