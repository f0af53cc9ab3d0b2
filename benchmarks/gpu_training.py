"""Train the second edition of the small weights on one GPU, in the seconds that there are.

    python -m benchmarks.media datasets --film big_buck_bunny.mp4 --until 490 --photos photos
    python -m benchmarks.gpu_training image datasets --seconds 240 --out tiny-image-2
    python -m benchmarks.gpu_training conditional datasets --init tiny-image-2 --seconds 350 --out conditional

A probe of the same run says how many steps fit; the learning rates' cosine then spans those. `OUT` is the tokenizer in
half precision with its training.yaml; OUT-figures.json beside it has the speed and the curves, OUT-curves.png the
curves drawn.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.training_run import curves_of, draw
from smalti.config import Config
from smalti.data import ImagesConfig, JointConfig, VideosConfig
from smalti.families import load
from smalti.families.names import TINY_IMAGE
from smalti.files import read_rows
from smalti.pipeline.train import train
from smalti.tokenizer import ConditionalConfig, TokenizerConfig
from smalti.training.config import MuonConfig, OptimizerConfig, TokenizerTraining
from smalti.training.fit import Stopped

PROBE = 120
"""Steps of the probe, of which the last quarter counts: before, readers start and kernels are chosen."""
SHARE = 0.95
"""Share of the seconds that the steps of the run are to take; the rest is for its start and its end."""
CURVES = ("total", "psnr", "perplexity", "validation/psnr")

IMAGE = load(TINY_IMAGE).config.replace({"decoder_depth": 2})
"""That of `smalti/tiny-image` with one more block in the decoder at each resolution: 3.96 million parameters, 7.9 MB in
half precision."""


def common(steps: int, workers: int) -> dict[str, Any]:
    """Return the fields that both runs share."""
    return {
        "steps": steps,
        "weights": {"l2": 1.0, "batch_entropy": -0.001},
        "entropy_boost_steps": max(1, steps // 2),
        "optimizer": OptimizerConfig(lr=2e-3, warmup=min(100, steps), muon=MuonConfig(lr=0.02, turns=3)),
        "precision": "bfloat16",
        "workers": workers,
        "held_out": 0,
        "log_every": max(1, min(20, steps // 4)),
        "save_every": max(1, steps // 2),
        "sample_every": steps,
        "eval_every": max(1, steps // 4),
        "keep": 1,
    }


def images(data: Path) -> ImagesConfig:
    """Return the photographs and frames to learn from."""
    return ImagesConfig(path=data / "ImageNet/train", size=64, scale=(0.25, 0.75), in_memory=429)


def image(data: Path, steps: int, workers: int) -> TokenizerTraining:
    """Return the run of the image tokenizer."""
    held_out = ImagesConfig(path=data / "ImageNet/validation", size=128, crop="center", flip=False)
    run = {"batch_size": 128, "entropy_boost": 19.0, "validation_limit": 118, "ema": 0.999}
    return TokenizerTraining(tokenizer=IMAGE, data=images(data), validation=held_out, **run, **common(steps, workers))


def conditional(data: Path, steps: int, workers: int, init: Path) -> TokenizerTraining:
    """Return the run of the conditional tokenizer on long clips; the image tokenizer inside stays as it is."""
    folder = data / "ucf101"
    videos = VideosConfig(
        path=folder / "trainlist01.txt", root=folder / "UCF-101", size=64, frames=49, scale=(0.3, 0.8)
    )
    first = load(str(init)).config
    assert isinstance(first, TokenizerConfig)
    view = {"size": 128, "frames": 17, "crop": "center", "flip": False, "sampling": "center"}
    held_out = VideosConfig(path=folder / "testlist01.txt", root=folder / "UCF-101").replace(view)
    run = {"batch_size": 32, "entropy_boost": 9.0, "validation_limit": 32, "ema": 0.998}
    return TokenizerTraining(
        tokenizer=ConditionalConfig(image=first, decoder_depth=(2, 2)),
        data=JointConfig(images=images(data), videos=videos, share=0.1),
        validation=held_out if (folder / "testlist01.txt").exists() else None,
        init=init,
        frozen=("encoder.image", "decoder.image"),
        still_frames=49,
        last_frame_weight=2.0,
        **run,
        **common(steps, workers),
    )


def probe(config: TokenizerTraining, device: str) -> float:
    """Return how many steps a second a run makes once it is under way."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", device=device)
        speeds = [
            line["steps_per_second"] for line in read_rows(Path(folder) / "run" / "log.jsonl", "steps_per_second")
        ]
    last = speeds[-max(1, len(speeds) // 4) :]
    return float(sum(last) / len(last))


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe, train, keep the weights and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("image", "conditional"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", type=Path, help="image tokenizer of the conditional one")
    parser.add_argument("--seconds", type=float, default=240.0, help="of all: probe, run, end")
    parser.add_argument("--steps", type=int, help="so many, without a probe")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    began = time.monotonic()

    def config(steps: int) -> TokenizerTraining:
        if given.what == "image":
            return image(given.data, steps, given.workers)
        return conditional(given.data, steps, given.workers, given.init)

    steps, speed = given.steps, None
    if steps is None:
        unvalidated: dict[str, object] = {"validation": None, "eval_every": PROBE, "log_every": PROBE // 12}
        speed = probe(config(PROBE).replace(unvalidated), given.device)
        steps = max(PROBE, int(SHARE * (given.seconds - (time.monotonic() - began)) * speed))
        print(f"{speed:.2f} steps a second: {steps} steps", file=sys.stderr, flush=True)
    settings = config(steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            train(settings, run, device=given.device)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
        keep(run, settings, given.out, {"probe_steps_per_second": speed, "seconds": time.monotonic() - began})
    return 0


def keep(run: Path, settings: Config, out: Path, figures: dict[str, Any]) -> None:
    """Write the weights in half precision, their training.yaml, the figures and the curves."""
    shutil.rmtree(out, ignore_errors=True)
    load(str(run)).half().save(out)
    (out / "training.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    log = list(read_rows(run / "log.jsonl"))
    curves = curves_of(log, CURVES)
    figures |= {**machine(), "steps": log[-1]["step"], "curves": curves}
    figures["steps_per_second"] = [n["steps_per_second"] for n in log if "steps_per_second" in n][-5:]
    out.with_name(f"{out.name}-figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    draw({name: curve for name, curve in curves.items() if curve["step"]}, out.with_name(f"{out.name}-curves.png"))


if __name__ == "__main__":
    sys.exit(main())
