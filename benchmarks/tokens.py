"""Token sets: what the pipeline costs beside the encoder, what a long video takes of memory, how files compare.

python -m benchmarks tokens
python -m benchmarks.tokens memory FILM TOKENIZER   # one film, as JSON
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import child, fastest, peak_mb
from smalti.data import ImagesConfig, write_video
from smalti.data.bundled import photos
from smalti.recipes import find
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.tokens.config import TokenizeOptions, inputs_at
from smalti.tokens.finalize import finish_set
from smalti.tokens.plan import prepare_set
from smalti.tokens.pool import PoolLimits, run_pool
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import ShardReport, TokenRow, pending_shards, write_shard
from smalti.tokens.tokenize import WorkProgress, make_shard
from smalti.video import to_video

PICTURES = 8
FRAMES = (300, 30_000)
ROWS, LENGTH, CODES = 4096, 256, 64_000
SMALL = TokenizerConfig(
    width=16, multipliers=(1, 2), strides=((4, 2),), patch=4, time_kernel=4, depth=1, decoder_depth=1
)


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """All parts, one below the other."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = [*overhead(folder / "overhead"), *scaling(folder / "scaling"), *memory(folder / "memory")]
        rows += formats(folder / "formats")
    return (
        "seconds are CPU time of one thread but for `workers` (the clock); ratios are to the first of each part",
        rows,
    )


def row(part: str, case: str, value: float, unit: str, ratio: float | None = None) -> dict[str, object]:
    return {"part": part, "case": case, "value": value, "unit": unit, "ratio": ratio}


def overhead(folder: Path) -> Iterator[dict[str, object]]:
    """Photographs at 128 px by the default model: a whole shard, and the encoder alone on the same pixels."""
    tokenizer = _saved(find("image").tokenizer, folder / "tokenizer")
    data = _some_photos(folder / "data")
    plan, *_ = prepare_set(folder / "tokenizer", inputs_at(data), folder / "set", TokenizeOptions(size=128))
    source = ImagesConfig(path=data, size=128, crop="center", flip=False).build()
    videos = [to_video(source.load(i, torch.Generator().manual_seed(0))) for i in range(PICTURES)]

    def bare() -> None:
        with torch.inference_mode():
            for video in videos:
                tokenizer.encode(video)

    def whole() -> None:
        make_shard(plan, 0, data, tokenizer)

    best = fastest({"bare": bare, "whole": whole}, rounds=3)
    yield row("overhead", "encoder alone", best["bare"] / PICTURES, "s a picture", 1.0)
    yield row(
        "overhead",
        "decode, resize, encode, store",
        best["whole"] / PICTURES,
        "s a picture",
        best["whole"] / best["bare"],
    )


def scaling(folder: Path) -> Iterator[dict[str, object]]:
    """Pictures a second by the clock with one worker and with two, beside how loaded the machine was."""
    _saved(find("image").tokenizer, folder / "tokenizer")
    data, first = _some_photos(folder / "data"), 0.0
    for workers in (1, 2):
        options = TokenizeOptions(size=128, shard_files=1)
        plan, worker, _ = prepare_set(folder / "tokenizer", inputs_at(data), folder / str(workers), options)
        times = [0.0] * (PICTURES + 1)
        run_pool(plan, worker, pending_shards(plan), PoolLimits(workers), _Clock(times))
        rate = (PICTURES - 1) / (times[PICTURES] - times[1])
        first = first or rate
        yield row(
            "workers",
            f"{workers}, load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores",
            rate,
            "pictures/s",
            rate / first,
        )


class _Clock:
    """Notes when the first n shards were done, for every n; before the first, workers load their tokenizers."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def __call__(self, progress: WorkProgress) -> None:
        for n in range(1, progress.shards + 1):
            self.times[n] = self.times[n] or time.perf_counter()


def memory(folder: Path) -> Iterator[dict[str, object]]:
    """Peak memory of a process that makes the shard of one film, by its length."""
    _saved(SMALL, folder / "tokenizer")
    first = 0.0
    for frames in FRAMES:
        path = folder / f"{frames}.mp4"
        write_video(path, _moving(frames), 24, crf=30)
        peak = child("benchmarks.tokens", "memory", path, folder / "tokenizer")["peak_mb"]
        first = first or peak
        yield row("memory", f"a video of {frames:,} frames, 64 x 64", peak, "MB", peak / first)


def formats(folder: Path) -> Iterator[dict[str, object]]:
    """Random ids of 64,000 codes, 256 a picture: this set, one .npy of int64 a picture (LlamaGen), JSONL (TiTok)."""
    ids = np.random.default_rng(0).integers(0, CODES, (ROWS, LENGTH))
    tokens = _synthetic_set(folder / "set", ids)
    (folder / "npy").mkdir()
    for i, one in enumerate(ids):
        np.save(folder / "npy" / f"{i}.npy", one[None])
    lines = (json.dumps({"class_id": 0, "tokens": one.tolist()}) + "\n" for one in ids)
    (folder / "ids.jsonl").write_text("".join(lines), encoding="utf-8")
    sizes = {
        "set": sum(path.stat().st_size for path in (folder / "set" / "data").iterdir()),
        "npy": sum(path.stat().st_blocks * 512 for path in (folder / "npy").iterdir()),
        "jsonl": (folder / "ids.jsonl").stat().st_size,
    }

    def jsonl() -> None:
        with (folder / "ids.jsonl").open(encoding="utf-8") as file:
            for line in file:
                torch.tensor(json.loads(line)["tokens"])

    order = np.random.default_rng(1).permutation(ROWS).tolist()
    readers: dict[str, Callable[[], object]] = {
        "set": lambda: [tokens.ids(i) for i in order],
        "npy": lambda: [torch.from_numpy(np.load(folder / "npy" / f"{i}.npy")) for i in order],
        "jsonl": jsonl,
    }
    best = fastest(readers, rounds=3)
    for name in ("set", "npy", "jsonl"):
        yield row("size", name, sizes[name] * 8 / ids.size, "bits a token", sizes[name] / sizes["set"])
    for name in ("set", "npy", "jsonl"):
        yield row(
            "read",
            f"{name}{', shuffled' if name != 'jsonl' else ', in order'}",
            ROWS / best[name],
            "rows/s",
            best["set"] / best[name],
        )


def _synthetic_set(folder: Path, ids: np.ndarray) -> TokenSet:
    data = folder.parent / "one.png"
    data.parent.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    Image.new("RGB", (8, 8)).save(data)
    _saved(SMALL.replace({"time_kernel": 1, "strides": ((1, 2),)}), folder.parent / "tokenizer")
    plan, *_ = prepare_set(folder.parent / "tokenizer", inputs_at(data), folder, TokenizeOptions())
    rows = [
        TokenRow(
            f"{i:06d}.png",
            one.reshape(1, 16, 16).astype(np.uint16),
            (1, 128, 128),
            *(None,) * 3,
            0,
            *(None,) * 3,
            f"{i:06d}.png",
            b"",
        )
        for i, one in enumerate(ids)
    ]
    write_shard(plan, ShardReport(0, ROWS, ROWS, ROWS, ids.size, ROWS, ROWS << 14, 0, "", (), ()), rows)
    finish_set(plan)
    return TokenSet(folder)


def _saved(config: TokenizerConfig, folder: Path) -> Tokenizer:
    torch.manual_seed(0)
    Tokenizer(config).save(folder)
    return Tokenizer.load(folder)


def _some_photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in sorted(photos("train").iterdir())[:PICTURES]:
        (folder / path.name).symlink_to(path)
    return folder


def _moving(frames: int) -> Iterator[np.ndarray]:
    for i in range(frames):
        picture = np.full((64, 64, 3), 60, np.uint8)
        picture[10:20, i % 54 : i % 54 + 10] = (200, 120, i % 256)
        yield picture


def _peak(film: Path, tokenizer: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        plan, *_ = prepare_set(tokenizer, inputs_at(film), Path(scratch) / "set", TokenizeOptions())
        report = make_shard(plan, 0, film.parent, Tokenizer.load(tokenizer))
    print(json.dumps({"frames": report.frames, "tokens": report.tokens, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    _peak(Path(sys.argv[2]), Path(sys.argv[3]))
