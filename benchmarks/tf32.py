"""What TF32 costs and brings on a GPU: ids of the shipped tokenizers against the CPU's, and images a second.

TF32 is torch's default for convolutions on CUDA devices; `encode` does without it (`smalti.devices.whole_float32`), so
the networks are called here below that. Prints JSON; results/tf32.json is of a first form of it, with other names.

    python -m benchmarks.tf32
"""

import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

import smalti
from smalti.data import bundled, open_video, read_image
from smalti.nn.causal import time_first
from smalti.tokenizer import Tokenizer
from smalti.video import to_video


def ids(tokenizer: Tokenizer, video: Tensor) -> Tensor:
    """The ids, with TF32 as it is set."""
    z = tokenizer.encoder(time_first(tokenizer.pad(video), tokenizer.dtype))
    return tokenizer.quantizer.encode(z.permute(1, 2, 0, 3, 4))


def per_second(call: Callable[[], object], count: int, runs: int = 20) -> float:
    """How many of `count` a second."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(runs):
        call()
    torch.cuda.synchronize()
    return count * runs / (time.perf_counter() - began)


def media(name: str) -> list[Tensor]:
    """The held-out photographs, or 33 frames of each held-out clip."""
    if name.endswith("image"):
        return [to_video(read_image(path)) for path in sorted(bundled.photos("heldout").glob("*.jpg"))]
    clips = []
    for path in sorted(bundled.videos("heldout").glob("*.mp4")):
        with open_video(path) as reader:
            clips.append(to_video(torch.stack(list(reader.frames(0, 33)))))
    return clips


@torch.inference_mode()
def main() -> None:
    """Print what was measured."""
    rows: list[dict[str, object]] = []
    for name in ("smalti/tiny-image", "smalti/tiny-video"):
        cpu, gpu = smalti.load(name), smalti.load(name, "cuda")
        for tf32 in (True, False):
            torch.backends.cudnn.allow_tf32 = tf32
            pairs = [(ids(cpu, video), ids(gpu, video.cuda()).cpu()) for video in media(name)]
            first = media(name)[0].cuda()
            batch = ids(gpu, first.expand(8, -1, -1, -1, -1))[3:4]
            row: dict[str, object] = {"tokenizer": name, "tf32": tf32, "tokens": sum(a.numel() for a, _ in pairs)}
            row["ids that differ from the CPU's"] = sum(int((a != b).sum()) for a, b in pairs)
            row["ids that differ in a batch of 8"] = int((batch != ids(gpu, first)).sum())
            for count in (1, 64, 256) if name.endswith("image") else (1, 16):
                size = (1, 256, 256) if name.endswith("image") else (17, 128, 128)
                video = torch.rand(count, 3, *size, device="cuda") * 2 - 1
                row[f"encoded a second, batch {count}"] = per_second(lambda v=video, g=gpu: ids(g, v), count)
            rows.append(row)
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
