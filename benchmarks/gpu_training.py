"""Train the second edition of the small weights on one GPU, in the seconds that there are.

    python -m benchmarks.gpu_training image IMAGES --init start --seconds 200 --out tiny-image-2
    python -m benchmarks.gpu_training conditional IMAGES --clips trainlist01.txt --root UCF-101 \\
        --init start-video --image tiny-image-2 --seconds 300 --out video
    python -m benchmarks.gpu_training decoder IMAGES --init tiny-image-2 --lpips 0.03 --seconds 100 --out decoder
    python -m benchmarks.gpu_training perceptual IMAGES --init tiny-image-2 --seconds 150 --out perceptual
    python -m benchmarks.gpu_training perceptual IMAGES --clips trainlist01.txt --root UCF-101 \\
        --init tiny-video-2 --image tiny-image-2-perceptual --seconds 400 --out video-perceptual

A GPU does a step of networks this small sooner than Python starts its kernels, and crops in less time than readers hand
them over. So the media lie on it, in the sizes that crops are taken from, and a whole step (crops, losses and gradients
of `smalti train`, Muon, EMA) is one CUDA graph; with a discriminator, and on a CPU, it runs as it is. The learning rate
and the size of crops follow the share of the seconds that is spent. `decoder` leaves the encoder, and so all ids, as
they are; `--held` lets steps hold tokens (`HeldTokens`). `OUT` is the tokenizer in half precision with its
training.yaml; OUT-figures.json beside it has the speed and the curves. Clips are read with OpenCV.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.measure import machine
from smalti.data import ImagesConfig
from smalti.devices import fast_kernels
from smalti.families import load
from smalti.metrics.pixel import psnr
from smalti.tokenizer import ConditionalConfig, Tokenizer
from smalti.tokenizer.inflate import take_image_part
from smalti.training import tokenizer_step
from smalti.training.config import OptimizerConfig, TokenizerTraining
from smalti.training.distributed import Part, World
from smalti.training.optimizer import clip_gradient, update_ema
from smalti.training.tokenizer_figures import Begun, read
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.video import to_uint8, to_video

IMAGE_SHORT = {64: [round(64 / share) for share in np.linspace(0.25, 0.75, 11)], 128: [128, 144, 160, 192, 224, 256]}
"""Short sides that images are scaled to before crops of 64 and of 128 pixels are taken from them."""
CLIP_SHORT = {64: [80, 92, 107, 128, 160, 213], 128: [128, 144, 176, 213]}
"""The same for clips."""
FRAMES = 25
HOLD = 0.45
"""Share of the seconds at the full learning rate and with crops of 64 pixels; then it falls, and crops have 128."""
VALIDATED = 118
"""Images of a validation."""
CONDITIONAL = {"frozen": ("encoder.image", "decoder.image"), "still_frames": FRAMES, "last_frame_weight": 2.0}
"""What the config of a conditional tokenizer's run has besides."""


Validate = Callable[[Tokenizer], float]


class Media:
    """Images (clips of one frame) or clips, as 8-bit pixels on the device in several sizes."""

    def __init__(self, items: Sequence[Sequence[Tensor]], device: torch.device) -> None:
        """`items` are levels of clips on the device, each `n 3 h w`."""
        self.levels, self.count = len(items), len(items[0])
        flat = [clip for level in items for clip in level]
        shapes = torch.tensor([[len(clip), *clip.shape[2:]] for clip in flat], device=device)
        self.frames, self.height, self.width = shapes.T
        ends = torch.tensor([clip.numel() for clip in flat], device=device).cumsum(0)
        self.start = ends - shapes.prod(1) * 3
        self.pixels = torch.cat([clip.flatten() for clip in flat])

    def draw(self, rows: int, frames: int, size: int) -> Tensor:
        """Return random crops `b 3 t h w` in [-1, 1], half of them mirrored; clips that are too short stay on their
        last frame. Nothing waits for the device."""
        device = self.pixels.device
        chance = torch.rand(6, rows, device=device, dtype=torch.float64)
        one = (chance[0] * self.levels).long() * self.count + (chance[1] * self.count).long()
        length, height, width = self.frames[one], self.height[one], self.width[one]
        first, top, left = (
            (share * (free.clamp(min=0) + 1)).long()
            for share, free in zip(chance[2:5], (length - frames, height - size, width - size), strict=True)
        )
        along = torch.arange(size, device=device)
        columns = torch.where((chance[5] < 0.5)[:, None], along, size - 1 - along) + left[:, None]
        lines = along + top[:, None]
        times = torch.minimum(torch.arange(frames, device=device) + first[:, None], length[:, None] - 1)
        planes = times[:, None] * 3 + torch.arange(3, device=device)[:, None]  # b 3 t
        place = planes[..., None] * height.view(-1, 1, 1, 1) + lines[:, None, None]
        place = place[..., None] * width.view(-1, 1, 1, 1, 1) + columns[:, None, None, None]
        return self.pixels[place + self.start[one].view(-1, 1, 1, 1, 1)].float() / 127.5 - 1


def scaled(frames: Sequence[np.ndarray], short: int, device: torch.device) -> Tensor:
    """Scale frames `h w 3` on the device, bicubic with antialias, to a short side never above their own; return
    `n 3 h w`."""
    height, width = frames[0].shape[:2]
    factor = min(1.0, short / min(height, width))
    size = round(height * factor), round(width * factor)
    pixels = torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float()
    made = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return made.round().clamp(0, 255).to(torch.uint8)


def read_image(path: Path) -> list[np.ndarray]:
    """Read an image as a clip of one frame."""
    return [np.asarray(Image.open(path).convert("RGB"))]


def read_clip(path: Path) -> list[np.ndarray]:
    """Read all frames of a clip."""
    import cv2

    reader, frames = cv2.VideoCapture(str(path)), []
    while (found := reader.read())[0]:
        frames.append(np.ascontiguousarray(found[1][..., ::-1]))
    if not frames:
        raise SystemExit(f"{path}: no frames")
    return frames


def lay_out(
    clips: Sequence[Sequence[np.ndarray]], shorts: dict[int, list[int]], device: torch.device
) -> dict[int, Media]:
    """Put clips on the device, for each size of crops in its sizes."""
    return {
        size: Media([[scaled(clip, s, device) for clip in clips] for s in each], device)
        for size, each in shorts.items()
    }


class Laid(NamedTuple):
    """What lies on the device."""

    images: dict[int, Media]
    videos: dict[int, Media]
    validate: Validate | None
    counts: tuple[int, int]
    """Images and clips."""


class Kind(NamedTuple):
    """A batch of one step."""

    draw: Callable[[], Tensor]
    every: int
    """It is the batch of one step in so many."""


def kind_of(kinds: Sequence[Kind], step: int) -> int:
    """Return which kind of batch a step has."""
    return next((number for number, kind in enumerate(kinds) if step % kind.every == 0), len(kinds) - 1)


class Steps:
    """Steps on the batches of some kinds, each kind recorded as one CUDA graph where that is wanted."""

    def __init__(self, state: TrainState, kinds: Sequence[Kind], *, record: bool) -> None:
        self.state, self.kinds = state, kinds
        self.rates = self._rates()
        self.graphs: list[torch.cuda.CUDAGraph | None] = [None] * len(kinds)
        self.found: list[dict[str, Tensor]] = [{} for _ in kinds]
        self.count = 0
        if record:
            self._record()

    def _rates(self) -> list[tuple[Tensor, float]]:
        """Make the learning rates tensors, which a graph reads; return each with its peak."""
        optimizer, settings = self.state.optimizer, self.state.config.optimizer
        device, rates = self.state.world.device, []
        for group in optimizer.param_groups:
            peak = settings.muon.lr if settings.muon is not None and "turns" in group else settings.lr
            group["lr"] = torch.tensor(0.0, device=device)
            if "turns" not in group:
                group["capturable"] = device.type == "cuda"
                group["foreach"] = device.type == "cuda"
            rates.append((group["lr"], float(peak)))
        return rates

    def _once(self, kind: int) -> None:
        state = self.state
        video = self.kinds[kind].draw()
        rows, held = len(video), state.config.held_tokens
        hold_below = None
        if held is not None:
            hold_below = held.thresholds(torch.rand(2, rows, device=video.device, dtype=torch.float64))
        part = Part(video, tuple(range(rows)), video.new_zeros(rows, dtype=torch.long), 1.0, rows, hold_below)
        state.optimizer.zero_grad(set_to_none=True)
        measured, _ = tokenizer_step.accumulate(state, part)
        clip_gradient(state.tokenizer, state.config.optimizer.clip)
        state.optimizer.step()
        update_ema(state.ema, state.tokenizer, state.config.ema)
        self.found[kind] = measured

    def _record(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for kind in range(len(self.kinds)):
                for _ in range(3):
                    self._once(kind)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        for kind in range(len(self.kinds)):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._once(kind)
            self.graphs[kind] = graph

    def step(self, share: float) -> int:
        """Take a step at a share of the peak learning rates; return the kind of its batch."""
        for rate, peak in self.rates:
            rate.fill_(peak * share)
        self.count += 1
        kind = kind_of(self.kinds, self.count)
        graph = self.graphs[kind]
        if graph is None:
            self._once(kind)
        else:
            graph.replay()
        return kind


def rate(share: float, count: int, hold: float = HOLD) -> float:
    """Return the share of the peak learning rate: a warm-up of 100 steps, then constant, then half a cosine to 1 %."""
    warm = min(1.0, (count + 1) / 100)
    if share <= hold:
        return warm
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - hold) / (1 - hold)))))


def weights(given: argparse.Namespace, more: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the losses: squared error, that of flat areas where it is asked for, and some more."""
    return {"l2": 1.0, **({"flat": given.flat} if given.flat else {}), **more}


def settings(config: Any, given: argparse.Namespace, changes: Mapping[str, Any]) -> TokenizerTraining:
    """Return the run's config."""
    muon = {"lr": given.muon_lr, "turns": 3, "precision": "bfloat16"}
    plain: dict[str, Any] = {
        "tokenizer": config,
        "data": ImagesConfig(path=given.images, size=64, scale=(0.25, 0.75)),
        "steps": 10**6,
        "batch_size": given.batch,
        "optimizer": OptimizerConfig(lr=given.lr, schedule="constant", muon=muon),
        "precision": "bfloat16",
        "weights": weights(given, {"batch_entropy": -0.001}),
        "ema": given.ema,
        "init": given.init,
        "held_tokens": None if given.held is None else {"share": given.held},
    }
    return TokenizerTraining(**plain | dict(changes))


def graph_run(
    state: TrainState, phases: Sequence[Sequence[Kind]], given: argparse.Namespace, validate: Validate | None
) -> dict[str, Any]:
    """Train in the seconds that there are: the first phase with its kinds of batches, then the second."""
    began, curve, checks = time.monotonic(), [], []
    record, steps, done = given.device == "cuda" and not given.eager, None, 0
    with fast_kernels(True):
        for number, kinds in enumerate(phases):
            count = 0 if steps is None else steps.count
            steps = Steps(state, kinds, record=record)
            steps.count = count
            end = HOLD if number + 1 < len(phases) else 1.0
            while (share := (time.monotonic() - began) / given.seconds) < end:
                for _ in range(given.log):
                    kind = steps.step(rate(share, steps.count))
                found = {name: float(value) for name, value in steps.found[kind].items()}
                if not math.isfinite(found["total"]):
                    raise SystemExit(f"step {steps.count}: the loss is {found['total']}")
                psnr = -10 * math.log10(found["squared_error"] / 4)
                curve.append([steps.count, round(time.monotonic() - began, 2), number, kind, round(psnr, 3)])
                if time.monotonic() - began > (len(checks) + 1) * given.seconds / 8:
                    checks.append([steps.count, validate(state.ema) if validate else None])
                    print(json.dumps({"seconds": curve[-1][1], "curve": curve[-1], "checked": checks[-1]}), flush=True)
            done = steps.count
    return {"steps": done, "curve": curve, "validation": checks, "recorded": record}


def plain_run(state: TrainState, phases: Sequence[Sequence[Kind]], given: argparse.Namespace) -> dict[str, Any]:
    """Train as `smalti train` does, with a discriminator; how many steps there will be follows from the first, and from
    the first with the discriminator, which comes after a fifth."""
    began, curve, mark = time.monotonic(), [], 0.0
    begun: list[Begun] = []
    gan, second = state.config.gan, -1
    assert gan is not None
    assert state.gan is not None
    with fast_kernels(True):
        while state.step < state.config.steps and time.monotonic() - began < given.seconds:
            phase = phases[state.step / state.config.steps > HOLD]
            begun.append(tokenizer_step.begin(state, phase[kind_of(phase, state.step)].draw()))
            if state.step in (10, second + 10):
                read(state, begun)
                begun, mark = [], time.monotonic()
            elif state.step in (40, second + 40):
                read(state, begun)
                begun, now = [], time.monotonic()
                count = state.step + int(0.97 * (given.seconds - (now - began)) * 30 / (now - mark))
                if second < 0:
                    second = count // 5
                    state.gan.config = gan.replace({"start": second})
                state.config = state.config.replace({"steps": count, "gan": state.gan.config})
            elif state.step % given.log == 0:
                line = read(state, begun)[-1]
                curve.append([line.step, round(time.monotonic() - began, 2), round(line.psnr, 3), dict(line.losses)])
                print(json.dumps(curve[-1]), flush=True)
                begun = []
        read(state, begun)
    return {"steps": state.step, "of": state.config.steps, "curve": curve}


def combined(given: argparse.Namespace) -> ConditionalConfig:
    """Write a conditional tokenizer to start from: `--init` with the image tokenizer `--image` inside."""
    image, before = load(str(given.image)), load(str(given.init))
    assert isinstance(before.config, ConditionalConfig)
    config = before.config.replace({"image": image.config, "quarters": False})
    whole = Tokenizer(config)
    own = {name: value for name, value in before.state_dict().items() if ".image." not in name}
    whole.load_state_dict(whole.state_dict() | own)
    take_image_part(whole, image)
    given.init = given.out.with_name(f"{given.out.name}-start")
    whole.eval().save(given.init, replace=True)
    return config


def validation(folder: Path | None, device: torch.device, pool: ThreadPoolExecutor) -> Validate | None:
    """Return the mean PSNR of the middles of held-out images, scaled to 128 pixels."""
    if folder is None:
        return None
    originals = list(pool.map(read_image, sorted(files(folder))[:VALIDATED]))
    frames = [scaled(one, 128, device) for one in originals]
    middles = [f[..., (f.shape[2] - 128) // 2 :, (f.shape[3] - 128) // 2 :][..., :128, :128] for f in frames]
    pixels = torch.stack(middles).permute(0, 1, 3, 4, 2)
    video = to_video(pixels)

    def measure(tokenizer: Tokenizer) -> float:
        with torch.inference_mode():
            made = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in video.split(16)])
        errors = (to_uint8(made).float() - pixels).square().flatten(1).mean(1)
        return round(float(psnr(errors, 255).mean()), 3)

    return measure


def files(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("image", "decoder", "conditional", "perceptual"))
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--clips", type=Path, help="list of clips; some of their frames are images, too")
    parser.add_argument("--root", type=Path, help="folder of the clips")
    parser.add_argument("--validation", type=Path, help="folder of images that are scored during the run")
    parser.add_argument("--init", type=Path, required=True, help="tokenizer to start from")
    parser.add_argument("--image", type=Path, help="image tokenizer inside the conditional one")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--batch", type=int, default=128, help="crops of 64 pixels; of 128 a quarter as many")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--lpips", type=float, default=0.5, help="weight of LPIPS (decoder, perceptual)")
    parser.add_argument("--flat", type=float, default=0.0, help="weight of errors where the original is flat")
    parser.add_argument("--held", type=float, help="share of clips in which tokens are held (with --image)")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--log", type=int, default=50, help="steps between figures")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="record no CUDA graphs")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def lay_out_all(given: argparse.Namespace, device: torch.device) -> Laid:
    """Read the media and put them on the device."""
    with ThreadPoolExecutor(16) as pool:
        photographs = list(pool.map(read_image, files(given.images)))
        clips: list[list[np.ndarray]] = []
        if given.clips is not None:
            names = [line.split()[0] for line in given.clips.read_text("utf-8").splitlines()]
            clips = list(pool.map(lambda name: read_clip(given.root / name), names))
            photographs += [[frame] for clip in clips for frame in clip[::24]]
        images = lay_out(photographs, IMAGE_SHORT, device)
        videos = lay_out(clips, CLIP_SHORT, device) if given.image is not None else {}
        return Laid(images, videos, validation(given.validation, device, pool), (len(photographs), len(clips)))


def image(given: argparse.Namespace, laid: Laid, world: World, rows: Mapping[int, int]) -> tuple[TrainState, Any]:
    """Train an image tokenizer."""
    state = start_tokenizer(settings(load(str(given.init)).config, given, {}), world)
    return state, graph_run(state, kinds(laid, rows), given, laid.validate)


def decoder(given: argparse.Namespace, laid: Laid, world: World, rows: Mapping[int, int]) -> tuple[TrainState, Any]:
    """Train the decoder of an image tokenizer alone, by squared error and some LPIPS."""
    more = {"frozen": ("encoder",), "weights": weights(given, {"lpips": given.lpips}), "lpips": {"net": "vgg"}}
    state = start_tokenizer(settings(without_losses(given), given, more), world)
    return state, graph_run(state, kinds(laid, rows), given, laid.validate)


def without_losses(given: argparse.Namespace) -> Any:
    """Return the config of an image tokenizer to start from, with no loss of its quantizer."""
    config = load(str(given.init)).config
    return config.with_quantizer(config.quantizer.replace({"losses": ()}))


def conditional(given: argparse.Namespace, laid: Laid, world: World, rows: Mapping[int, int]) -> tuple[TrainState, Any]:
    """Train the conditional part of a tokenizer: one step in ten has images that stand still."""
    state = start_tokenizer(settings(combined(given), given, CONDITIONAL), world)
    return state, graph_run(state, kinds(laid, rows), given, None)


def kinds(laid: Laid, rows: Mapping[int, int]) -> list[list[Kind]]:
    """Return the batches of both phases: images, or clips and, one step in ten, images that stand still."""
    if not laid.videos:
        return [[Kind(lambda s=s: laid.images[s].draw(rows[s], 1, s), 1)] for s in (64, 128)]

    def still(size: int) -> Tensor:
        return laid.images[size].draw(rows[size], 1, size).expand(-1, -1, FRAMES, -1, -1)

    return [
        [Kind(lambda s=s: still(s), 10), Kind(lambda s=s: laid.videos[s].draw(rows[s], FRAMES, s), 1)]
        for s in (64, 128)
    ]


def perceptual(given: argparse.Namespace, laid: Laid, world: World, rows: Mapping[int, int]) -> tuple[TrainState, Any]:
    """Train with LPIPS and a discriminator: another decoder for the ids of an image tokenizer, or both networks of a
    conditional one."""
    gan = {"discriminator": {"kind": "patch", "width": 48}, "weight": 0.1, "adaptive": True, "lecam": 0.001}
    muon = {"lr": given.muon_lr, "turns": 3, "precision": "bfloat16"}
    more = {
        "frozen": ("encoder",),
        "weights": weights(given, {"lpips": given.lpips}),
        "lpips": {"net": "vgg"},
        "gan": {**gan, "start": 100_000, "ramp": 200},
        "optimizer": OptimizerConfig(lr=given.lr, muon=muon),
    }
    if given.image is None:
        config = without_losses(given)
    else:
        more |= CONDITIONAL
        config = combined(given)
        config = config.with_quantizer(config.quantizer.replace({"losses": ()}))
    state = start_tokenizer(settings(config, given, more), world)
    return state, plain_run(state, kinds(laid, rows), given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Lay the media out, train, keep the weights and the figures."""
    given = options().parse_args(arguments)
    began, device = time.monotonic(), torch.device(given.device)
    torch.manual_seed(1)
    laid = lay_out_all(given, device)
    ready = time.monotonic() - began
    print("{} images, {} clips, laid out in {:.1f} s".format(*laid.counts, ready), flush=True)
    rows = {64: given.batch, 128: max(1, given.batch // 4)}
    train = {"image": image, "decoder": decoder, "conditional": conditional, "perceptual": perceptual}[given.what]
    state, found = train(given, laid, World(0, 1, device), rows)
    figures = {**machine(), "what": given.what, "laid_out_s": ready, **found}
    figures["validated"] = laid.validate(state.ema) if laid.validate else None
    state.ema.half().eval().save(given.out, replace=True)
    (given.out / "training.yaml").write_text(state.config.to_yaml(), encoding="utf-8")
    figures |= {"seconds": time.monotonic() - began, "batch": given.batch, "gpu": str(device)}
    if device.type == "cuda":
        figures |= {"gpu": torch.cuda.get_device_name(), "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    given.out.with_name(f"{given.out.name}-figures.json").write_text(json.dumps(figures), encoding="utf-8")
    print(json.dumps({name: value for name, value in figures.items() if name not in ("curve", "versions")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
