"""Ids of exported tokenizers against PyTorch's, on images and clips of mixed sizes.

    python -m benchmarks.export_parity MEDIA smalti/tiny-image smalti/tiny-video lfq dsq vidtok [--out FILE]

MEDIA has images and videos anywhere below. Images are cut to sizes of their own, clips to sizes and lengths of their
own; each is encoded and decoded whole, and in chunks where there is a streaming step. Beside the names that
`smalti.load` takes there are tokenizers with random weights (`lfq`: 18 bits, images; `dsq`: 64,000 codes,
video), and imported ones with the weights of the goldens (`open-magvit2`: images; `vidtok`: 1.0, video).
Results are added to those in FILE.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import smalti
from smalti.data import read_clip, read_image
from smalti.pipeline.parity import Agreement
from smalti.pipeline.runtimes import Exported, Target, WeightType, write_program
from smalti.quantize import DSQConfig, LFQConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.tokenizer.graphs import programs
from smalti.video import to_video
from tests.families import test_open_magvit2, test_vidtok
from tests.families.golden import imported
from tests.randomise import random_tokenizer

STEP = 7
"""Sizes differ by this many pixels, so that few are multiples of a stride."""
SMALL = {"width": 32, "multipliers": (1, 2), "depth": 1, "decoder_depth": 1, "middle": 1}
MADE: dict[str, Callable[[], Tokenizer]] = {
    "lfq": lambda: random_tokenizer(TokenizerConfig(**SMALL, strides=((1, 2),), patch=4, quantizer=LFQConfig(bits=18))),
    "dsq": lambda: random_tokenizer(
        TokenizerConfig(
            **SMALL, strides=((2, 2),), patch=4, quantizer=DSQConfig(levels=(8, 8, 8, 5, 5, 5)), time_kernel=3
        )
    ),
    "open-magvit2": lambda: imported("om2_image128L_w32_32px", test_open_magvit2.recognised).tokenizer,
    "vidtok": lambda: test_vidtok.built("vidtok_v10_fsq41616_w16_t9_32px").tokenizer,
}


def cut(pixels: Tensor, number: int) -> Tensor:
    """The middle of a video `b 3 t h w`, of a size that depends on the number: 64 to 211 pixels on a side."""
    height, width = 64 + STEP * (number % 12), 64 + STEP * (number * 5 % 22)
    top, left = max(0, (pixels.shape[3] - height) // 2), max(0, (pixels.shape[4] - width) // 2)
    return pixels[..., top : top + height, left : left + width]


def below(media: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in media.rglob("*") if path.suffix.lower() in suffixes)


def spread(paths: list[Path], count: int) -> list[Path]:
    """As many paths as are asked for, from all folders alike."""
    return [paths[number * len(paths) // count] for number in range(count)]


def images(media: Path, count: int) -> Iterator[tuple[str, Tensor]]:
    """Images from all folders."""
    for number, path in enumerate(spread(below(media, ".jpg", ".jpeg", ".png"), count)):
        yield path.name, cut(to_video(read_image(path)), number)


def clips(media: Path, count: int) -> Iterator[tuple[str, Tensor]]:
    """Clips of 1 to 20 frames, at other places each."""
    for number, path in enumerate(spread(below(media, ".mp4", ".avi", ".webm"), count)):
        frames = 1 + number % 20
        yield f"{path.name} {frames} frames", cut(to_video(read_clip(path, frames, place=number / count)), number)


def compare(tokenizer: Tokenizer, to: Target, weights: WeightType, arguments: argparse.Namespace) -> dict[str, Any]:
    """Counts by program of one tokenizer in one runtime."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = programs(copy.deepcopy(tokenizer), one_group=to == "pt2")
        about = {part.name: write_program(part, folder, to, weights) for part in parts}
        written = time.process_time()
        agreement = Agreement(tokenizer, Exported(folder, about, to))
        for title, video in images(arguments.media, arguments.images):
            agreement.add(title, video)
        for title, video in clips(arguments.media, arguments.clips):
            agreement.add(title, video)
    seconds = {"writing": round(written - begun), "comparing": round(time.process_time() - written)}
    return {"programs": agreement.counts, "cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path)
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--to", nargs="+", choices=("onnx", "pt2"), default=("onnx", "pt2"))
    parser.add_argument("--weights", choices=("float32", "float16"), default="float32")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.tokenizers:
        for to in arguments.to:
            tokenizer = (MADE[name]() if name in MADE else smalti.load(name)).to(dtype=torch.float32).eval()
            found = compare(tokenizer, to, arguments.weights, arguments)
            found |= {"images": arguments.images, "clips": arguments.clips, "torch": torch.__version__}
            key = f"{name} {to}" if arguments.weights == "float32" else f"{name} {to} {arguments.weights}"
            print(json.dumps({key: found}), flush=True)
            if arguments.out is not None:
                before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
                arguments.out.write_text(json.dumps({**before, key: found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
