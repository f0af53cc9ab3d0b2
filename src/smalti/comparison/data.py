"""What contenders learn from and what they are measured on: two parts of one set that never mix, fixed by digest."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from smalti.config import Config, PathField
from smalti.data import ImagesConfig, bundled, evaluation, source_of
from smalti.data.clips import ClipConfig
from smalti.data.loader import OnBad
from smalti.data.source import Medium, Source, Subset
from smalti.data.views import ScaleField
from smalti.errors import InputError

_ONE_IN_FIVE = 51
"""Of 256 values of a byte."""
_IN_MEMORY = 64
"""Pictures that are kept decoded."""


class Media(Config):
    """Where pictures or shots come from, and what is seen of them."""

    medium: Medium = "images"
    data: PathField | None = None
    """A folder, list, tar or Parquet file; null takes what smalti ships. A file is wholly in one of the two parts."""
    heldout: PathField | None = None
    """What is measured on; null holds one file in five of `data` back, by the digests of their names."""
    root: PathField | None = None
    """Where the paths of lists start."""
    size: int = 128
    frames: int = 17
    """Of a clip of film."""
    scale: ScaleField = (0.6, 1.0)
    """Of the random boxes to learn from; what is measured is the largest box in the middle."""
    limit: int = 32
    """Clips to measure on, at most: the first ones by the digests of their names."""


class Material(NamedTuple):
    """Both parts, ready."""

    train: Source
    heldout: list[tuple[str, Tensor]]
    """(key, video `1 3 t h w` in [-1, 1]), in memory."""
    about: dict[str, Any]
    """How many there are of each, and the digests of their names."""
    bad: dict[str, str]
    """What could not be read so far, by name, and why: left out, and nothing takes its place."""


def held_out(key: str) -> bool:
    """Whether a sample of that name is of the one in five that are not learnt from: by the first byte of its sha256."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[0] < _ONE_IN_FIVE


def gather(media: Media) -> Material:
    """Both parts. Raises InputError where one of them is empty, or where they share a name."""
    shipped = bundled.photos if media.medium == "images" else bundled.videos
    whole = _source(media, media.data or shipped("train"), training=True)
    names = [whole.key(index) for index in range(len(whole))]
    if media.heldout is None and media.data is not None:
        apart = [index for index, name in enumerate(names) if held_out(name)]
        train: Source = Subset(whole, [index for index in range(len(whole)) if index not in set(apart)])
        measured: Source = Subset(_source(media, media.data, training=False), apart)
    else:
        train, measured = whole, _source(media, media.heldout or shipped("heldout"), training=False)
        if both := {measured.key(index) for index in range(len(measured))} & set(names) if media.data else set():
            raise InputError(f"{media.heldout}: {min(both)} and {len(both) - 1} more are in {media.data} as well")
    for name, part in (("learn from", train), ("hold back", measured)):
        if not len(part):
            raise InputError(f"{media.data}: {len(names)} files leave none to {name}; give more, or --heldout")
    order = sorted(range(len(measured)), key=lambda index: hashlib.sha256(measured.key(index).encode()).digest())
    first = Subset(measured, order[: media.limit])
    bad: dict[str, str] = {}
    clips = [(batch.keys[0], batch.video) for batch in evaluation(first, on_bad=noted(bad))]
    about = {
        "learnt_from": len(train),
        "learnt_from_digest": _digest(train.key(index) for index in range(len(train))),
        "measured_on": len(clips),
        "measured_on_digest": _digest(key for key, _ in clips),
    }
    return Material(train, clips, about, bad)


def noted(bad: dict[str, str]) -> OnBad:
    """Keeps the faults of files in `bad`."""
    return lambda fault: bad.update({fault.path: str(fault)})


def _source(media: Media, path: Path, *, training: bool) -> Source:
    config = source_of(path, size=media.size, frames=media.frames, prefer=media.medium, root=media.root)
    if isinstance(config, ClipConfig) != (media.medium == "videos"):
        raise InputError(f"{path}: holds no {media.medium}, which these contenders are for")
    if training:
        config = config.replace({"crop": "random", "flip": True, "scale": media.scale})
        config = config.replace({"sampling": "random"}) if isinstance(config, ClipConfig) else config
    if isinstance(config, ImagesConfig):
        config = config.replace({"in_memory": _IN_MEMORY})
    return config.build()


def _digest(keys: Any) -> str:
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()[:16]
