"""Where the published recipes find their data: their authors' folders and pipelines, and the sizes of the sets."""

from pathlib import Path

from smalti.data import (
    ImagesConfig,
    VideosConfig,
    magicmaster_images,
    magicmaster_videos,
    mindone_images,
    mindone_videos,
)

IMAGENET = 1_281_167
"""Images of ImageNet-1k's training set."""
KINETICS_600 = 392_622
"""Clips of the official training list; what can still be fetched is less, so set `steps` to epochs x clips / batch."""
UCF_101 = 9_537
"""Videos of the first training split for action recognition."""


def imagenet(part: str, size: int) -> ImagesConfig:
    """MagicMaster's: its JSON list, beside the folders `train` and `val`."""
    return magicmaster_images(Path(f"data/ImageNet/ImageNet_{part}.json"), size)


def kinetics(part: str) -> VideosConfig:
    """MagicMaster's: its list, 17 frames at a stride of 2, at 128 px."""
    root = Path(f"data/k600/{part}")
    return magicmaster_videos(Path(f"data/k600/{part}_new.txt"), 128, train=part == "train", root=root)


def mindone_imagenet(part: str, size: int) -> ImagesConfig:
    """mindone's: the class folders of ImageNet, and its validation images in one folder."""
    return mindone_images(Path("datasets/ImageNet") / {"train": "train", "val": "validation"}[part], size)


def ucf(part: str) -> VideosConfig:
    """mindone's: the first official split of UCF-101, 17 frames, at 128 px; validated at the middle of each video."""
    path, root = Path(f"datasets/ucf101/{part}list01.txt"), Path("datasets/ucf101/UCF-101")
    return mindone_videos(path, 128, sampling="random" if part == "train" else "center", root=root)
