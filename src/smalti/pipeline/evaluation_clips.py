"""The clips that `smalti.evaluate` scores: which media, read how, under which protocol."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from smalti.data import OneKindConfig, magicmaster_images, magicmaster_videos, mindone_images, mindone_videos, source_of
from smalti.data.clips import ClipConfig
from smalti.data.source import Medium, Store, Subset
from smalti.errors import BadFile, ConfigError, InputError
from smalti.metrics import Protocol

_SIZE, FRAMES = 128, 17
"""Size and length of clips if neither the caller nor the protocol names another."""


class EvaluationOptions(NamedTuple):
    """The options of `evaluate`; None: as the protocol says."""

    protocol: str = "smalti"
    limit: int | None = None
    size: int | None = None
    frames: int | None = None
    root: Path | None = None
    lpips: Path | None = None
    features: Path | None = None
    statistics: Path | None = None
    device: str | None = None
    bootstrap: int = 0
    max_bad: float = 1.0


class EvaluationClips(NamedTuple):
    """The clips to evaluate on, and the protocol with how they were read."""

    source: Subset
    protocol: Protocol
    data: dict[str, Any]
    """Config of the source, without paths of this machine."""
    store: Store
    listed: int
    """Number of clips of the data, of which `limit` may leave fewer in `source`."""

    def digest(self) -> str:
        """Return the sha256 of the names and sizes of the files, in order; files in tars and tables are read for it."""
        state = hashlib.sha256()
        for index in range(len(self.source)):
            try:
                media = self.store.media(index)
                size = len(media) if isinstance(media, bytes) else media.stat().st_size
            except (BadFile, OSError):
                size = -1
            state.update(f"{self.source.key(index)} {size}\n".encode())
        return state.hexdigest()


def clips_of(data: Path, protocol: Protocol, options: EvaluationOptions, *, is_image_model: bool) -> EvaluationClips:
    """Open the images or videos of `data`; if it holds both, those that the protocol or the tokenizer is for.

    Raises ConfigError for options that contradict the protocol, InputError if there is nothing, or less than the
    protocol asks for.
    """
    _check_options(protocol, options)
    assert not isinstance(protocol.size, tuple), "clips are squares"
    size = (protocol.size or _SIZE if options.size is None else options.size) or None
    frames = options.frames or protocol.frames or FRAMES
    preferred: Medium = ("images" if is_image_model else "videos") if protocol.media == "any" else protocol.media
    if protocol.convention is None:
        config = source_of(data, size=size, frames=frames, prefer=preferred, root=options.root)
    else:
        config = _config_of_convention(data, protocol, preferred, size).replace({"root": options.root})
    medium: Medium = "videos" if isinstance(config, ClipConfig) else "images"
    if protocol.media not in ("any", medium):
        raise InputError(f"{data}: holds {medium}, protocol {protocol.name} is for {protocol.media}")
    built = config.build()
    source = Subset(built, range(len(built))[: options.limit])
    if protocol.samples is not None and len(source) < protocol.samples:
        raise InputError(
            f"{data}: lists {len(source):,} files, protocol {protocol.name} asks for {protocol.samples:,}; give the "
            f"whole list, or take another protocol"
        )
    declared: dict[str, object] = {"size": size, "frames": frames if medium == "videos" else None}
    declared |= {"resize": config.resize if size else "none", "crop": "center" if size else "none"}
    plain = {name: value for name, value in config.plain().items() if name not in ("path", "root", "limit")}
    return EvaluationClips(source, protocol.replace(declared), plain, built.store, len(built))


def _check_options(protocol: Protocol, options: EvaluationOptions) -> None:
    if protocol.convention is not None:
        if options.frames not in (None, protocol.frames):
            needs = f"takes {protocol.frames} frames" if protocol.frames else "takes images"
            raise ConfigError(f"`frames` {options.frames}: protocol {protocol.name} {needs}; leave it out")
        if options.size == 0:
            raise ConfigError(f"`size` 0: protocol {protocol.name} cuts squares of one size; leave it out")
    if protocol.samples is not None and options.limit is not None and options.limit < protocol.samples:
        raise ConfigError(f"`limit` {options.limit}: protocol {protocol.name} asks for {protocol.samples:,} clips")


def _config_of_convention(data: Path, protocol: Protocol, medium: Medium, size: int | None) -> OneKindConfig:
    """Return how files become pixels in the project that the protocol follows."""
    assert size is not None
    if protocol.convention == "magicmaster":
        return magicmaster_images(data, size) if medium == "images" else magicmaster_videos(data, size, train=False)
    return mindone_images(data, size) if medium == "images" else mindone_videos(data, size)
