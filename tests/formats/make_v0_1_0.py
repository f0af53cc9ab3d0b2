"""How the files of `v0_1_0/` were written: by smalti 0.1.0, on one thread of a CPU. It is a record.

A 3-D convolution of fewer than 8 channels can damage the heap in the backward pass of torch 2.13 on a CPU, so what
trains on video is 8 wide.

OMP_NUM_THREADS=1 PYTHONPATH=src:. python tests/formats/make_v0_1_0.py
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from smalti.data.samples import photos
from smalti.metrics.generation_report import GeneratedSet, GenerationProtocol, GenerationReport, Spread

import smalti
from smalti.cli.app import run
from smalti.data import open_video, write_video
from smalti.metrics.report import Frechet
from smalti.quantize import DSQConfig, FSQConfig, LFQConfig
from smalti.recipes import catalogue
from smalti.tokenizer import Tokenizer, TokenizerConfig, VQGANConfig

HERE = Path(__file__).parent / "v0_1_0"
TINY = {"width": 2, "multipliers": (1, 2), "depth": 1, "decoder_depth": 1, "middle": 0}
TOKENIZERS = {
    "fsq": TokenizerConfig(
        quantizer=FSQConfig(levels=(8, 5, 5)), width=2, multipliers=(1, 1, 2), strides=((1, 2), (2, 2)),
        depth=(1, 0, 0), decoder_depth=(0, 1, 0), middle=0, stem_kernel=5, stem_time=2, code_kernel=1, head_kernel=1,
        head_time=1, norm="frame", groups=2, final_norm=False, adaptive="frame", adaptive_source="first",
        activate_upsample=True, bias=False, time=3, past="full", start="grey",
    ),
    "fsq_clip": TokenizerConfig(
        **{**TINY, "width": 1}, quantizer=FSQConfig(levels=(7, 6)), strides=((2, 2),), time=2, patch=2,
        norm="clip", adaptive="clip", start="zero",
    ),
    "lfq": TokenizerConfig(
        **TINY, quantizer=LFQConfig(bits=10, losses=("token_entropy", "commitment")), strides=((1, 2),), patch=2,
        adaptive="none",
    ),
    "dsq": TokenizerConfig(**TINY, quantizer=DSQConfig(levels=(5, 4, 3)), strides=((2, 2),), time=2, patch=2),
    "vqgan": VQGANConfig(quantizer=FSQConfig(levels=(8, 5, 5)), width=2, multipliers=(1, 1), depth=1, decoder_depth=1,
                         latent=4),
}  # fmt: skip
EXPECTED: dict[str, object] = {"smalti": smalti.__version__, "torch": torch.__version__, "pyarrow": pa.__version__}


def command(*arguments: object) -> None:
    code = run([str(argument) for argument in arguments])
    assert code == 0, (arguments, code)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pixels(frames: int, height: int, width: int) -> torch.Tensor:
    """The same video as `pixels` of test_old_files.py: whole numbers alone."""
    t, h, w, c = np.meshgrid(range(frames), range(height), range(width), range(3), indexing="ij")
    levels = (t * 7 + h * h * (c + 2) + w * (11 - c) + (h * w) % 13 * 5) % 256
    return torch.from_numpy((levels / 127.5 - 1).astype(np.float32)).permute(3, 0, 1, 2)[None]


def piece(number: int, height: int, width: int) -> Image.Image:
    with Image.open(sorted(photos("train").iterdir())[number]) as photo:
        return photo.convert("RGB").resize((width, height), box=(20, 20, 220, 200))


def encoded(number: int, kind: str, height: int = 20, width: int = 24) -> bytes:
    buffer = io.BytesIO()
    piece(number, height, width).save(buffer, kind)
    return buffer.getvalue()


def moving(number: int, frames: int) -> bytes:
    video = np.zeros((frames, 24, 32, 3), np.uint8)
    video[..., 0] = np.linspace(0, 255, 32).astype(np.uint8)
    for i in range(frames):
        video[i, 4 + number : 14 + number, 2 * i : 2 * i + 9] = (255, 200, 40 * number)
    write_video(Path("clip.mp4"), list(video), 12.5)
    data = Path("clip.mp4").read_bytes()
    Path("clip.mp4").unlink()
    return data


def tar(path: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def cells(media: list[bytes], suffix: str) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": f"{i}.{suffix}"} for i, data in enumerate(media)], kind)


def table(path: str, columns: dict[str, object]) -> None:
    names = {"image": {"_type": "Image"}, "label": {"names": ["bee", "cow"], "_type": "ClassLabel"}}
    found = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
    pq.write_table(found, path)


def inputs() -> None:
    for folder in ("images", "classes/bee", "classes/cow", "videos"):
        Path("inputs", folder).mkdir(parents=True)
    for name, data in {"a.png": encoded(2, "PNG"), "b.png": encoded(3, "PNG"), "c.jpg": encoded(5, "JPEG")}.items():
        Path("inputs/images", name).write_bytes(data)
    Path("inputs/images/a.txt").write_text("a bee on a flower\n")
    for name, number in {"bee/one.png": 2, "bee/two.png": 6, "cow/one.png": 9}.items():
        Path("inputs/classes", name).write_bytes(encoded(number, "PNG"))
    for name, number, frames in (("one.mp4", 0, 7), ("two.mp4", 2, 5)):
        Path("inputs/videos", name).write_bytes(moving(number, frames))
    Path("inputs/list.txt").write_text("path,label\nimages/a.png,1\nimages/c.jpg,0\nimages/b.png,1\n")
    Path("inputs/imagenet.json").write_text(
        json.dumps([{"filename": f"{name}.png", "prefix": "images", "label": 3} for name in "ab"])
    )
    Path("inputs/k600.txt").write_text("videos/one,7\nvideos/two,2\n")
    tar("inputs/images.tar", {
        "00/a.png": encoded(2, "PNG"), "00/a.cls": b"1", "00/a.txt": b"a bee",
        "00/b.jpg": encoded(3, "JPEG"), "00/b.cls": b"0", "00/b.json": b'{"caption": "bison"}',
    })  # fmt: skip
    tar("inputs/videos.tar", {"one.mp4": moving(1, 5), "one.cls": b"1", "two.mp4": moving(3, 3), "two.cls": b"0"})
    table("inputs/images.parquet", {
        "image": cells([encoded(4, "PNG"), encoded(5, "JPEG")], "png"), "label": [1, 0], "text": ["a gate", "brushes"],
    })  # fmt: skip
    table("inputs/videos.parquet", {"video": cells([moving(0, 5), moving(1, 5)], "mp4"), "label": [0, 1]})


def tokenizers() -> None:
    found = {}
    for name, config in TOKENIZERS.items():
        video = pixels(config.time if config.time == 1 else 7, 24, 32)
        # A seed whose ids no rounding can change: the same in double precision and after a change of 1e-5.
        for seed in range(200):
            torch.manual_seed(seed)
            tokenizer = Tokenizer(config).eval()
            tokenizer.encoder.to_latent.now.weight.data *= 8  # so that random weights use many codes
            with torch.inference_mode():
                ids = tokenizer.encode(video)
                near = [tokenizer.encode((video + change).clamp(-1, 1)) for change in (1e-5, -1e-5)]
            if all(torch.equal(ids, other) for other in near) and len(ids.unique()) > 12:
                break
        else:
            raise SystemExit(f"{name}: no seed without near ties")
        tokenizer.save(Path("tokenizers", name))
        with torch.inference_mode():
            again = tokenizer.decode(ids, size=video.shape[2:]) if config.is_causal else None
        found[name] = {
            "fingerprint": tokenizer.fingerprint,
            "ids": ids.flatten().tolist(),
            "shape": list(ids.shape),
            "decoded": None if again is None else [float(again.mean()), float(again.square().mean())],
        }
    EXPECTED["tokenizers"] = found
    shipped = ("smalti/tiny-image", "smalti/tiny-video")
    EXPECTED["shipped"] = {name: smalti.load(name).fingerprint for name in shipped}


SETS = {
    "images": ("lfq", "inputs/images", "--set", "options.shard_files=2"),
    "images_sized": ("vqgan", "inputs/images", "--size", "16x24", "--batch", 2, "--set", "options.resize=bicubic"),
    "list": ("lfq", "inputs/list.txt", "--set", "inputs.format=list", "--size", 16),
    "classes": ("dsq", "inputs/classes", "--set", "inputs.class_folders=true", "--set", "options.min_side=8"),
    "videos": ("fsq", "inputs/videos", "--set", "options.shard_files=1"),
    "clips": ("dsq", "inputs/videos", "--clip", 3, "--overlap", 1, "--size", 16, "--fps", 10),
    "tar_images": ("lfq", "inputs/images.tar", "--from", "tars"),
    "tar_videos": ("fsq", "inputs/videos.tar", "--set", "inputs.media=videos"),
    "parquet_images": ("lfq", "inputs/images.parquet", "--set", "inputs.caption=text"),
    "parquet_videos": ("fsq", "inputs/videos.parquet", "--set", "inputs.column=video"),
}
DIGESTS_ALONE = ("images_sized", "list", "parquet_videos")
"""Sets that are not kept, only what they hold: to save space."""


def token_sets() -> None:
    found = {}
    for name, (tokenizer, *arguments) in SETS.items():
        out = Path("sets", name)
        command("tokenize", f"tokenizers/{tokenizer}", *arguments, "--out", out, "--workers", 0, "--device", "cpu")
        command("export", out, "--out", "exported")
        note = json.loads((out / "made.json").read_text())  # its tokenizer is a path of this machine
        (out / "made.json").write_text(json.dumps({**note, "tokenizer": f"tokenizers/{tokenizer}"}, indent=2) + "\n")
        found[name] = {
            "command": [f"tokenizers/{tokenizer}", *map(str, arguments)],
            "files": {p.relative_to(out).as_posix(): digest(p) for p in sorted(out.rglob("*")) if p.is_file()},
            "ids": np.load("exported/ids.npy").tolist(),
            "shapes": np.load("exported/shapes.npy").tolist(),
            "labels": np.load("exported/labels.npy").tolist(),
            "keys": Path("exported/keys.txt").read_text().splitlines(),
        }
        shutil.rmtree("exported")
        if name in DIGESTS_ALONE:
            shutil.rmtree(out)
    EXPECTED["sets"] = found


CODED = {
    "image_adaptive": ("lfq", "inputs/images/a.png", "--model", "adaptive"),
    "image_static": ("vqgan", "inputs/images/a.png", "--model", "static"),
    "video_adaptive": ("fsq", "inputs/videos/one.mp4", "--model", "adaptive"),
    "video_groups": ("dsq", "inputs/videos/one.mp4", "--group", 3, "--model", "uniform"),
}


def compressed() -> None:
    Path("compressed").mkdir()
    found = {}
    for name, (tokenizer, source, *arguments) in CODED.items():
        path, back = Path("compressed", f"{name}.smt"), "png" if name.startswith("image") else "mp4"
        chosen = ("--tokenizer", f"tokenizers/{tokenizer}")
        command("compress", source, path, *chosen, *arguments)
        command("decompress", path, path.with_suffix(f".{back}"), *chosen)
        found[name] = {"command": [source, *chosen, *map(str, arguments)], "sha256": digest(path)}
        if back == "mp4":
            with open_video(path.with_suffix(".mp4")) as reader:
                found[name]["means"] = [float(frame.float().mean()) for frame in reader.frames()]
            path.with_suffix(".mp4").unlink()
    EXPECTED["compressed"] = found


# What users write: short files, of every kind of source, discriminator and task.
MODEL = """tokenizer:
  kind: causal-cnn
  quantizer: {kind: fsq, levels: [8, 5, 5]}
  width: 2
  multipliers: [1, 2]
  strides: [[STRIDE, 2]]
  depth: 1
  decoder_depth: 1
  middle: 0
  patch: 2
  time: STRIDE
steps: 4
batch_size: 2
weights: {l2: 1.0}
save_every: 2
log_every: 1
eval_every: 4
sample_every: 4
keep: 3
optimizer: {lr: 1e-3, warmup: 1, schedule: constant, weight_decay: 0.01, betas: [0.9, 0.95], clip: 0.5}
"""
IMAGES = MODEL.replace("STRIDE", "1").replace("multipliers: [1, 2]", "multipliers: [1, 1]")
VIDEOS = MODEL.replace("STRIDE", "2").replace("width: 2", "width: 8")
CONFIGS = {
    "images.yaml": IMAGES.replace("weights: {l2: 1.0}", "weights: {l1: 0.5, l2: 1.0}") + """
data: {kind: images, path: inputs/images, size: 16, crop: random, scale: [0.6, 1.0], flip: true, resize: bicubic}
validation: {kind: images, path: inputs/list.txt, size: 16, crop: center, flip: false}
validation_limit: 2
adversary:
  discriminator: {kind: patch, width: 4, stages: 1, norm: none, frames: all}
  loss: hinge
  weight: 0.2
  adaptive: true
  start: 1
  ramp: 2
  penalty: zero_centred
  penalty_weight: 5.0
  penalty_every: 2
  lecam: 0.001
  optimizer: {lr: 2e-4, schedule: constant, betas: [0.5, 0.9], weight_decay: 0.0, warmup: 0}
""",
    "tar-images.yaml": IMAGES + """
data: {kind: tar-images, path: inputs/images.tar, size: 16}
adversary:
  discriminator: {kind: stylegan2, size: 16, width: 8, channel_multiplier: 1, group: 2, frames: random}
  loss: non_saturating
  order: alternate
  penalty: one_centred
ema: 0.9
ema_rise: exponential
ema_start: 1
ema_moves: 2
""",
    "parquet-images.yaml": IMAGES.replace("{kind: fsq, levels: [8, 5, 5]}", "{kind: lfq, bits: 8}").replace(
        "weights: {l2: 1.0}",
        "weights: {l2: 1.0, token_entropy: 0.1, batch_entropy: -0.1, commitment: 0.05}",
    ) + """
kind: tokenizer
data: {kind: parquet-images, path: inputs/images.parquet, size: 16, column: image, label: label}
entropy_boost: 2.0
entropy_boost_steps: 3
accumulate: 2
""",
    "videos.yaml": VIDEOS + """
data: {kind: videos, path: inputs/k600.txt, size: 16, frames: 3, stride: 2, sampling: center, short: loop, format: k600}
validation: {kind: videos, path: inputs/videos, size: 16, frames: 3, fps: 10, sampling: first}
adversary:
  discriminator: {kind: magvit3d, width: 4, multipliers: [1, 2], grid: 2}
  penalty: none
  weight: 0.05
""",
    "tar-videos.yaml": VIDEOS.replace("{kind: fsq, levels: [8, 5, 5]}", "{kind: dsq, levels: [5, 4, 3]}") + """
data: {kind: tar-videos, path: inputs/videos.tar, size: 16, frames: 3, tail: 1, short: spread}
init: null
lpips: null
lpips_frames: all
""",
    "parquet-videos.yaml": VIDEOS + """
data: {kind: parquet-videos, path: inputs/videos.parquet, size: [16, 16], frames: 3, label: label, short: skip}
precision: bfloat16
""",
    "joint.yaml": VIDEOS + """
data:
  kind: joint
  images: {path: inputs/images, size: 16}
  videos: {kind: tar-videos, path: inputs/videos.tar, size: 16, frames: 3}
  share: 0.5
  images_per_clip: 2
""",
    "vqgan.yaml": """
kind: tokenizer
tokenizer: {kind: vqgan, quantizer: {kind: fsq}, width: 2, multipliers: [1, 2], depth: 1,
            decoder_depth: 1, latent: 8}
data: {kind: images, path: inputs/imagenet.json, size: 16, format: imagenet-json}
steps: 2
batch_size: 2
log_every: 1
weights: {l1: 1.0}
""",
    "init.yaml": """
tokenizer:
  kind: causal-cnn
  quantizer: {kind: lfq, bits: 10, losses: [token_entropy, commitment]}
  width: 2
  multipliers: [1, 2]
  strides: [[1, 2]]
  depth: 1
  decoder_depth: 1
  middle: 0
  patch: 2
  adaptive: none
init: tokenizers/lfq
data: {kind: images, path: inputs/images, size: 16}
steps: 2
batch_size: 1
log_every: 1
weights: {l2: 1.0, token_entropy: 0.01, commitment: 0.1}
""",
    "masked.yaml": """
kind: generator
generator:
  kind: masked
  levels: [5, 4, 3]
  groups: [[0], [1, 2]]
  grid: [2, 4, 4]
  classes: 0
  tasks: [generation, prediction, interpolation, outpainting, inpainting]
  hints: true
  unit: part
  width: 4
  depth: 1
  heads: 2
  position: rotary
  qk_norm: false
  dropout: 0.0
  part_layers: 1
data: sets/clips
validation: sets/clips
validation_limit: 2
tokenizer: tokenizers/dsq
tasks:
  - {task: {kind: generation}, share: 2.0}
  - {task: {kind: prediction, frames: 1}}
  - {task: {kind: interpolation}}
  - {task: {kind: outpainting, region: vertical}}
  - {task: {kind: inpainting, region: moving}}
loss: {schedule: cosine, smoothing: 0.1, class_drop: 0.1, visible: 0.1}
sampling: {steps: 3, schedule: cosine, order: halton, noise: 2.0, temperature: 0.9, guidance: {scale: 0.0}}
steps: 4
batch_size: 2
optimizer: {lr: 1e-3, warmup: 1, schedule: cosine, final: 0.1, clip: null}
ema: 0.9
save_every: 2
log_every: 1
sample_every: 4
eval_every: 4
""",
    "classes.yaml": """
kind: generator
generator: {kind: masked, levels: [5, 4, 3], grid: [1, 5, 6], classes: 2, width: 8, depth: 1, heads: 2, dropout: 0.0}
data: sets/classes
tokenizer: tokenizers/dsq
sampling: {steps: 4, order: confidence, guidance: {scale: 2.0, schedule: power_cosine, power: 2.0, negligible: 0.01}}
steps: 2
batch_size: 2
log_every: 1
""",
    "autoregressive.yaml": """
kind: generator
generator: {kind: autoregressive, levels: [5, 4, 3], grid: [2, 4, 4], width: 8, depth: 1, heads: 2, part_layers: 1,
            groups: [[0], [1, 2]], position: learned, dropout: 0.0}
data: sets/clips
tokenizer: tokenizers/dsq
steps: 2
batch_size: 2
log_every: 1
""",
}  # fmt: skip


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]


def losses(out: str) -> list[float]:
    return [line.get("total", line.get("loss")) for line in lines(out) if "total" in line or "loss" in line]


def trim(out: str) -> None:
    """Without what names this machine or the time, and pictures."""
    for name in ("events", "samples"):
        shutil.rmtree(Path(out, name), ignore_errors=True)
    Path(out, ".lock").unlink(missing_ok=True)


def cut(out: str, final: str, step: int) -> None:
    """As a kill after that step's checkpoint leaves a run."""
    for folder in Path(out).glob("step-*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    shutil.rmtree(Path(out, final))
    kept = [line for line in Path(out, "log.jsonl").read_text().splitlines() if json.loads(line)["step"] <= step]
    Path(out, "log.jsonl").write_text("".join(line + "\n" for line in kept))


def runs() -> None:
    Path("configs").mkdir()
    EXPECTED["losses"] = found = {}
    for name, text in CONFIGS.items():
        Path("configs", name).write_text(text.lstrip("\n"))
        out = f"runs/{Path(name).stem}"
        command("train", f"configs/{name}", "--out", out, "--device", "cpu")
        found[name] = losses(out)
        trim(out)
    cut("runs/images", "tokenizer", 2)
    cut("runs/masked", "generator", 2)
    for name in CONFIGS:
        if name not in ("images.yaml", "masked.yaml", "classes.yaml"):
            shutil.rmtree(f"runs/{Path(name).stem}")
    shutil.rmtree("runs/classes/step-00000002")


def generated() -> None:
    draws = {
        "classes": ("runs/classes", "--class", "cow", "--count", 2, "--guidance", 2, "--steps", 4),
        "masked": ("runs/masked", "--task", "prediction", "--input", "inputs/videos/one.mp4", "--fit", "--steps", 3),
    }
    EXPECTED["generated"] = {name: list(map(str, arguments)) for name, arguments in draws.items()}
    for name, arguments in draws.items():
        command("generate", *arguments, "--seed", 3, "--out", f"generated/{name}", "--device", "cpu")


def reports() -> None:
    command("eval", "tokenizers/lfq", "--data", "inputs/images", "--size", 16, "--out", "reports", "--device", "cpu")
    Path("reports/report.json").rename("reports/eval.json")
    Path("reports/sheet.png").unlink()
    distance = Frechet(name="gfvd", distance=12.5, means=4.5, covariances=8.0, originals=60, made=50, dim=400)
    scored = GeneratedSet(name="one", clips=50, frechet=distance, precision=0.5, absent={"recall": "needs more clips"})
    report = GenerationReport(
        protocol=GenerationProtocol(name="mine", media="videos", features="i3d", frames=16, size=(128, 128)),
        real=60,
        sets=(scored,),
        spread={"precision": Spread(mean=0.5, std=None, least=0.5, most=0.5)},
    )
    Path("reports/generation.json").write_text(report.to_json())


BENCH = (
    *("bench", "learn", "--data", "inputs/images", "--heldout", "inputs/classes", "--size", "16", "--steps", "2"),
    *("--seeds", "1", "--points", "1", "--limit", "2", "--batch", "2", "--set", "data.path=inputs/images"),
    *("--set", "tokenizer.quantizer.levels=[8,5,5]", "--set", "tokenizer.multipliers=[1,2]"),
    *("--set", "tokenizer.width=1", "--set", "tokenizer.patch=2", "--set", "validation=null"),
    *("--set", "tokenizer.strides=[[1,2]]", "--set", "tokenizer.depth=1", "--set", "tokenizer.decoder_depth=1"),
    *("--set", "tokenizer.middle=0", "--out", "bench", "--contenders", "configs/contenders.yaml"),
)
CONTENDERS = """contenders:
  - name: frame norm
    recipe: tiny
    set: [tokenizer.norm=frame]
"""


def bench() -> None:
    Path("configs/contenders.yaml").write_text(CONTENDERS)
    command(*BENCH)
    EXPECTED["bench"] = {"command": list(BENCH)}
    for path in Path("bench").rglob("*"):
        if path.suffix in (".html", ".png") or path.name == ".lock":
            path.unlink()


def recipes() -> None:
    texts = {one.name: {"whole": one.config().to_yaml(), "tiny": one.tiny().to_yaml()} for one in catalogue()}
    text = json.dumps(texts, indent=1).replace(str(photos("train").parents[1]), "MEDIA")
    Path("recipes.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    os.chdir(HERE)
    for step in (inputs, tokenizers, token_sets, compressed, runs, generated, reports, bench, recipes):
        step()
    Path("expected.json").write_text(json.dumps(EXPECTED, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
