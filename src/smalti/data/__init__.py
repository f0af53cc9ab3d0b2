"""Data: photographs and film from folders and lists, as batches that depend on (seed, step) alone."""

from typing import Annotated

from pydantic import Field

from smalti.data.images import Images, ImagesConfig, read_image
from smalti.data.joint import Joint, JointConfig
from smalti.data.loader import BadFileLog, Batch, batches, evaluation
from smalti.data.source import Source
from smalti.data.videos import Videos, VideosConfig, open_video, read_clip, write_video

SourceConfig = Annotated[ImagesConfig | VideosConfig | JointConfig, Field(discriminator="kind")]
"""Any source of samples; each `build()`s its `Source`."""

__all__ = [
    "BadFileLog",
    "Batch",
    "Images",
    "ImagesConfig",
    "Joint",
    "JointConfig",
    "Source",
    "SourceConfig",
    "Videos",
    "VideosConfig",
    "batches",
    "evaluation",
    "open_video",
    "read_clip",
    "read_image",
    "write_video",
]
