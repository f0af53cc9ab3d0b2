"""Ids of the shipped tokenizers in other threads, batches, chunks and tiles: how many differ from those of the whole.

    python -m benchmarks.exactness

Photographs and videos that ship with the package, in float32, as users have them. Half a minute of one core.
"""

from collections import Counter

import torch
from torch import Tensor

from smalti.data import open_video, read_image
from smalti.data.bundled import photos, videos
from smalti.families.checkpoint import load
from smalti.families.names import TINY_IMAGE, TINY_VIDEO
from smalti.video import to_video


def main() -> None:
    """Print `WAY: differing of compared` for each way, and the sum."""
    differing, compared = Counter[str](), Counter[str]()

    def note(way: str, whole: Tensor, other: Tensor) -> None:
        compared[way] += whole.numel()
        differing[way] += int((whole != other).sum())

    image, video = load(TINY_IMAGE), load(TINY_VIDEO)
    paths = sorted(photos("heldout").glob("*.jpg"))[:8]
    batch = torch.cat([to_video(read_image(path))[..., :256, :256] for path in paths])
    ids = torch.cat([image.encode(one[None]) for one in batch])
    for number in (2, 3):
        torch.set_num_threads(number)
        note(f"images, {number} threads", ids, torch.cat([image.encode(one[None]) for one in batch]))
    torch.set_num_threads(1)
    note(f"images, a batch of {len(batch)}", ids, image.encode(batch))
    for tile in (128, 200):
        note(f"images, tiles of {tile}", ids, torch.cat([image.encode(one[None], tile=tile) for one in batch]))
    for path in sorted(videos("heldout").iterdir())[:3]:
        with open_video(path) as reader:
            frames = to_video(torch.stack(list(reader.at(range(min(33, len(reader)))))))[..., :128, :192]
        whole = video.encode(frames)
        for cut in (1, 5, 8, 17):
            note(f"videos, chunks of {cut}", whole, torch.cat(list(video.encode_stream(frames.split(cut, 2))), 1))
        note("videos, tiles of 64", whole, video.encode(frames, tile=64))
        note("videos, a batch of 2", torch.cat([whole, whole]), video.encode(torch.cat([frames, frames])))
        torch.set_num_threads(2)
        note("videos, 2 threads", whole, video.encode(frames))
        torch.set_num_threads(1)
    for way, count in compared.items():
        print(f"{way}: {differing[way]:,} of {count:,}")
    print(f"all: {differing.total():,} of {compared.total():,}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
