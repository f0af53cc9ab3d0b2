"""Data: photographs and film from folders, lists, tars and tables, as batches that depend on (seed, step) alone."""

from typing import Annotated

from pydantic import Field

from smalti.data.conventions import magicmaster_images, magicmaster_videos, mindone_images, mindone_videos
from smalti.data.images import Images, ImagesConfig, read_image
from smalti.data.joint import Joint, JointConfig
from smalti.data.loader import BadFileLog, Batch, batches, evaluation
from smalti.data.parquet import ParquetImagesConfig, ParquetVideosConfig
from smalti.data.source import Source
from smalti.data.tars import TarImagesConfig, TarVideosConfig
from smalti.data.videos import Videos, VideosConfig, open_video, read_clip, write_video

_Images = ImagesConfig | TarImagesConfig | ParquetImagesConfig
_Videos = VideosConfig | TarVideosConfig | ParquetVideosConfig
OneKindConfig = Annotated[_Images | _Videos, Field(discriminator="kind")]
"""A source of pictures alone, or of clips alone; each `build()`s its `Source`."""
SourceConfig = Annotated[_Images | _Videos | JointConfig, Field(discriminator="kind")]
"""Any source of samples; each `build()`s its `Source`."""

__all__ = [
    "BadFileLog",
    "Batch",
    "Images",
    "ImagesConfig",
    "Joint",
    "JointConfig",
    "OneKindConfig",
    "ParquetImagesConfig",
    "ParquetVideosConfig",
    "Source",
    "SourceConfig",
    "TarImagesConfig",
    "TarVideosConfig",
    "Videos",
    "VideosConfig",
    "batches",
    "evaluation",
    "magicmaster_images",
    "magicmaster_videos",
    "mindone_images",
    "mindone_videos",
    "open_video",
    "read_clip",
    "read_image",
    "write_video",
]
