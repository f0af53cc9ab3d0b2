"""Data pipelines of other projects as configs: same lists, same pixels, same clips.

Each is a plain config; `docs/data.md` has the table of which of their steps is which of our fields, and their defects.
"""

from pathlib import Path
from typing import Literal

from smalti.data.images import ImagesConfig
from smalti.data.videos import VideosConfig


def magicmaster_images(path: Path, size: int = 128, *, root: Path | None = None) -> ImagesConfig:
    """Return MagicMaster's ImageNet pipeline: the middle square of whole pixels, then Pillow's bilinear filter.

    The same in training and testing: no augmentation. `path` is its `ImageNet_{train,val}.json`, or any folder or
    list; `root` is where the paths of the list start (the folder of the list, if not given).
    """
    return ImagesConfig(
        path=path,
        root=root,
        size=size,
        crop="center",
        crop_order="before",
        flip=False,
        resize="bilinear",
        scale=(1.0, 1.0),
    )


def magicmaster_videos(path: Path, size: int = 128, *, train: bool, root: Path | None = None) -> VideosConfig:
    """Return MagicMaster's K600 pipeline: 17 frames at stride 2, the middle square, OpenCV's bilinear (it aliases).

    `path` is its `{train,val}_new.txt`, and `root` the folder of the videos; or a folder. Training starts anywhere,
    but never so late that a clip reaches the last frame of a longer video; testing takes the middle. Short videos
    start again from their first frame.
    """
    return VideosConfig(
        path=path,
        root=root,
        format="k600",
        frames=17,
        stride=2,
        sampling="random" if train else "center",
        tail=1 if train else 0,
        short="loop",
        size=size,
        crop="center",
        crop_order="before",
        flip=False,
        resize="cv2-bilinear",
        scale=(1.0, 1.0),
    )


def mindone_images(
    path: Path, size: int = 128, *, random_crop: bool = False, flip: bool = False, root: Path | None = None
) -> ImagesConfig:
    """Return mindone's image pipeline: OpenCV's bicubic filter to a short side of `size` (it aliases), then the middle.

    `path` is a folder, or its CSV with the paths in the first column, below `root`. Its scripts leave `random_crop`
    and `flip` off, in training too.
    """
    return ImagesConfig(
        path=path,
        root=root,
        format="mindone-csv" if path.suffix.lower() == ".csv" else "auto",
        size=size,
        crop="random" if random_crop else "center",
        crop_order="after",
        flip=flip,
        resize="cv2-bicubic",
        scale=(1.0, 1.0),
    )


def mindone_videos(
    path: Path,
    size: int = 128,
    *,
    frames: int = 17,
    stride: int = 1,
    sampling: Literal["random", "center", "first"] = "random",
    random_crop: bool = False,
    flip: bool = False,
    root: Path | None = None,
) -> VideosConfig:
    """Return mindone's video pipeline: clips that start anywhere, also in evaluation; the filter of `mindone_images`.

    `path` is a folder (its own flat one, or UCF-101's class folders), its CSV, or UCF-101's official
    `trainlist01.txt` or `testlist01.txt` with the folder of the videos as `root`. A video that is too short is spread
    over the clip. `sampling="center"` makes scores independent of random numbers.
    """
    return VideosConfig(
        path=path,
        root=root,
        format="mindone-csv" if path.suffix.lower() == ".csv" else "auto",
        frames=frames,
        stride=stride,
        sampling=sampling,
        short="spread",
        size=size,
        crop="random" if random_crop else "center",
        crop_order="after",
        flip=flip,
        resize="cv2-bicubic",
        scale=(1.0, 1.0),
    )
