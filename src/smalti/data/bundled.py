"""Real photographs and real film that the package ships, so that every command has something to work on.

48 photographs (short side 300 to 352 pixels) and 16 shots of film (256x144, 24 fps), each split once and for all into
`train` and `heldout`. Authors, licences, sources and changes are in `media/ATTRIBUTION.md`.
"""

from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]

_MEDIA = Path(__file__).parent / "media"


def photos(split: Split) -> Path:
    """The folder of the shipped photographs: 40 to train on, or 8 held out."""
    return _MEDIA / "photos" / split


def film(split: Split) -> Path:
    """The folder of the shipped shots of film: 12 to train on, or 4 held out, from scenes that are not in train."""
    return _MEDIA / "film" / split
