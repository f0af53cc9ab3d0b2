"""`smalti demo`: from photographs to a video decoded from integers, on real media, in minutes on a CPU."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from smalti.app.demo_page import write_page
from smalti.data import ImagesConfig, VideosConfig, bundled, open_video, write_video
from smalti.errors import IntegrityError
from smalti.files import write_json
from smalti.metrics import SMALTI, Report, contact_sheet
from smalti.metrics.contact_sheet import difference
from smalti.pipeline.train import train
from smalti.recipes import DEMO_STEPS, tiny, tiny_video
from smalti.text import Progress
from smalti.tokenizer import Tokenizer, TokenizerConfig, inflate
from smalti.tokenizer.frames import score_tokenizer
from smalti.training.config import TokenizerTraining
from smalti.video import to_uint8, to_video

PHOTOS = ImagesConfig(path=bundled.photos("heldout"), size=128, crop="center", flip=False)
CLIPS = VideosConfig(path=bundled.videos("heldout"), size=128, frames=17, crop="center", sampling="center", flip=False)

Print = Callable[[str], None]


class Stage(NamedTuple):
    """One part of the demo, timed."""

    name: str
    seconds: float


def run_demo(
    out: Path, *, quick: bool = False, say: Print = print, progress: Callable[[str], Progress] | None = None
) -> Path:
    """Run everything in the folder `out`; gives the page to look at. A demo that was stopped goes on where it was.

    `quick` takes a few steps only, to see that all works. `progress(name)` gives the callback of a training.
    """
    stages: list[Stage] = []
    started = time.monotonic()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        say(name)
        began = time.monotonic()
        yield
        stages.append(Stage(name, time.monotonic() - began))

    def trained(name: str, config: TokenizerTraining) -> Tokenizer:
        callback = None if progress is None else progress(name)
        resume = (out / name / "config.yaml").is_file()
        return Tokenizer.load(train(config, out / name, resume=resume, progress=callback).trained)

    image_steps, video_steps = (8, 8) if quick else DEMO_STEPS
    image_config, video_config = tiny(image_steps), tiny_video(video_steps)
    with stage("Training an image tokenizer on the photographs that smalti ships"):
        image = trained("image", image_config)
    with stage("Measuring it on photographs that it has never seen"):
        on_photos = score_tokenizer(image, PHOTOS.build(), SMALTI)
    with stage("Inflating it to a video tokenizer, and measuring that on unseen clips"):
        config = video_config.tokenizer
        assert isinstance(config, TokenizerConfig), "the demo's recipes are causal CNNs"
        inflated = inflate(image, tuple(t for t, _ in config.strides), time_kernel=config.time_kernel)
        inflated.save(out / "inflated", replace=True)
        before = score_tokenizer(inflated, CLIPS.build(), SMALTI)
    with stage("Fine-tuning it on video"):
        video = trained("video", video_config.model_copy(update={"init": out / "inflated"}))
    with stage("Measuring it again"):
        on_clips = score_tokenizer(video, CLIPS.build(), SMALTI)
    with stage("Turning a video into integers, and the integers alone back into a video"):
        codec = _there_and_back(video, out)
    with stage("Writing images"):
        _save_photos(image, out / "photos.png")
        results = {
            "stages": [s._asdict() for s in stages],
            "image": _summary(image, on_photos),
            "inflated": _summary(inflated, before),
            "video": _summary(video, on_clips),
            "codec": codec,
            "seconds": time.monotonic() - started,
            "threads": torch.get_num_threads(),
            "quick": quick,
        }
        write_json(out / "report.json", results)
        write_page(out, results, {"image": on_photos, "video": on_clips})
    return out / "index.html"


def _summary(tokenizer: Tokenizer, report: Report) -> dict[str, Any]:
    """The figures of one tokenizer on held-out media."""
    scores = {name: getattr(report, name) for name in ("psnr", "ssim", "ms_ssim", "lpips")}
    use = None if report.codebook is None else report.codebook.plain()
    parameters = sum(p.numel() for p in tokenizer.parameters())
    about = {"parameters": parameters, "strides": list(tokenizer.strides), "codebook_size": tokenizer.codebook_size}
    return {**about, **scores, "clips": report.clips, "frames": report.frames, "codebook": use, "absent": report.absent}


def _there_and_back(tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    """Encode a video to ids on disk; decode it by a tokenizer that is read from disk and sees the ids alone."""
    source = sorted(bundled.videos("heldout").glob("*.mp4"))[0]
    with open_video(source) as reader, torch.inference_mode():
        fps = float(reader.fps)
        frames = [frame.numpy() for frame in reader.frames()]
        chunks = (to_video(np.stack(frames[i : i + 7])) for i in range(0, len(frames), 7))  # 7: no multiple of 4
        ids = torch.cat(list(tokenizer.encode_stream(chunks)), 1)
        whole = tokenizer.encode(to_video(np.stack(frames)))
    np.save(out / "ids.npy", ids.numpy().astype(np.uint16))
    again = Tokenizer.load(out / "video" / "tokenizer")
    if again.fingerprint != tokenizer.fingerprint:
        raise IntegrityError(f"{out / 'video'}: the tokenizer on disk is not the one that made the ids")
    stored = torch.from_numpy(np.load(out / "ids.npy").astype(np.int64))
    size = (len(frames), *frames[0].shape[:2])
    with torch.inference_mode():
        decoded = torch.cat(list(again.decode_stream(stored.split(2, 1), size=size)), 2)
    decoded_frames = to_uint8(decoded)[0].numpy()
    pairs = [np.concatenate([a, b], 1) for a, b in zip(frames, decoded_frames, strict=True)]
    write_video(out / "video.mp4", pairs, fps)
    _save_frames(frames, decoded_frames, out / "frames.png")
    errors = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(frames, decoded_frames, strict=True)]
    bits = ids.numel() * float(np.log2(tokenizer.codebook_size))
    return {
        "source": source.name,
        "frames": len(frames),
        "size": list(size[1:]),
        "fps": fps,
        "tokens": ids.numel(),
        "token_grid": list(ids.shape[1:]),
        "bits_per_pixel": bits / (size[0] * size[1] * size[2]),
        "psnr": float(np.mean([10 * np.log10(255**2 / max(e, 1e-9)) for e in errors])),
        "streamed_ids_that_differ": int((ids != whole).sum()),
        "fingerprint": tokenizer.fingerprint,
    }


def _save_photos(tokenizer: Tokenizer, target: Path) -> None:
    """Original, reconstruction and difference of held-out photographs, at twice the trained size."""
    source = PHOTOS.model_copy(update={"size": 256}).build()
    rows = []
    for index in range(len(source)):
        photo = source.load(index, torch.Generator())[0].numpy()
        with torch.inference_mode():
            again = to_uint8(tokenizer(to_video(photo)).video)[0, 0].numpy()
        rows.append([photo, again, difference(photo, again)])
    contact_sheet(rows, ["original", "from its tokens", "difference x4"]).save(target)


def _save_frames(frames: list[np.ndarray], decoded: np.ndarray, target: Path) -> None:
    chosen = np.linspace(0, len(frames) - 1, 4).round().astype(int)
    rows = [[frames[i], decoded[i], difference(frames[i], decoded[i])] for i in chosen]
    contact_sheet(rows, ["original", "from its tokens", "difference x4"]).save(target)
