"""All kinds of sources as one type, and the one that a path asks for."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from smalti.data.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from smalti.data.images import ImagesConfig
from smalti.data.mixture import JointConfig
from smalti.data.packing import packing_of, read_former_kind
from smalti.data.parquet import column_names
from smalti.data.source import Medium
from smalti.data.tars import suffixes_in
from smalti.data.videos import VideosConfig
from smalti.data.views import SizeField
from smalti.errors import InputError
from smalti.text import one_line, printable

OneKindConfig = Annotated[ImagesConfig | VideosConfig, Field(discriminator="kind"), BeforeValidator(read_former_kind)]
"""A source of images alone, or of clips alone; each `build()`s its `Source`."""
SourceConfig = Annotated[
    ImagesConfig | VideosConfig | JointConfig, Field(discriminator="kind"), BeforeValidator(read_former_kind)
]
"""Any source of samples; each `build()`s its `Source`."""


def source_of(
    path: Path,
    *,
    size: SizeField = None,
    frames: int | None = 17,
    prefer: Medium = "videos",
    root: Path | None = None,
) -> ImagesConfig | VideosConfig:
    """Return the config that reads `path` as it is, for measuring and tokenizing: center crop, no flip, in order.

    `path` is a folder, list or file of images, videos, tars or Parquet files, a pattern of tars
    (`val-{000..049}.tar`), or `hf:owner/name`. Suffixes tell the medium (a GIF counts as an image), and in Parquet
    files the columns `image` and `video`; where images and videos are there, those of `prefer` are taken. A clip is
    the middle `frames` frames (None: all of them), and a shorter video is a bad file. `root` is the folder that the
    paths of a list are relative to. `replace` gives a copy with other fields. Raises InputError where there is nothing
    to read, or tars or Parquet files lie among other media.
    """
    packing, suffixes = packing_of(path, root)
    if packing == "files":
        media = _media_of(suffixes)
    else:
        listing = ImagesConfig(path=path, root=root, packing=packing).listing(())[1]
        files = [listing.root / file for file in listing.files]
        tars = (_media_of(suffixes_in(tar)) for tar in files)
        media = next(filter(None, tars), []) if packing == "tars" else _media_of_columns(files[0])
    if not media:
        raise InputError(f"{printable(path)}: no images and no videos, by their suffixes; name the kind in a config")
    fields: dict[str, object] = {"path": path, "root": root, "size": size, "crop": "center", "flip": False}
    if (prefer if prefer in media else media[0]) == "images":
        return ImagesConfig.parse(fields, where=str(path))
    fields |= {"frames": frames, "sampling": "center", "short": "skip"}
    return VideosConfig.parse(fields, where=str(path))


def _media_of(suffixes: set[str]) -> list[Medium]:
    known: dict[Medium, set[str]] = {"images": set(IMAGE_SUFFIXES), "videos": set(VIDEO_SUFFIXES) - set(IMAGE_SUFFIXES)}
    return [medium for medium, own in known.items() if own & suffixes]


def _media_of_columns(file: Path) -> list[Medium]:
    names = column_names(file)
    known: dict[Medium, str] = {"images": "image", "videos": "video"}
    media = [medium for medium, name in known.items() if name in names]
    if not media:
        listed = one_line(", ".join(names))
        raise InputError(f"{printable(file)}: no column image or video (there are: {listed}); name it in a config")
    return media
