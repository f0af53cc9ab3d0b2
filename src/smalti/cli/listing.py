"""Which clips `smalti eval` measures: files become pixels as the protocol says, or the options where it does not."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from smalti.data import (
    OneKindConfig,
    magicmaster_images,
    magicmaster_videos,
    mindone_images,
    mindone_videos,
    source_of,
)
from smalti.data.clips import ClipConfig
from smalti.data.detect import Medium
from smalti.data.source import Store, Subset
from smalti.errors import BadFile, ConfigError, InputError
from smalti.metrics import Protocol

SIZE, FRAMES = 128, 17
"""Where neither the user nor the protocol says another."""


class Question(NamedTuple):
    """How to measure, as the user asked; None: as the protocol says."""

    protocol: str
    limit: int | None = None
    size: int | None = None
    """Rows and columns; 0 keeps the file's own."""
    frames: int | None = None
    root: Path | None = None
    lpips: Path | None = None
    features: Path | None = None
    statistics: Path | None = None
    device: str | None = None


class Clips(NamedTuple):
    """A source, and the protocol that says how it was made."""

    source: Subset
    protocol: Protocol
    data: dict[str, Any]
    """The config of the source, without what is of this machine alone."""
    store: Store

    def digest(self) -> str:
        """sha256 of the names and sizes of the files, in their order; those in tars and tables are read for it."""
        state = hashlib.sha256()
        for index in range(len(self.source)):
            try:
                media = self.store.media(index)
                size = len(media) if isinstance(media, bytes) else media.stat().st_size
            except (BadFile, OSError):
                size = -1
            state.update(f"{self.source.key(index)} {size}\n".encode())
        return state.hexdigest()


def clips_of(data: Path, protocol: Protocol, asked: Question, *, is_image_model: bool) -> Clips:
    """The pictures or the video of `data`; where both are there, what the protocol or the tokenizer is for.

    Raises ConfigError for options that contradict the protocol, InputError where there is nothing, or fewer than the
    protocol asks for.
    """
    _check(protocol, asked)
    size = (protocol.size or SIZE if asked.size is None else asked.size) or None
    frames = asked.frames or protocol.frames or FRAMES
    preferred: Medium = ("images" if is_image_model else "videos") if protocol.media == "any" else protocol.media
    if protocol.convention is None:
        config = source_of(data, size=size, frames=frames, prefer=preferred, root=asked.root)
    else:
        config = _as_convention(data, protocol, preferred, size).replace({"root": asked.root})
    medium: Medium = "videos" if isinstance(config, ClipConfig) else "images"
    if protocol.media not in ("any", medium):
        raise InputError(f"{data}: holds {medium}, protocol {protocol.name} is for {protocol.media}")
    built = config.build()
    source = Subset(built, range(len(built))[: asked.limit])
    if protocol.samples is not None and len(source) < protocol.samples:
        raise InputError(
            f"{data}: lists {len(source):,} files, protocol {protocol.name} asks for {protocol.samples:,}; give the "
            f"whole list, or take another protocol"
        )
    declared: dict[str, object] = {"size": size, "frames": frames if medium == "videos" else None}
    declared |= {"resize": config.resize if size else "none", "crop": "center" if size else "none"}
    plain = {name: value for name, value in config.plain().items() if name not in ("path", "root", "limit")}
    return Clips(source, protocol.replace(declared), plain, built.store)


def _check(protocol: Protocol, asked: Question) -> None:
    if protocol.convention is not None:
        if asked.frames not in (None, protocol.frames):
            what = f"takes {protocol.frames} frames" if protocol.frames else "takes pictures"
            raise ConfigError(f"--frames {asked.frames}: protocol {protocol.name} {what}; leave it out")
        if asked.size == 0:
            raise ConfigError(f"--size 0: protocol {protocol.name} cuts squares of one size; leave it out")
    if protocol.samples is not None and asked.limit is not None and asked.limit < protocol.samples:
        raise ConfigError(f"--limit {asked.limit}: protocol {protocol.name} asks for {protocol.samples:,} clips")


def _as_convention(data: Path, protocol: Protocol, medium: Medium, size: int | None) -> OneKindConfig:
    """How files become pixels in the project that the protocol follows."""
    assert size is not None
    if protocol.convention == "magicmaster":
        return magicmaster_images(data, size) if medium == "images" else magicmaster_videos(data, size, train=False)
    return mindone_images(data, size) if medium == "images" else mindone_videos(data, size)
