"""The priors that ship with the tokenizers: trained on the media that those were trained on.

    python -m benchmarks.media datasets --film big_buck_bunny.mp4 --until 490 --photos photos
    python -m benchmarks.priors datasets smalti/tiny-image --out tiny-image.safetensors
    python -m benchmarks.priors datasets smalti/tiny-video --out tiny-video.safetensors --steps 2500
    python -m benchmarks.priors datasets smalti/tiny-video-conditional --out conditional.safetensors --steps 2500
    python -m benchmarks.priors datasets smalti/tiny-image-2 --out tiny-image-2.safetensors
    python -m benchmarks.priors datasets smalti/tiny-video-2 --out tiny-video-2.safetensors --steps 2500

An image tokenizer sees every training image at five sizes and parts of film frame by frame, a video tokenizer parts of
film alone. Then the bits of a token are measured on what is held out: images shrunk to 128 x 128, the 17 middle frames
of clips.
"""

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from smalti.codec.entropy import Model, encode_ids
from smalti.codec.learn_prior import learn_prior
from smalti.codec.prior import Prior, shipped_prior
from smalti.data import open_video
from smalti.families import load
from smalti.nn.causal import time_first
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.closed_loop import closed_loop
from smalti.tokenizer.conditional import ConditionalDecoder, ConditionalEncoder
from smalti.tokenizer.frames import HELD_ID, frames_to_ids
from smalti.training.config import HeldTokens
from smalti.video import to_video

SCALES = (0.25, 0.37, 0.5, 0.75, 1.0)
PARTS, TURNS = 3, 4
"""Parts of a clip, of which an image tokenizer sees two; turns in which every fourth clip is taken."""
LENGTHS = (17, 33, 65)
HELD = HeldTokens(share=0.5)
"""Share of the parts in which conditional tokens are held, and the thresholds of that: those of training."""
FRAMES_ALONE = 9
"""Frames of a part that an image tokenizer sees."""
ALONE = "explore_monuments/045"
"""Held out by its name, and in the training data under another."""


def ids_of(tokenizer: Tokenizer, images: Sequence[Image.Image]) -> np.ndarray:
    """The ids `t h w` of frames."""
    frames = [torch.from_numpy(np.array(image)) for image in images]
    return torch.cat(list(frames_to_ids(tokenizer, frames)), 1)[0].numpy()


@torch.inference_mode()
def held_ids_of(tokenizer: Tokenizer, images: Sequence[Image.Image], threshold: float) -> np.ndarray:
    """The ids `t h w` of frames, conditional tokens held where they better the squared error by less."""
    video = tokenizer.pad(to_video(torch.from_numpy(np.stack(images))))
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    assert isinstance(encoder, ConditionalEncoder)
    assert isinstance(decoder, ConditionalDecoder)
    frames, below = time_first(video, tokenizer.dtype), torch.tensor([threshold])
    loop = closed_loop(encoder, decoder, tokenizer.quantizer, frames, hold_below=below)
    assert loop.held is not None
    held = torch.cat([torch.zeros_like(loop.held[:1]), loop.held])[:, 0].numpy()
    return np.where(held, HELD_ID, loop.ids[0].numpy())


def shrunk(image: Image.Image, scale: float, turned: bool) -> Image.Image:
    """The image at another scale, and mirrored."""
    size = max(16, round(image.width * scale)), max(16, round(image.height * scale))
    image = image.resize(size, Image.Resampling.LANCZOS)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turned else image


def frames_of(path: Path) -> list[Image.Image]:
    """All frames of a clip."""
    with open_video(path) as reader:
        return [Image.fromarray(frame.numpy()) for frame in reader.frames()]


def clips(data: Path, part: str) -> list[Path]:
    """The clips of a list."""
    lines = (data / "ucf101" / f"{part}list01.txt").read_text(encoding="utf-8").splitlines()
    return [data / "ucf101" / "UCF-101" / line.split()[0] for line in lines]


def to_learn(tokenizer: Tokenizer, data: Path, photographs: Path | None) -> Iterator[np.ndarray]:
    """Blocks of ids to train on."""
    rng, is_image = random.Random(0), tokenizer.strides[0] == 1
    images = sorted((data / "ImageNet" / "train").rglob("*.JPEG"))
    images += [] if photographs is None else sorted(photographs.glob("*.jpg"))
    for path in images if is_image else ():
        image = Image.open(path).convert("RGB")
        for scale in SCALES:
            yield ids_of(tokenizer, [shrunk(image, scale * rng.uniform(0.9, 1.1), rng.random() < 0.5)])
    paths = clips(data, "train")
    for turn in range(TURNS):
        rng = random.Random(turn or 1)
        for path in paths[turn::TURNS]:
            frames = frames_of(path)
            for number in range(PARTS):
                length = min(len(frames), rng.choice(LENGTHS))
                start, scale, turned = rng.randint(0, len(frames) - length), rng.uniform(0.35, 0.8), rng.random() < 0.5
                part = [shrunk(frame, scale, turned) for frame in frames[start : start + length]]
                if isinstance(tokenizer.decoder, ConditionalDecoder) and rng.random() < HELD.share:
                    yield held_ids_of(tokenizer, part, math.exp(rng.uniform(math.log(HELD.least), math.log(HELD.most))))
                elif not is_image or number < 2:
                    yield ids_of(tokenizer, part[: FRAMES_ALONE if is_image else None])


def held_out(tokenizer: Tokenizer, data: Path) -> dict[str, list[np.ndarray]]:
    """Blocks of ids to measure on, by what they are."""

    def square(image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return image.crop(box).resize((128, 128), Image.Resampling.LANCZOS)

    found: dict[str, list[np.ndarray]] = {"images": [], "clips": []}
    for path in sorted((data / "ImageNet" / "validation").rglob("*.JPEG")) if tokenizer.strides[0] == 1 else ():
        if "BigBuckBunny" not in str(path) and ALONE not in str(path):
            found["images"].append(ids_of(tokenizer, [square(Image.open(path).convert("RGB"))]))
    for path in clips(data, "test"):
        frames = frames_of(path)
        start = (len(frames) - 17) // 2
        found["clips"].append(ids_of(tokenizer, [square(frame) for frame in frames[start : start + 17]]))
    return {name: blocks for name, blocks in found.items() if blocks}


def bits(blocks: Sequence[np.ndarray], tokenizer: Tokenizer, model: Model, prior: Prior | None = None) -> float:
    """Mean bits of a token, the overhead of the range coder left out."""
    spent = sum(encode_ids(block, tokenizer.levels, model, prior).bits for block in blocks)
    return spent / sum(block.size for block in blocks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, write the prior, print bits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.priors")
    parser.add_argument("data", type=Path, help="what benchmarks.media wrote")
    parser.add_argument("tokenizer", help="as for smalti.load")
    parser.add_argument("--out", type=Path, help="the file to write; none: only measure the prior that there is")
    parser.add_argument("--photographs", type=Path, help="more to train on: what benchmarks.photographs wrote")
    parser.add_argument("--steps", type=int, default=3000)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tokenizer = load(asked.tokenizer)
    if asked.out is not None:
        learned = learn_prior(to_learn(tokenizer, asked.data, asked.photographs), tokenizer.info, steps=asked.steps)
        learned.prior.save(asked.out)
        print(f"{learned.tokens:,} tokens, {learned.steps:,} steps, {learned.loss:.3f} bits a token")
    prior = learned.prior if asked.out is not None else shipped_prior(tokenizer.fingerprint)
    models: tuple[Model, ...] = ("uniform", "static", "adaptive", "prior")
    for name, blocks in held_out(tokenizer, asked.data).items():
        for model in models:
            print(
                f"{len(blocks)} {name}, {model}: {bits(blocks, tokenizer, model, prior):.3f} bits a token", flush=True
            )


if __name__ == "__main__":
    main()
