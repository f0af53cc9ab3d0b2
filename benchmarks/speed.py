"""Encoding, decoding, tokenizing video, sampling and training, each beside the limit of the processor in the same run.

The limit of a network of convolutions is what a 3x3 convolution of the layer that has most of the work takes (its
channels and positions, channels last, float32), that of a transformer a product of matrices of its widest layer:
`share` is the GFLOP/s over the limit's. `bfloat16` is how many times as fast the same is in bfloat16 (`compute_in`, or
the `precision` of training or tokenizing): below 1 where the processor has no units for it. A stream is 65 frames in
chunks. Freed memory is used again, as by the commands (`keep_freed_memory`). ONNX Runtime and OpenVINO run the export
of the same tokenizer in float32: how many times as long as ours they take, where their ids and pixels are ours. The
rows of MagicMaster are our form of its networks with random weights, and how many times as long its own code takes with
the same ones, where a checkout of it is given. The rows of diffusers are its networks with random weights, 8 x 8 pixels
a latent as smalti/tiny-image has. What is not installed is left out.

    SMALTI_MAGICMASTER=folder python -m benchmarks speed
    python -m benchmarks.speed images streams magicmaster diffusers tokenizing sampling training    # the others' stay
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import smalti
from benchmarks import magicmaster as beside_magicmaster
from benchmarks.measure import CPU, RESULTS, TINY, fastest, write
from benchmarks.peers import magicmaster as their_magicmaster
from benchmarks.peers.runtimes import RUNTIMES, Runtimes
from smalti.allocator import keep_freed_memory
from smalti.data import open_video, write_video
from smalti.data.bundled import videos
from smalti.devices import Precision, measure_precisions
from smalti.generation import (
    AutoregressiveConfig,
    Condition,
    GuidanceConfig,
    MaskedConfig,
    SamplingConfig,
    TokenSamplingConfig,
    empty_prompt,
    sample,
    sample_autoregressive,
)
from smalti.nn.causal import Stream
from smalti.recipes import find
from smalti.tokenizer import Tokenizer
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step

IMAGES = ((128, 128), (256, 256), (512, 512), (1080, 1920))
CHUNKS = (4, 16, 64)
SOURCE = (24, 720, 1280)
"""Frames, height and width of the video that is tokenized at 144 x 256."""
GRID = (1, 16, 16)
MAGICMASTER = {"2d": (1, 128), "3d": (9, 64)}
"""Frames and side of the pixels of its two configurations; of widths 128 and 64, as they are published."""
AGREES = 1e-4
"""Relative difference of latents and pixels of the same function in float32, at most."""
PEERS = (*RUNTIMES, "MagicMaster")
BLOCKS = (("Down", "Encoder"), ("Up", "Decoder"))
ROUNDS = 6
"""Half as many for calls of more than 20 GFLOP."""

Row = Mapping[str, object]


def video(*shape: int) -> Tensor:
    """Smooth pixels `1 3 t h w`, equal in every run."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 1, max(2, shape[1] // 16), max(2, shape[2] // 16), generator=rng) * 2 - 1
    return F.interpolate(coarse, size=(1, *shape[1:]), mode="trilinear").expand(1, 3, *shape).contiguous()


def workloads() -> Mapping[str, tuple[str, Tensor, int | None]]:
    """The tokenizer, the pixels, and the frames of a chunk (None: at once) by name."""
    tiny = bool(os.environ.get(TINY))
    rows: dict[str, tuple[str, Tensor, int | None]] = {}
    for height, width in IMAGES[:1] if tiny else IMAGES:
        rows[f"image {height} x {width}"] = ("smalti/tiny-image", video(1, height, width), None)
    if not tiny:
        rows["video 17 x 128 x 128"] = ("smalti/tiny-video", video(17, 128, 128), None)
    for chunk in CHUNKS[:1] if tiny else CHUNKS:
        size = (9, 32, 32) if tiny else (65, 144, 256)
        rows[f"stream {size[1]} x {size[2]}, {chunk} frames"] = ("smalti/tiny-video", video(*size), chunk)
    return rows


def passes(tokenizer: Tokenizer, pixels: Tensor, chunk: int | None) -> dict[str, Callable[[], object]]:
    """Encoding and decoding of the pixels."""
    if chunk is None:
        ids = tokenizer.encode(pixels)
        return {"encode": lambda: tokenizer.encode(pixels), "decode": lambda: tokenizer.decode(ids)}
    parts = [pixels[:, :, :1], *pixels[:, :, 1:].split(chunk, 2)]

    def encode() -> list[Tensor]:
        stream = Stream()
        return [tokenizer.encode(part, stream) for part in parts]

    pieces = encode()

    def decode() -> list[Tensor]:
        stream = Stream()
        return [tokenizer.decode(piece, stream) for piece in pieces]

    return {"encode": encode, "decode": decode}


def convolution(channels: int, positions: int, device: torch.device = CPU) -> tuple[Callable[[], object], float]:
    """A 3x3 convolution at about so many positions, and its GFLOP."""
    side = max(16, min(128, round(positions**0.5)))
    x = torch.randn(1, side, side, channels, device=device).permute(0, 3, 1, 2)
    weight = torch.randn(channels, channels, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1), 2 * 9 * channels**2 * side**2 / 1e9


def product(rows: int, width: int, device: torch.device = CPU) -> tuple[Callable[[], object], float]:
    """The product of so many rows with the widest layer of a transformer, and its GFLOP."""
    x, weight = torch.randn(rows, width, device=device), torch.randn(4 * width, width, device=device)
    return lambda: F.linear(x, weight), 2 * rows * 4 * width**2 / 1e9


def widest(tokenizer: Tokenizer) -> int:
    """The channels of the level that has most of the work."""
    return int(tokenizer.encoder.layers[-1].conv2.now.out_channels)  # type: ignore[union-attr]


def gflop(call: Callable[[], object]) -> float:
    """The operations of matrix products and convolutions, multiplications and additions apart, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def row(
    what: str,
    call: Callable[[], object],
    limit: tuple[Callable[[], object], float],
    others: Mapping[str, Callable[[], object]],
    device: torch.device = CPU,
    work: float | None = None,
) -> Row:
    """Measure a call beside its limit and the same in another format or by another program (`others`), and print it on
    stderr; `work` is its GFLOP where not all of them are counted."""
    ceiling, operations = limit
    counted = gflop(call) if work is None else work
    calls = {"call": call, "limit": ceiling, **others}
    best = fastest(calls, rounds=1 if os.environ.get(TINY) else ROUNDS // 2 if counted > 20 else ROUNDS, device=device)
    speed, most = counted / best["call"], operations / best["limit"]
    found = {"what": what, "gflop": counted, "ms": best["call"] * 1e3, "gflop_s": speed, "limit_gflop_s": most}
    faster = best["call"] / best["bfloat16"] if "bfloat16" in best else None
    longer = {name: best[name] / best["call"] if name in best else None for name in PEERS}
    measured = {**found, "share": speed / most, "bfloat16": faster, **longer}
    print(json.dumps(measured), file=sys.stderr, flush=True)
    return measured


def networks(device: torch.device, chosen: Callable[[int | None], bool]) -> list[Row]:
    """Rows of the shipped tokenizers, whole or in chunks; whole ones on a CPU beside other runtimes."""
    models = {name: smalti.load(name, device) for name in ("smalti/tiny-image", "smalti/tiny-video")}
    halved = {name: smalti.load(name, device).compute_in(torch.bfloat16) for name in models}
    is_fast, rows = fast_bfloat16(device), list[Row]()
    whole = {model for model, _, chunk in workloads().values() if chunk is None and chosen(chunk)}
    exported = {name: Runtimes(models[name]) for name in whole} if device.type == "cpu" else {}
    for name, (model, video_on_cpu, chunk) in workloads().items():
        if not chosen(chunk):
            continue
        pixels = video_on_cpu.to(device)
        limit = convolution(widest(models[model]), pixels[0, 0, 0].numel() // 16, device)
        float32, bfloat16 = passes(models[model], pixels, chunk), passes(halved[model], pixels, chunk)
        is_large = pixels.numel() > 3 * 300 * 300
        for direction, call in float32.items():
            others = {} if is_large and not is_fast else {"bfloat16": bfloat16[direction]}
            if chunk is None and model in exported:
                x = pixels if direction == "encode" else models[model].encode(pixels)
                others |= exported[model].calls(direction, x, call())
            rows.append(row(f"{name}: {direction}", call, limit, others, device))
    return rows


def images(device: torch.device = CPU) -> list[Row]:
    """Rows of images and clips at once."""
    return networks(device, lambda chunk: chunk is None)


def streams(device: torch.device = CPU) -> list[Row]:
    """Rows of videos in chunks."""
    return networks(device, lambda chunk: chunk is not None)


def magicmaster(device: torch.device = CPU) -> list[Row]:
    """Rows of MagicMaster's networks, on a CPU beside its own of the same weights.

    Raises RuntimeError where they differ."""
    tiny, rows = bool(os.environ.get(TINY)), list[Row]()
    folder = their_magicmaster.find() if device.type == "cpu" else None
    for name, case in beside_magicmaster.cases().items():
        frames, size = MAGICMASTER[name]
        changes = {"width": 32, "frames": min(frames, 5), "size": 32} if tiny else {"frames": frames, "size": size}
        case = case._replace(batch=1, **changes)
        torch.manual_seed(0)
        ours = Tokenizer(case.prepared().tokenizer).to(device).eval()
        pixels, theirs = case.video().to(device), None
        if folder is not None:
            theirs = beside_magicmaster.their(case, folder, device)
            ours.load_state_dict(their_magicmaster.tokenizer_of(theirs.generator.state_dict()))
            differences = beside_magicmaster.forward_differences(theirs, ours, pixels)
            if max(differences.values()) > AGREES:
                raise RuntimeError(f"MagicMaster's {name} is another function than ours: {differences}")
        half = passes(deepcopy(ours).compute_in(torch.bfloat16), pixels, None) if fast_bfloat16(device) else {}
        limit = convolution(2 * case.width, (case.size // 2) ** 2, device)
        for way, call in passes(ours, pixels, None).items():
            others = {"bfloat16": half[way]} if half else {}
            if theirs is not None:
                others["MagicMaster"] = beside_magicmaster.call(way, "theirs", theirs, pixels)
            what = f"MagicMaster {name}, width {case.width}, {case.frames} x {case.size} x {case.size}: {way}"
            rows.append(row(what, call, limit, others, device))
    return rows


def diffusers(device: torch.device = CPU) -> list[Row]:
    """Rows of diffusers' autoencoders with random weights, where it is installed."""
    if find_spec("diffusers") is None:
        return []
    from diffusers import AutoencoderKL, AutoencoderTiny

    tiny, rows = bool(os.environ.get(TINY)), list[Row]()
    widths = (32, 32, 32, 32) if tiny else (128, 256, 512, 512)
    blocks = {f"{way.lower()}_block_types": (f"{way}{coder}Block2D",) * 4 for way, coder in BLOCKS}
    peers = {
        "AutoencoderKL": AutoencoderKL(block_out_channels=widths, layers_per_block=2, latent_channels=4, **blocks),
        "AutoencoderTiny": AutoencoderTiny(),
    }
    for name, peer in peers.items():
        peer.to(device).eval()
        pixels = video(1, 128, 128)[:, :, 0].to(device)
        latents = torch.randn(1, 4, 16, 16, device=device)
        limit = convolution(widths[1] if name == "AutoencoderKL" else 64, 64**2, device)
        calls = {"encode": lambda of=peer: of.encode(pixels), "decode": lambda of=peer: of.decode(latents)}  # noqa: B023
        rows += [row(f"diffusers {name} 128 x 128: {way}", call, limit, {}, device) for way, call in calls.items()]
    return rows


def tokenizing(device: torch.device = CPU) -> list[Row]:
    """Rows of `smalti tokenize` at 144 x 256 of an H.264 video, by three filters; ms are those of all frames."""
    frames, height, width = (5, 72, 128) if os.environ.get(TINY) else SOURCE
    size = (32, 32) if os.environ.get(TINY) else (144, 256)
    tokenizer, rows = smalti.load("smalti/tiny-video", device), list[Row]()
    pixels = video(frames, *size).to(device)
    work = gflop(lambda: tokenizer.encode(pixels))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "video.mp4", iter(Path(folder) / f"set-{n}" for n in range(1000))
        with open_video(min(videos("heldout").glob("*.mp4"))) as reader:
            small = torch.stack(list(reader.frames(0, frames))).permute(0, 3, 1, 2)
        large = F.interpolate(small, size=(height, width), mode="bicubic").permute(0, 2, 3, 1)
        write_video(source, large, fps=24)
        for filter_ in ("lanczos", "torch-bicubic", "swscale-bicubic"):

            def tokenize(name: str = filter_, precision: Precision = "float32") -> object:
                options = [f"options.resize={name}", "options.cut=after", f"options.precision={precision}"]
                model = "smalti/tiny-video"
                return smalti.tokenize(model, source, next(out), size=size, workers=0, set=options, device=str(device))

            others = {"bfloat16": lambda name=filter_: tokenize(name, "bfloat16")} if fast_bfloat16(device) else {}

            what = f"tokenize {frames} frames of {height} x {width}, {filter_}"
            limit = convolution(widest(tokenizer), size[0] * size[1] // 16, device)
            rows.append(row(what, tokenize, limit, others, device, work))
    return rows


def sampling(device: torch.device = CPU) -> list[Row]:
    """Rows of a sample of 256 tokens: masked, in 4 steps, and autoregressive, of eight guided samples."""
    tiny, rows = bool(os.environ.get(TINY)), list[Row]()
    levels, grid = (8, 8, 8, 5, 5, 5), (1, 4, 4) if tiny else GRID
    cells = grid[1] * grid[2]
    for width, depth in ((64, 1),) if tiny else ((256, 6), (768, 6)):
        torch.manual_seed(0)
        config = MaskedConfig(levels=levels, grid=grid, width=width, depth=depth, heads=width // 64, dropout=0.0)
        model, prompt = config.build().to(device), empty_prompt(1, grid)
        work = 2 * 4 * depth * 12 * width**2 * cells / 1e9
        what = f"masked sample, width {width}, {depth} blocks, 4 steps"

        def masked(of: torch.nn.Module = model) -> object:
            return sample(of, prompt, SamplingConfig(steps=4))  # type: ignore[arg-type]  # noqa: B023

        others = {"bfloat16": partial(masked, deepcopy(model).bfloat16())} if fast_bfloat16(device) else {}
        rows.append(row(what, masked, product(cells, width, device), others, device, work))
    torch.manual_seed(0)
    width, depth = (64, 1) if tiny else (256, 6)
    shape = {"width": width, "depth": depth, "heads": width // 64, "dropout": 0.0, "classes": 8, "part_layers": 0}
    ordered = AutoregressiveConfig(levels=levels, grid=grid).replace(shape).build().to(device)
    eight = empty_prompt(8, grid)._replace(condition=Condition(torch.arange(8)))
    guided = TokenSamplingConfig(guidance=GuidanceConfig(scale=2.0))
    work = 2 * 16 * depth * 12 * width**2 * cells / 1e9
    what = f"8 autoregressive samples, guided, width {width}, {depth} blocks"
    call = partial(sample_autoregressive, ordered, eight, guided)
    half = partial(sample_autoregressive, deepcopy(ordered).bfloat16(), eight, guided)
    others = {"bfloat16": half} if fast_bfloat16(device) else {}
    return [*rows, row(what, call, product(16, width, device), others, device, work)]


def training(device: torch.device = CPU) -> list[Row]:
    """Rows of training steps of recipes, without LPIPS and discriminator."""
    rows = list[Row]()
    cases = {"tiny": (8, 3, 1, 64, 64), "tiny-video": (4, 3, 9, 64, 64), "image": (2, 3, 1, 128, 128)}
    for name, shape in list(cases.items())[: 1 if os.environ.get(TINY) else None]:
        config = find(name)
        assert isinstance(config, TokenizerTraining)
        plain = {"lpips": None, "gan": None, "weights": {**config.weights}}
        plain["weights"].pop("lpips", None)  # type: ignore[union-attr]
        config = config.replace({**plain, "precision": "float32", "held_out": 0})
        world, pixels = World(0, 1, device), video(shape[2], *shape[3:]).expand(shape).contiguous().to(device)
        state = start_tokenizer(config, world)
        others = {}
        if fast_bfloat16(device):
            half = start_tokenizer(config.replace({"precision": "bfloat16"}), world)
            others = {"bfloat16": lambda s=half: step(s, pixels)}  # noqa: B023
        limit = convolution(widest(state.tokenizer), pixels[0, 0, 0].numel() // 16, device)
        call = lambda s=state: step(s, pixels)  # noqa: B023, E731
        rows.append(row(f"training step, {name}, {' x '.join(map(str, shape))}", call, limit, others, device))
    return rows


PARTS: Mapping[str, Callable[[torch.device], list[Row]]] = {
    "images": images,
    "streams": streams,
    "magicmaster": magicmaster,
    "diffusers": diffusers,
    "tokenizing": tokenizing,
    "sampling": sampling,
    "training": training,
}
NOTE = (
    "float32, beside a convolution or a product of the same run; bfloat16: times as fast as float32; the same network"
    " in other runtimes: times as long"
)


def measure(device: torch.device = CPU) -> tuple[str, Sequence[Row]]:
    """Rows of all parts."""
    keep_freed_memory()
    rows = list[Row]()
    for name, part in PARTS.items():
        with torch.set_grad_enabled(name == "training"):
            rows += part(device)
    return NOTE, rows


def main(names: Sequence[str]) -> None:
    """Measure some parts, and put their rows in place of those in results/speed.json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    path = RESULTS / "speed.json"
    kept = {str(old["what"]): old for old in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    for name in names:
        with torch.set_grad_enabled(name == "training"):
            for found in PARTS[name](CPU):
                kept[str(found["what"])] = found
        write("speed", list(kept.values()), NOTE)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the faster format here; where it is ten times as slow, large sizes are left out."""
    speeds = measure_precisions(device)
    return speeds["bfloat16"] > speeds["float32"]


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
