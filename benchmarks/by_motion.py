"""PSNR of video tokenizers by the motion of the clips, frame by frame, and over long clips; the grid of their tokens.

    python -m benchmarks.media datasets --film big_buck_bunny.mp4 --until 490 --photos photos
    python -m benchmarks.by_motion datasets smalti/tiny-video smalti/tiny-video-conditional smalti/tiny-video-2
    python -m benchmarks.by_motion datasets smalti/tiny-video-2 --search 500
    python -m benchmarks.by_motion vtest.avi smalti/tiny-video-2 --drift 795

Of each held-out clip the 17 middle frames at 128 x 128, in three groups by the PSNR of neighbouring frames; then the
first 97 frames of the first seven clips that have so many, in means over 16 frames. Last the power of flat blocks at
periods of 16, 8, 4 and 2 pixels over that of the original: a grid of 8 pixels a token shows at 8. With `--search` the
middle frames alone, by ids that a search at this price of a bit finds, and the bits of a pixel of those, coded.
With `--drift N` the first N frames of one long video as one stream, in means over 100 frames, beside the same frames
where each hundred is a stream of its own: what a stream loses with its length is the difference.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.rate_distortion import by_coded_ids
from smalti.codec.prior import shipped_prior
from smalti.data import VideosConfig
from smalti.errors import BadFile
from smalti.families import load
from smalti.metrics.pixel import psnr
from smalti.tokenizer import Tokenizer
from smalti.video import to_uint8, to_video

LONG, CLIPS, WINDOW, DRIFT = 97, 7, 16, 100
STILL, MOVING = 35.0, 25.0
"""Decibels between neighbouring frames from which on a clip counts as still, and below which as moving."""
BLOCK, FLAT = 16, 3.0
"""Side of a block in pixels, and the deviation of its grey levels below which it is flat."""


def clips(data: Path, frames: int, sampling: Literal["center", "first"]) -> Iterator[Tensor]:
    """The held-out clips, uint8 `t h w 3`; shorter ones are left out."""
    folder = data / "ucf101"
    view = {"size": 128, "frames": frames, "crop": "center", "flip": False, "sampling": sampling, "short": "skip"}
    source = VideosConfig(path=folder / "testlist01.txt", root=folder / "UCF-101").replace(view).build()
    for index in range(len(source)):
        try:
            clip = source.load(index, torch.Generator())
        except BadFile:
            continue
        if len(clip) == frames:
            yield clip


def reconstructed(tokenizer: Tokenizer, clip: Tensor) -> Tensor:
    """The clip through its ids, uint8 `t h w 3`."""
    video = to_video(clip)
    return to_uint8(tokenizer.decode(tokenizer.encode(video), size=video.shape[2:]))[0]


def drift(tokenizer: Tokenizer, path: Path, frames: int) -> tuple[Tensor, Tensor]:
    """PSNR in dB of each hundred frames of a video, of one stream and of a stream for each."""
    view = {"size": 128, "frames": frames, "crop": "center", "flip": False, "sampling": "first"}
    source = VideosConfig(path=path).replace(view).build()
    film = source.load(0, torch.Generator())

    def streamed(clip: Tensor) -> Tensor:
        ids = tokenizer.encode_stream(to_video(part) for part in clip.split(WINDOW))
        made = torch.cat([to_uint8(part)[0] for part in tokenizer.decode_stream(ids, size=clip.shape[:3])])
        return decibels(made, clip)

    parts = film.split(DRIFT)
    whole = streamed(film).split(DRIFT)
    return torch.stack([one.mean() for one in whole]), torch.stack([streamed(part).mean() for part in parts])


def decibels(made: Tensor, clip: Tensor) -> Tensor:
    """PSNR of each frame in dB, of 8-bit pixels."""
    return psnr((made.float() - clip.float()).square().flatten(1).mean(1), 255)


def blocks_of(frames: Tensor) -> Tensor:
    """Grey levels of the blocks of frames `t h w 3`, `n 16 16`, aligned with the tokens."""
    cut = frames.double().mean(3).unflatten(1, (-1, BLOCK)).unflatten(3, (-1, BLOCK))
    return cut.transpose(2, 3).flatten(0, 2)


def powers(blocks: Tensor) -> Tensor:
    """Power of blocks along rows and columns at periods of 16, 8, 4 and 2 pixels, in squares of grey levels."""
    spectra = [torch.fft.rfft(blocks, dim=axis).abs().square().mean(3 - axis) for axis in (1, 2)]
    return (sum(spectra)[:, [1, 2, 4, 8]] / (2 * BLOCK**2)).mean(0)  # type: ignore[index]


def dbs(values: Tensor) -> str:
    """Values in two decimals."""
    return " ".join(f"{value:.2f}" for value in values.tolist())


@torch.no_grad()  # a search needs gradients, which inference mode rules out
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.by_motion")
    parser.add_argument("data", type=Path, help="what benchmarks.media wrote; a video for --drift")
    parser.add_argument("tokenizers", nargs="+", help="as for smalti.load")
    parser.add_argument("--search", type=float, metavar="PRICE", help="by searched ids, at this price of a bit")
    parser.add_argument("--drift", type=int, metavar="FRAMES", help="of the video DATA, as one stream")
    asked = parser.parse_args(arguments)
    if asked.drift is not None:
        for name in asked.tokenizers:
            whole, alone = drift(load(name), asked.data, asked.drift)
            print(f"{name}: one stream {dbs(whole)}; a stream for each {DRIFT} frames {dbs(alone)}", flush=True)
        return
    middle = list(clips(asked.data, 17, "center"))
    alike = torch.stack([psnr((c[1:].float() - c[:-1].float()).square().mean(), 255) for c in middle])
    groups = {"still": alike >= STILL, "between": (alike >= MOVING) & (alike < STILL), "moving": alike < MOVING}
    long = [clip for clip, _ in zip(clips(asked.data, LONG, "first"), range(CLIPS), strict=False)]
    for name in asked.tokenizers:
        tokenizer = load(name)
        note = ""
        if asked.search is None:
            made = [reconstructed(tokenizer, clip) for clip in middle]
        else:
            prior = shipped_prior(tokenizer.fingerprint)
            assert prior is not None
            search = by_coded_ids(tokenizer, prior, asked.search)
            sizes, made = zip(*map(search, middle), strict=True)
            note = f"; {8 * sum(sizes) / sum(clip[..., 0].numel() for clip in middle):.4f} bits a pixel"
        rows = torch.stack(list(map(decibels, made, middle)))
        parts = ", ".join(f"{group} ({int(mine.sum())}) {rows[mine].mean():.2f}" for group, mine in groups.items())
        print(f"{name}: {len(rows)} clips {rows.mean():.2f} dB; {parts}{note}")
        print(f"  frames 0 4 8 12 16 of clips above 40 dB: {dbs(rows[alike >= 40].mean(0)[::4])}")
        if asked.search is not None:
            continue
        flat = [blocks_of(clip).flatten(1).std(1) < FLAT for clip in middle]
        ours, own = (torch.cat([blocks_of(c)[f] for c, f in zip(which, flat, strict=True)]) for which in (made, middle))
        print(f"  power of {len(own):,} flat blocks at periods 16 8 4 2: {dbs(powers(ours) / powers(own))} times")
        windows = torch.stack(
            [decibels(reconstructed(tokenizer, clip), clip)[1:].view(-1, WINDOW).mean(1) for clip in long]
        )
        print(f"  means over {WINDOW} frames of {len(long)} clips of {LONG}: {dbs(windows.mean(0))}", flush=True)


if __name__ == "__main__":
    main()
