"""Samples beside the training picture that each is nearest to: `python -m benchmarks.nearest --help`.

A model of few pictures may give them back. Nearest is by the mean squared difference of pixels, over every training
picture, as the tokenizer gives it back and mirrored too: what the token model could have remembered.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from smalti.data import evaluation, read_image, source_of
from smalti.families import load
from smalti.metrics.contact_sheet import contact_sheet
from smalti.video import to_uint8, to_video

COPY = 25.0
"""dB from which a sample is the training picture to the eye."""


def pictures(folder: Path, size: int) -> list[tuple[str, Tensor]]:
    """(key, `1 3 1 h w`) of every picture."""
    return [(batch.keys[0], batch.video) for batch in evaluation(source_of(folder, size=size).build())]


def nearest(sample: Tensor, train: Tensor) -> tuple[int, float]:
    """The row of `train` (`n 3 1 h w`) that is nearest, mirrored or not, and its PSNR in dB."""
    errors = torch.stack([(train - one).square().mean((1, 2, 3, 4)) for one in (sample, sample.flip(-1))]).amin(0)
    row = int(errors.argmin())
    return row, float(-10 * (errors[row] / 4).log10())


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nearest")
    parser.add_argument("drawn", type=Path, help="a folder of `smalti generate --class all`")
    parser.add_argument("train", type=Path, help="the pictures that the token set was made of")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--columns", type=int, default=4, help="samples of each class that are drawn")
    parser.add_argument("--sheet", type=Path, help="a PNG to write")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    samples = {path: to_video(read_image(path)) for path in sorted(asked.drawn.glob("*/*.png"))}
    size = next(iter(samples.values())).shape[-1]
    tokenizer = load(asked.tokenizer)
    named = pictures(asked.train, size)
    train = torch.cat([tokenizer.decode(tokenizer.encode(video)).clamp(-1, 1) for _, video in named])
    found = {path: nearest(video, train) for path, video in samples.items()}
    psnr = sorted(one[1] for one in found.values())
    copies = sum(value > COPY for value in psnr)
    print(f"{len(found)} samples, each beside the nearest of {len(named)} training pictures after the tokenizer:")
    median = psnr[len(psnr) // 2]
    print(f"PSNR {psnr[0]:.1f} to {psnr[-1]:.1f} dB, median {median:.1f}; {copies} above {COPY:g} dB: copies")
    if asked.sheet is not None:
        table = []
        for folder in sorted({path.parent for path in samples}):
            of = [path for path in samples if path.parent == folder][: asked.columns]
            shown = [picture for path in of for picture in (samples[path], train[found[path][0]][None])]
            table.append([to_uint8(picture)[0, 0].numpy() for picture in shown])
        contact_sheet(table, ["sample", "nearest"] * asked.columns).save(asked.sheet)


if __name__ == "__main__":
    main()
