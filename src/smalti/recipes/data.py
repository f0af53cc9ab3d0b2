"""Where the published recipes find their data: their authors' folders and transforms, and the sizes of the sets."""

from pathlib import Path

from smalti.data import ImagesConfig, VideosConfig

IMAGENET = 1_281_167
"""Pictures of ImageNet-1k's training set."""
KINETICS_600 = 392_622
"""Clips of the official training list; what can still be fetched is less, so set `steps` to epochs x clips / batch."""
UCF_101 = 9_537
"""Videos of the first training split for action recognition."""


def imagenet(part: str, size: int) -> ImagesConfig:
    """MagicMaster's: its JSON list, the middle square, antialiased bilinear to `size`."""
    return ImagesConfig(
        path=Path(f"data/ImageNet/ImageNet_{part}.json"), size=size, crop="center", flip=False, resize="bilinear"
    )


def kinetics(part: str) -> VideosConfig:
    """MagicMaster's: its list, 17 frames at a stride of 2, the middle square at 128 px."""
    return VideosConfig(
        path=Path(f"data/k600/{part}_new.txt"),
        root=Path(f"data/k600/{part}"),
        size=128,
        frames=17,
        stride=2,
        sampling="random" if part == "train" else "center",
        crop="center",
        flip=False,
        resize="bilinear",
    )


def mindone_imagenet(part: str, size: int) -> ImagesConfig:
    """mindone's: the class folders of ImageNet, the short side to `size`, the middle square."""
    folder = {"train": "train", "val": "validation"}[part]
    return ImagesConfig(
        path=Path(f"datasets/ImageNet/{folder}"), size=size, crop="center", flip=False, resize="bicubic"
    )


def ucf(part: str) -> VideosConfig:
    """mindone's: the first official split of UCF-101, 17 frames, the middle square at 128 px."""
    return VideosConfig(
        path=Path(f"datasets/ucf101/{part}list01.txt"),
        root=Path("datasets/ucf101/UCF-101"),
        size=128,
        frames=17,
        sampling="random" if part == "train" else "center",
        crop="center",
        flip=False,
        resize="bicubic",
    )
