"""Ids of exported tokenizers against PyTorch's, on images and clips of mixed sizes.

    python -m benchmarks.export_parity MEDIA smalti/tiny-image smalti/tiny-video [--out FILE]

MEDIA has `photos` and `clips` or `film` (images and videos anywhere below). Images are cut to sizes of their own, clips
to sizes and lengths of their own; each is encoded and decoded whole, and in chunks where there is a streaming step.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

import smalti
from smalti.data import read_clip, read_image
from smalti.pipeline.export import export
from smalti.pipeline.parity import Agreement
from smalti.pipeline.runtimes import Exported
from smalti.video import to_video

STEP = 7
"""Sizes differ by this many pixels, so that few are multiples of a stride."""


def cut(pixels: Tensor, number: int) -> Tensor:
    """The middle of a video `b 3 t h w`, of a size that depends on the number: 96 to 243 pixels on a side."""
    height, width = 96 + STEP * (number % 12), 96 + STEP * (number * 5 % 22)
    top, left = max(0, (pixels.shape[3] - height) // 2), max(0, (pixels.shape[4] - width) // 2)
    return pixels[..., top : top + height, left : left + width]


def images(media: Path, count: int) -> Iterator[tuple[str, Tensor]]:
    """The first images below `photos`."""
    paths = sorted(path for path in (media / "photos").rglob("*") if path.suffix in (".jpg", ".png"))
    for number, path in enumerate(paths[:count]):
        yield f"{path.parent.name}/{path.name}", cut(to_video(read_image(path)), number)


def clips(media: Path, count: int) -> Iterator[tuple[str, Tensor]]:
    """Clips of 1 to 20 frames from all videos in turns, at other places each."""
    paths = sorted(path for path in media.rglob("*.mp4") if path.parts[-2] != "photos")
    for number in range(count):
        path = paths[number % len(paths)]
        clip = read_clip(path, 1 + number, place=number / count)
        yield f"{path.name} {1 + number} frames", cut(to_video(clip), number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path)
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in arguments.tokenizers:
        tokenizer = smalti.load(name)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "out"
            export(tokenizer, folder)
            about = json.loads((folder / "config.json").read_text())["programs"]
            agreement = Agreement(tokenizer, Exported(folder, about))
            for title, video in images(arguments.media, arguments.images):
                agreement.add(title, video)
            for title, video in islice(clips(arguments.media, arguments.clips), arguments.clips):
                agreement.add(title, video)
        found[name] = agreement.counts
        print(json.dumps({name: found[name]}), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
