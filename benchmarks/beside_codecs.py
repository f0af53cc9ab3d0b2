"""A tokenizer beside classical codecs at equal bits, on pictures or film of the user's: what its rate allows others.

    python -m benchmarks.beside_codecs smalti/tiny-image --data heldout.txt --size 128
    python -m benchmarks.beside_codecs smalti/tiny-video --data test.txt --root clips --size 128 --frames 17
    python -m benchmarks.beside_codecs smalti/tiny-image --data heldout.txt --search 0 500 1600 4000

A tokenizer's bits are those of its ids, log2(codebook size) a token; those of `smalti compress`, which codes them given
their neighbours in space and time; and those of the coded ids without the file around them, with a search of ids at
prices of a bit besides. Beside it stands what is trivial: one colour a clip, means of
squares. Of x264, x265 and SVT-AV1 the coded frames count; of JPEG, WebP and AVIF the whole file, of which the
container is a good part if pictures are small.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import rate_distortion as rd
from smalti.codec.entropy import encode_ids
from smalti.codec.prior import Prior, shipped_prior
from smalti.codec.search import Search
from smalti.data import source_of
from smalti.families import load
from smalti.tokenizer import Tokenizer
from smalti.video import to_uint8, to_video


def by_ids(tokenizer: Tokenizer) -> rd.Round:
    """Frames through their ids, each of log2(codebook size) bits."""

    @torch.no_grad()
    def there_and_back(frames: Tensor) -> tuple[int, Tensor]:
        ids = tokenizer.encode(to_video(frames))
        t, h, w = frames.shape[:3]
        made = to_uint8(tokenizer.decode(ids, size=(t, h, w)))
        return round(ids.numel() * math.log2(tokenizer.codebook_size) / 8), made[0]

    return there_and_back


def by_coded_ids(tokenizer: Tokenizer, prior: Prior, price: float | None) -> rd.Round:
    """Frames through ids coded by a prior, the encoder's or those of a search; nothing else is counted."""

    @torch.no_grad()
    def there_and_back(frames: Tensor) -> tuple[int, Tensor]:
        if price is None:
            ids = tokenizer.encode(to_video(frames))
        else:
            ids = torch.cat([found.ids for found in Search(tokenizer, prior, price).video(frames)], 1)
        t, h, w = frames.shape[:3]
        made = to_uint8(tokenizer.decode(ids, size=(t, h, w)))
        return len(encode_ids(ids[0].numpy(), tokenizer.levels, "prior", prior).data), made[0]

    return there_and_back


def measure(name: str, clips: Mapping[str, Tensor], prices: Sequence[float] = ()) -> list[rd.Point]:
    """All points: the tokenizer's, and those of every codec at its settings."""
    still = all(len(frames) == 1 for frames in clips.values())
    media = "pictures" if still else "film"
    tokenizer = load(name)
    found = [
        rd.point(media, "smalti", f"{name}, ids", by_ids(tokenizer), clips),
        rd.point(media, "smalti", f"{name}, coded", rd.by_smalti(tokenizer, not still), clips),
        *rd.of_trivial(media, clips),
    ]
    if (prior := shipped_prior(tokenizer.fingerprint)) is not None:
        for price in (None, *prices):
            setting = f"{name}, coded ids" + ("" if price is None else f", searched at {price:g}")
            found.append(rd.point(media, "smalti", setting, by_coded_ids(tokenizer, prior, price), clips))
    if still:
        found += rd.of_still_codecs(media, clips)
    found += rd.of_video_codecs(media, clips)
    return found


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside_codecs")
    parser.add_argument("tokenizer", help="as for smalti.load")
    parser.add_argument("--data", type=Path, required=True, help="a folder or list")
    parser.add_argument("--root", type=Path, help="where the paths of a list start")
    parser.add_argument("--size", type=int, default=128, help="of the square in the middle, shrunk")
    parser.add_argument("--frames", type=int, default=1, help="1: pictures")
    parser.add_argument("--search", type=float, nargs="+", default=(), metavar="PRICE", help="ids at these prices")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kind: Literal["images", "videos"] = "images" if asked.frames == 1 else "videos"
    source = source_of(asked.data, size=asked.size, frames=asked.frames, prefer=kind, root=asked.root).build()
    clips = {source.key(i): source.load(i, torch.Generator()) for i in range(len(source))}
    table = Table("tokenizer", "codec", "bits per pixel", *rd.SCORES)
    for row in rd.at_equal_bytes(measure(asked.tokenizer, clips, asked.search)):
        values = (row[column] for column in ("bits_per_pixel", *rd.SCORES))
        table.add_row(
            str(row["tokenizer"]), str(row["codec"]), *("-" if value is None else f"{value:.4g}" for value in values)
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
