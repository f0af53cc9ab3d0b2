"""The data of a comparison: two parts of one set that never mix, fixed by digest."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from smalti.config import Config, PathField
from smalti.data import ImagesConfig, Subset, bundled, evaluation, source_of
from smalti.data.clips import ClipConfig
from smalti.data.loader import OnBad
from smalti.data.source import Medium, Source
from smalti.data.views import ScaleField
from smalti.errors import InputError

_ONE_IN_FIVE = 51
"""Values of a byte, out of 256, that mean held out."""
_IN_MEMORY = 64
"""Images that stay decoded in memory."""


class ComparisonData(Config):
    """The images or videos of a comparison, and their crops."""

    medium: Medium = "images"
    """Kind of media."""
    data: PathField | None = None
    """A folder, list, tar or Parquet file; null takes what smalti ships. A file is wholly in one of the two parts."""
    heldout: PathField | None = None
    """Held-out media; null holds one file in five of `data` back, by the digests of their names."""
    root: PathField | None = None
    """Folder that the paths of lists are relative to."""
    size: int = 128
    """Height and width of a clip."""
    frames: int = 17
    """Frames of a clip of video."""
    scale: ScaleField = (0.6, 1.0)
    """Share of the area of the random training crops; held-out crops are the largest centred box."""
    limit: int = 32
    """Largest number of held-out clips: the first ones by the digests of their names."""


class DataParts(NamedTuple):
    """Both parts, ready."""

    train: Source
    heldout: list[tuple[str, Tensor]]
    """(key, video `1 3 t h w` in [-1, 1]), in memory."""
    about: dict[str, Any]
    """The number of samples in each part, and the digests of their names."""
    bad: dict[str, str]
    """Files that could not be read so far, with the reason; nothing takes their place."""


def is_held_out(key: str) -> bool:
    """Return true for about 20% of names: the first byte of the name's sha256 is below 51."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[0] < _ONE_IN_FIVE


def load_parts(config: ComparisonData) -> DataParts:
    """Return both parts. Raises InputError where one of them is empty, or where they share a name."""
    folder_of = bundled.photos if config.medium == "images" else bundled.videos
    whole = _source(config, config.data or folder_of("train"), training=True)
    names = [whole.key(index) for index in range(len(whole))]
    if config.heldout is None and config.data is not None:
        apart = [index for index, name in enumerate(names) if is_held_out(name)]
        train: Source = Subset(whole, [index for index in range(len(whole)) if index not in set(apart)])
        heldout: Source = Subset(_source(config, config.data, training=False), apart)
    else:
        train, heldout = whole, _source(config, config.heldout or folder_of("heldout"), training=False)
        if both := {heldout.key(index) for index in range(len(heldout))} & set(names) if config.data else set():
            raise InputError(f"{config.heldout}: {min(both)} and {len(both) - 1} more are in {config.data} as well")
    for purpose, part in (("learn from", train), ("hold back", heldout)):
        if not len(part):
            raise InputError(f"{config.data}: {len(names)} files leave none to {purpose}; give more, or `heldout`")
    order = sorted(range(len(heldout)), key=lambda index: hashlib.sha256(heldout.key(index).encode()).digest())
    bad: dict[str, str] = {}
    first = Subset(heldout, order[: config.limit])
    clips = [(batch.keys[0], batch.video) for batch in evaluation(first, on_bad=note_bad_files(bad))]
    about = {
        "learnt_from": len(train),
        "learnt_from_digest": _digest(train.key(index) for index in range(len(train))),
        "measured_on": len(clips),
        "measured_on_digest": _digest(key for key, _ in clips),
    }
    return DataParts(train, clips, about, bad)


def note_bad_files(bad: dict[str, str]) -> OnBad:
    """Return a callback that notes files which cannot be read in `bad`."""
    return lambda fault: bad.update({fault.path: str(fault)})


def _source(config: ComparisonData, path: Path, *, training: bool) -> Source:
    source = source_of(path, size=config.size, frames=config.frames, prefer=config.medium, root=config.root)
    if isinstance(source, ClipConfig) != (config.medium == "videos"):
        raise InputError(f"{path}: holds no {config.medium}, which these variants are for")
    if training:
        source = source.replace({"crop": "random", "flip": True, "scale": config.scale})
        source = source.replace({"sampling": "random"}) if isinstance(source, ClipConfig) else source
    if isinstance(source, ImagesConfig):
        source = source.replace({"in_memory": _IN_MEMORY})
    return source.build()


def _digest(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()[:16]
