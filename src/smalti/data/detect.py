"""All kinds of sources as one type, and the one that a path asks for."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from smalti.data.images import SUFFIXES as PICTURES
from smalti.data.images import ImagesConfig
from smalti.data.lists import list_files
from smalti.data.mixture import AnyImagesConfig, AnyVideosConfig, JointConfig
from smalti.data.parquet import ParquetImagesConfig, ParquetVideosConfig, column_names
from smalti.data.tars import TarImagesConfig, TarVideosConfig, suffixes_in
from smalti.data.videos import SUFFIXES as VIDEOS
from smalti.data.videos import VideosConfig
from smalti.data.views import SizeField
from smalti.errors import InputError
from smalti.text import one_line, printable

OneKindConfig = Annotated[AnyImagesConfig | AnyVideosConfig, Field(discriminator="kind")]
"""A source of pictures alone, or of clips alone; each `build()`s its `Source`."""
SourceConfig = Annotated[AnyImagesConfig | AnyVideosConfig | JointConfig, Field(discriminator="kind")]
"""Any source of samples; each `build()`s its `Source`."""

Medium = Literal["images", "videos"]
Packing = Literal["media", "tars", "Parquet files"]

_CONFIGS: dict[tuple[Packing, Medium], type[AnyImagesConfig | AnyVideosConfig]] = {
    ("media", "images"): ImagesConfig,
    ("media", "videos"): VideosConfig,
    ("tars", "images"): TarImagesConfig,
    ("tars", "videos"): TarVideosConfig,
    ("Parquet files", "images"): ParquetImagesConfig,
    ("Parquet files", "videos"): ParquetVideosConfig,
}


def source_of(
    path: Path,
    *,
    size: SizeField = None,
    frames: int | None = 17,
    prefer: Medium = "videos",
    root: Path | None = None,
) -> OneKindConfig:
    """The config that shows what `path` holds as it is, for measuring and tokenizing: middle, unmirrored, in order.

    `path` is a folder, list or file of pictures, videos, tars or Parquet files, a pattern of tars
    (`val-{000..049}.tar`), or `hf:owner/name`. Suffixes say what it is (a GIF counts as a picture), and in Parquet
    the columns `image` and `video`; where pictures and videos are there, those of `prefer` are taken. A clip is the
    middle `frames` frames (None: all of them), and a shorter video is a bad file. `root` is where the paths of a list
    start. `replace` gives a copy with other fields. Raises InputError where there is nothing to read, or tars or tables
    lie among other media.
    """
    packing, found = _look(path, root)
    if not found:
        raise InputError(f"{printable(path)}: no pictures and no videos, by their suffixes; name the kind in a config")
    medium = prefer if prefer in found else found[0]
    fields = {"path": path, "size": size, "crop": "center", "flip": False}
    if packing == "media":
        fields |= {"root": root}
    if medium == "videos":
        fields |= {"frames": frames, "sampling": "center", "short": "skip"}
    return _CONFIGS[packing, medium].parse(fields, where="source_of")


def packing_of(path: Path, root: Path | None = None) -> tuple[Packing, set[str]]:
    """How the media of `path` are packed, and the suffixes of its files where a folder, list or file has told.

    Raises InputError where tars or tables lie among other media.
    """
    if path.as_posix().startswith("hf:"):
        return "Parquet files", set()
    if "{" in str(path) and not os.path.lexists(path):
        return "tars", set()
    files = list_files(path, tuple(dict.fromkeys((*PICTURES, *VIDEOS, ".tar", ".parquet"))), root=root).files
    suffixes = {os.path.splitext(file)[1].lower() for file in files}  # noqa: PTH122 - names stay text
    packed = suffixes & {".tar", ".parquet"}
    if packed and len(suffixes) > 1:
        listed = one_line(" ".join(sorted(suffixes)))
        raise InputError(f"{printable(path)}: holds files of several kinds ({listed}); give those of one kind")
    if packed:
        return "tars" if ".tar" in packed else "Parquet files", suffixes
    return "media", suffixes


def _look(path: Path, root: Path | None) -> tuple[Packing, list[Medium]]:
    """(how the media of `path` are packed, which media there are)."""
    packing, suffixes = packing_of(path, root)
    if packing == "media":
        return packing, _media(suffixes)
    return packing, _media_of_tars(path) if packing == "tars" else _media_of_columns(path)


def _media(suffixes: set[str]) -> list[Medium]:
    known: dict[Medium, set[str]] = {"images": set(PICTURES), "videos": set(VIDEOS) - set(PICTURES)}
    return [medium for medium, own in known.items() if own & suffixes]


def _media_of_tars(path: Path) -> list[Medium]:
    """Those of the first tar that has any."""
    root, tars = TarImagesConfig(path=path).tars()
    return next((media for tar in tars if (media := _media(suffixes_in(root / tar)))), [])


def _media_of_columns(path: Path) -> list[Medium]:
    """Those of the columns of the first Parquet file."""
    root, files = ParquetImagesConfig(path=path).files()
    names = column_names(root / files[0])
    known: dict[Medium, str] = {"images": "image", "videos": "video"}
    media = [medium for medium, name in known.items() if name in names]
    if not media:
        there = one_line(", ".join(names))
        raise InputError(
            f"{printable(root / files[0])}: no column image or video (there are: {there}); name it in a config"
        )
    return media
