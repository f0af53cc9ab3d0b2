"""The tokenizers of `rate_distortion`: small ones, trained here on the media that smalti ships, some minutes each.

python -m benchmarks.rate_tokenizers      # trains those that are not in runs/rate-distortion yet
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.pipeline.train import train
from smalti.recipes import tiny, tiny_video
from smalti.tokenizer import Tokenizer, inflate
from smalti.training.config import TokenizerTraining

ROOT = Path("runs/rate-distortion")
IMAGES = {"4x4": (4, 64, 32), "8x8": (8, 96, 64), "16x16": (16, 128, 128)}
"""Name -> (patch, width, training crop): each has 64 tokens a crop, FSQ 64,000, and all blocks at their resolution."""
VIDEOS = {"4x8x8": "8x8", "4x16x16": "16x16"}
"""Name -> the image tokenizer that it is inflated from."""


def image_training(name: str, steps: int = 2300) -> TokenizerTraining:
    """The recipe `demo-image` with another patch and width, and crops that grow with the patch."""
    patch, width, crop = IMAGES[name]
    base = tiny(steps)
    scale = {4: (0.2, 0.5), 8: (0.35, 0.7), 16: (0.5, 1.0)}[patch]
    return base.replace(
        {
            "tokenizer": base.tokenizer.replace({"patch": patch, "width": width}),
            "data": ImagesConfig(path=photos("train"), size=crop, scale=scale, in_memory=64),
        }
    )


def video_training(name: str, init: Path, steps: int = 320) -> TokenizerTraining:
    """The recipe `demo-video` with another patch and width."""
    patch, width, crop = IMAGES[VIDEOS[name]]
    base = tiny_video(steps)
    tokenizer = base.tokenizer.replace({"patch": patch, "width": width})
    data = base.data.replace({"size": crop, "scale": (0.4, 0.8) if patch == 8 else (0.8, 1.0)})
    return base.replace({"tokenizer": tokenizer, "data": data, "init": init})


def trained() -> Mapping[str, Path]:
    """The tokenizers by name, trained if they are not there; a training that was stopped goes on."""
    folders: dict[str, Path] = {}
    for name in IMAGES:
        folders[name] = _run(name, image_training(name))
    for name, image in VIDEOS.items():
        start = ROOT / f"{name}-start"
        if not start.is_dir():
            inflate(Tokenizer.load(folders[image]), (4,), time_kernel=4).save(start)
        folders[name] = _run(name, video_training(name, start))
    return folders


def _run(name: str, config: TokenizerTraining) -> Path:
    out = ROOT / name
    if not (out / "tokenizer" / "config.json").is_file():
        begun = time.process_time()
        train(config, out, resume=(out / "config.yaml").is_file(), device="cpu")
        print(f"{name}: {config.steps} steps, {time.process_time() - begun:.0f} s of CPU time", file=sys.stderr)
    return out / "tokenizer"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for tokenizer, folder in trained().items():
        print(tokenizer, folder)
