"""Data: images and videos of folders, lists, tars and Parquet files, as batches that depend on (seed, step) alone."""

from smalti.data.conventions import magicmaster_images, magicmaster_videos, mindone_images, mindone_videos
from smalti.data.detect import OneKindConfig, SourceConfig, source_of
from smalti.data.images import Images, ImagesConfig, read_image
from smalti.data.loader import BadFileLog, Batch, batches, evaluation
from smalti.data.mixture import Joint, JointConfig, Views
from smalti.data.source import Source, Subset
from smalti.data.videos import Videos, VideosConfig, open_video, read_clip, write_video

__all__ = [
    "BadFileLog",
    "Batch",
    "Images",
    "ImagesConfig",
    "Joint",
    "JointConfig",
    "OneKindConfig",
    "Source",
    "SourceConfig",
    "Subset",
    "Videos",
    "VideosConfig",
    "Views",
    "batches",
    "evaluation",
    "magicmaster_images",
    "magicmaster_videos",
    "mindone_images",
    "mindone_videos",
    "open_video",
    "read_clip",
    "read_image",
    "source_of",
    "write_video",
]
