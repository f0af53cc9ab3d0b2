"""Photographs and videos that the package ships, so that every command has something to work on.

48 photographs (short side 300 to 352 pixels) and 16 video clips (256x144, 24 fps), each split once and for all into
`train` and `heldout`. Authors, licences, sources and changes are in `media/ATTRIBUTION.md`.
"""

from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]

_MEDIA = Path(__file__).parent / "media"


def photos(split: Split) -> Path:
    """Return the folder of the shipped photographs: 40 to train on, or 8 held out."""
    return _MEDIA / "photos" / split


def videos(split: Split) -> Path:
    """Return the folder of the shipped videos: 12 to train on, or 4 held out, from scenes that are not in train."""
    return _MEDIA / "film" / split


def is_shipped(path: Path) -> bool:
    """Return whether a path lies among the media that the package ships."""
    return path.resolve().is_relative_to(_MEDIA.resolve())
