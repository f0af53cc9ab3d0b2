"""Tokenizers beside classical codecs at equal bits, on images or video of the user's: what their rate allows others.

    python -m benchmarks.beside_codecs smalti/tiny-image-2 --data heldout.txt --size 128 --search 0 500 1600 4000
    python -m benchmarks.beside_codecs smalti/tiny-video --data test.txt --root clips --size 128 --frames 17

What is measured, and whose bits count, is said in `rate_distortion`; `--keep NAME` adds it to the page of that.
"""

import argparse
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import rate_distortion as rd
from smalti.data import source_of


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside_codecs")
    parser.add_argument("tokenizers", nargs="+", help="as for smalti.load")
    parser.add_argument("--data", type=Path, required=True, help="a folder or list")
    parser.add_argument("--root", type=Path, help="where the paths of a list start")
    parser.add_argument("--size", type=int, default=128, help="of the square in the middle, shrunk")
    parser.add_argument("--frames", type=int, default=1, help="1: images")
    parser.add_argument(
        "--search",
        type=float,
        nargs="+",
        default=(),
        metavar="PRICE",
        help="of the first tokenizer, ids at these prices",
    )
    parser.add_argument("--keep", metavar="NAME", help="write results/rates/NAME.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kind: Literal["images", "videos"] = "images" if asked.frames == 1 else "videos"
    source = source_of(asked.data, size=asked.size, frames=asked.frames, prefer=kind, root=asked.root).build()
    clips = {source.key(i): source.load(i, torch.Generator()) for i in range(len(source))}
    found = rd.points(asked.keep or asked.data.stem, asked.tokenizers, clips, asked.search)
    if asked.keep:
        rd.keep(asked.keep, found)
    table = Table("tokenizer", "codec", "bits per pixel", *rd.SCORES)
    for row in rd.at_equal_bits(found):
        values = (row[column] for column in ("bits_per_pixel", *rd.SCORES))
        table.add_row(
            str(row["setting"]), str(row["codec"]), *("-" if value is None else f"{value:.4g}" for value in values)
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
