"""What the tests of token sets share: small true tokenizers, media good and bad, sets made in this process."""

import hashlib
import io
import json
import os
import signal
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

import smalti
from smalti.data import write_video
from smalti.data.bundled import photos
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.tokens.config import TokenizeOptions, inputs_at
from smalti.tokens.finalize import SetSummary
from smalti.tokens.plan import PreparedSet, prepare_set

SMALL = {"width": 8, "multipliers": (1, 2), "depth": 1, "decoder_depth": 1, "middle": 0}


def save_tokenizer(folder: Path, seed: int = 0, **config: object) -> Path:
    """A small video tokenizer of strides 2 x 4 x 4, random but for its seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Tokenizer(TokenizerConfig(**{**SMALL, "strides": ((2, 2),), "time_kernel": 2, "patch": 2, **config})).save(
            folder
        )
    return folder


def make_set(
    tokenizer: Path,
    data: Path | str,
    out: Path,
    *,
    options: TokenizeOptions = TokenizeOptions(),  # noqa: B008
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    timeout: float = 300.0,
    memory: float | None = None,
) -> SetSummary:
    """Make a token set by `smalti.tokenize`, by default in this process."""
    return smalti.tokenize(
        tokenizer,
        data,
        out,
        set=[f"options.{name}={json.dumps(value)}" for name, value in options.essence().items()],
        workers=workers,
        shard="/".join(map(str, part)) if part != (0, 1) else None,
        timeout=timeout,
        memory=memory,
        device="cpu",
    )


def prepare(tokenizer: Path, data: Path, out: Path, options: TokenizeOptions, *, resume: bool = False) -> PreparedSet:
    """Plan a token set, for tests that do the work step by step."""
    return prepare_set(tokenizer, inputs_at(data), out, options, resume=resume)


def digest(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a set by name, but for the note about its making, and what a killed writer left under
    a hidden name: the next one removes it, once the system no longer knows the writer."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [
        path for path in paths if path.name not in ("provenance.json", "made.json") and not path.name.startswith(".")
    ]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A piece of a photograph."""
    names = sorted(photos("train").iterdir())
    with Image.open(names[seed % len(names)]) as photo:
        return photo.convert("RGB").resize((width, height), box=(seed % 50, seed % 40, 200 + seed % 50, 200))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def film(path: Path, frames: int = 9, height: int = 24, width: int = 32, fps: float = 25) -> Path:
    """A square that travels over a ramp."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    for i in range(frames):
        video[i, 4:14, i % (width - 8) : i % (width - 8) + 8] = (255, 200, 40)
    write_video(path, list(video), fps)
    return path


def corpus(folder: Path, good: int, bad: int) -> set[str]:
    """A folder of `good` media and `bad` broken ones of many kinds; gives the names of the latter."""
    folder.mkdir()
    kinds = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif"))
    for i in range(good):
        if i % 25 == 24:
            film(folder / f"good-{i:04d}.mp4", frames=3 + i % 7)
        else:
            kind, suffix = kinds[i % len(kinds)]
            data = encoded(picture(16 + i % 23, 20 + i % 17, i), kind)
            (folder / f"good-{i:04d}.{suffix}").write_bytes(data)
    makers = _broken(folder)
    for i in range(bad):
        name, data = makers[i % len(makers)]
        path = folder / f"bad-{i:04d}-{name}"
        if data is None:
            {"fifo.jpg": os.mkfifo, "folder.png.jpg": Path.mkdir}.get(name, _dangling)(path)
        else:
            path.write_bytes(data[: len(data) - i // len(makers)] if name.startswith("cut") else data)
    return {path.name for path in folder.iterdir() if path.name.startswith("bad") and not path.is_dir()}


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere.png")


def _broken(scratch: Path) -> list[tuple[str, bytes | None]]:
    """(name, bytes): the kinds of pictures and videos that no decoder should take."""
    large = {kind: encoded(picture(96, 96), kind) for kind in ("JPEG", "PNG", "WEBP")}
    movie = film(scratch / "whole.mp4", frames=32, height=48, width=64)
    mp4 = movie.read_bytes()
    movie.unlink()
    mkv_path = film(scratch / "whole.mkv", frames=200, height=48, width=64)
    mkv = mkv_path.read_bytes()
    mkv_path.unlink()
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    floats = encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    cuts = [(f"cut{p}.{k.lower()}", d[: len(d) * p // 100]) for k, d in large.items() for p in (5, 50, 90)]
    cuts = [(name.replace("jpeg", "jpg"), data) for name, data in cuts]
    return [
        *cuts,
        ("cut.mp4", mp4[: len(mp4) * 6 // 10]),
        ("cut.mkv", mkv[: len(mkv) // 2]),
        ("empty.jpg", b""),
        ("empty.mp4", b""),
        ("text.jpg", b"not a picture at all" * 20),
        ("text.mp4", b"plain text " * 50),
        ("lfs.png", lfs),
        ("eps.png", encoded(picture(16, 16), "EPS")),
        ("float.tif", floats),
        ("bomb.png", bomb(30_000)),
        ("sound.mp4", _sound(scratch / "sound.mp4")),
        ("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
        ("fifo.jpg", None),
        ("link.png", None),
    ]


def bomb(side: int) -> bytes:
    """A PNG that declares `side` x `side` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def _sound(path: Path) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for i in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    path.unlink()
    return data


def start_child(work_of_child: Callable[[], object]) -> int:
    """A fork, with the leader of a group of its own, that does the work and ends; gives its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setpgid(0, 0)
        work_of_child()
        code = 0
    finally:
        os._exit(code)


def kill_group(process: int) -> bool:
    """SIGKILL a child and what it started; whether it was still at work."""
    for _ in range(3):
        try:
            os.killpg(process, signal.SIGKILL)
            break
        except ProcessLookupError:  # it has not yet made its group
            time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
